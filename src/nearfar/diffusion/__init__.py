"""What diffusion is: schedule, noise level, noise, denoiser, solvers. Tensors in, tensors out.

No files and no models live here; what a network was trained as is in `models`, what is done with both in `sampling`.
"""
