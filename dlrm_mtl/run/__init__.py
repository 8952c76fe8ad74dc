"""Whole runs: train, evaluate, predict, and the folder that a run leaves."""
