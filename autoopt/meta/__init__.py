"""What was learned: recorded trials, the data set they make, and the selector fitted on it.

Nothing in this package imports torch, so that the selector can be fitted and applied without it.
"""
