"""Frozen models: found, loaded, checked, described.

`original` reads the papers' checkpoints; `faces`, `faces64` and `cells` are the bundled models. What is sampled with
models is in `sampling`; noise schedules and solvers are in `diffusion`.
"""
