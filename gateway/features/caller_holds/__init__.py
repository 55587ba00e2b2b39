"""Holds that callers create by the API."""
