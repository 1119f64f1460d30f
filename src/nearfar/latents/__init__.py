"""Statistics of few latents: covariance, mixtures, shell, tests of normality and of two samples.

Tensors in, numbers out. No files, no models and no sampling live here; a domain, which is fitted with these, is in
`domain`.
"""
