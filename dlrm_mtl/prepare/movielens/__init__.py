"""The adapter for MovieLens."""
