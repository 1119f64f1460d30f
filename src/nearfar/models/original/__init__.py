"""The papers' own checkpoints: their layouts, and how they become networks of diffusers.

Folders and hub names are read by `models.loading`.
"""
