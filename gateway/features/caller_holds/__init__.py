"""Holds by the API."""
