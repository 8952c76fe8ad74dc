"""Ids without a vocabulary: the map from ids to rows."""
