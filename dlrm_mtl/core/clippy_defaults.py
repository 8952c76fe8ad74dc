"""Constants of the Clippy rule, from its paper (arXiv 2302.09178, section 5); defined nowhere else."""

LAMBDA_REL = 0.5
"""Largest move of a coordinate in one step, as a share of its size."""
LAMBDA_ABS = 1e-2
"""Largest move of any coordinate in one step, added to the relative one."""
INITIAL_ACCUMULATOR = 0.1
"""Initial value of the accumulators."""
