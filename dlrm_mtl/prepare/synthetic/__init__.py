"""The adapter for synthetic data with a known best model."""
