"""Side-by-side measurements behind the figures of the documentation; never run as tests."""
