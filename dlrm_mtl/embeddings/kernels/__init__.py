"""Lookups and the two-phase sparse update on one process's shards. Needs PyTorch only (and Triton on CUDA)."""
