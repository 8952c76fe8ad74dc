"""Common parts of data adapters."""
