"""What data adapters share."""
