"""Measurements of AFTER against BEFORE: fidelity, privacy under attack, utility, and the strength that meets a target.

The measures are in `metrics`, the pages in `reports`.
"""
