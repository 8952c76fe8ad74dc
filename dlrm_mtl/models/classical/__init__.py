"""Models without parts to choose: baselines, and models of published experiments."""
