"""Configuration in files: `apply`, `diff` and `export`."""
