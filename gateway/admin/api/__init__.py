"""The Admin API: its routes, and what it says of itself."""
