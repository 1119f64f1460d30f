"""Pages: one builder of pages and sheets of pictures, and one file for each report.

What is reported is measured elsewhere: in `metrics`, `audit`, `domain` and `jobs`.
"""
