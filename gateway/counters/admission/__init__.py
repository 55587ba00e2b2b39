"""Identifies callers, knows their limits, and reserves and settles calls."""
