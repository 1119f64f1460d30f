"""Frozen models: found, loaded, checked, described.

`original` reads the papers' checkpoints; `faces` is the bundled model. What is sampled with models is in `sampling`;
noise schedules and solvers are in `diffusion`.
"""
