"""Data sets: labels, boxes, shards, parquet files, and `torch` data sets of near images.

Pictures and their files are in `io`; runs over data sets are in `jobs`.
"""
