"""Settings and the configuration file: read once, and checked with clear errors."""
