"""Configuration from files: the wish, its difference from the rows, and the changes."""
