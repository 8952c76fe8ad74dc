"""Serving the versions that a training publishes."""
