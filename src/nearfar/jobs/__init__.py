"""What is done to a folder, a data set or a row of samples: `Job`, the plan, the run, and one file for each job.

What is done to one batch is in `sampling` and `domain`; pages about runs are in `reports`.
"""
