"""Stores entries of the Redis outboxes as rows in PostgreSQL."""
