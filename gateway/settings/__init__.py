"""Settings and the configuration file: read once, judged, and told plainly where they are wrong."""
