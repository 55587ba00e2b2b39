"""What the keeper asks of Redis."""
