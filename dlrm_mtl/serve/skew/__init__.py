"""Skew: logged requests beside a bundle and its training data."""
