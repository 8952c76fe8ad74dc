"""Files on this machine and on object stores, and writing them atomically."""
