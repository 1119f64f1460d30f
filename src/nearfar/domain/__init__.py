"""Unseen domains: fitted to few images, drawn from, guarded, surveyed, kept in a file.

The statistics below it are in `latents`; folders of samples are in `jobs`.
"""
