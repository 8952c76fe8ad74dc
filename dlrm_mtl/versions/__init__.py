"""Versions of a model that a training run publishes for servers."""
