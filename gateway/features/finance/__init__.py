"""Raise requests: people ask for more of a budget, and somebody decides."""
