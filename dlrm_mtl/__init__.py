"""dlrm_mtl: multitask ranking models on sharded embedding tables."""

__version__ = "0.1.0"
