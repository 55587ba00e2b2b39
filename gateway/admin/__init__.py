"""The people's door: the Admin API."""
