"""The Admin API and the console for people."""
