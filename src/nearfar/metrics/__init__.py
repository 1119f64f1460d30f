"""Measures of images: PSNR and SSIM, features, faces, distances of sets, intervals.

Attacks and what is concluded from measures are in `audit`.
"""
