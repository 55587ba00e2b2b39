"""Configuration from files: the wanted objects, their difference from the rows, and the changes."""
