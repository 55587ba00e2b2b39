"""Work that time alone makes due."""
