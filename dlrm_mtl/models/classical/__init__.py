"""Models without exchangeable parts: baselines, and models of published experiments."""
