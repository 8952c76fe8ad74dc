"""Many trainings as one experiment: sweeps over keys of a configuration, and what they show."""
