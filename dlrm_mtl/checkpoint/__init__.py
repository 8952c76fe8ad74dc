"""Checkpoints: tensors, formats, plans."""
