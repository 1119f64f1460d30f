"""Private evolution: a synthetic data set under a formal guarantee, from a frozen model and noisy votes.

What votes cost is in `accounting`, the only look at private images in `votes`, what is done with the votes in
`population`, and what is kept of a run in `ledger`. Files are written by `jobs/evolve.py`.
"""
