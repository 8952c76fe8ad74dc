"""The HTTP server: worker processes that score requests, and go over to new versions of the model while they serve."""
