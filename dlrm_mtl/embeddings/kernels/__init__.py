"""Lookups and the two-phase sparse update on one process's shards. Needs only PyTorch (and Triton on CUDA)."""
