"""Metrics of the rows that all processes have scored, whole and by slice."""
