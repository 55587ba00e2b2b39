"""Who calls, what it may take, and taking it."""
