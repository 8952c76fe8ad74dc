"""The adapter for tables of any kind."""
