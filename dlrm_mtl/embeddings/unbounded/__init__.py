"""Ids without a vocabulary: which row belongs to which id."""
