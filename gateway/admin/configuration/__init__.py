"""Configuration from files: what is said, how it differs from what is there, and what is done about it."""
