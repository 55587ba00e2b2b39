"""Embedded PostgreSQL and Valkey, from Python wheels."""
