"""The constants of the Clippy rule, as in its paper (arXiv 2302.09178, section 5): the one place where they stand."""

LAMBDA_REL = 0.5
"""Largest move of a coordinate in one step, as a share of its size."""
LAMBDA_ABS = 1e-2
"""Largest move of any coordinate in one step, in addition."""
INITIAL_ACCUMULATOR = 0.1
"""First value of the accumulators."""
