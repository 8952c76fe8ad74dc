"""Scaling of a run before it is started: the work of every process, its memory, and the time of a step on given hardware."""
