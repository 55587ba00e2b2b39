"""Settings and the configuration file: read once, checked, and told plainly where they are wrong."""
