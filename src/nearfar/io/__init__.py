"""Pictures, arrays and regions of pictures in; listing of folders; writing, manifest and progress.

What is done to an image in between is in `sampling`; runs over folders are in `jobs`, labels and shards in `data`.
"""
