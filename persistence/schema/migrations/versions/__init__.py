"""One module for each version; long SQL is in a folder of its name."""
