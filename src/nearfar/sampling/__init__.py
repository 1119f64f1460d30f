"""Near images: local sampling, inversion, reconstruction, enhancement. Images and a model in, images out.

Images of unseen domains are in `domain`; folders of images are in `jobs`.
"""
