"""Connections to upstreams, and their pools."""
