"""The page that `nearfar serve` shows on this machine: what its tabs do, and the server around them.

`gradio` is imported by `page` and `server` alone; `desk` and `figures` are what they show, without it.
"""
