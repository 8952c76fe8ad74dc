"""The adapter for MovieLens."""

from dlrm_mtl.prepare.movielens import adapter as adapter
