"""Comparison of Redis and PostgreSQL, and recovery when they differ."""
