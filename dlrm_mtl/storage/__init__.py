"""Where files are, locally and on object stores, and how they are written whole."""
