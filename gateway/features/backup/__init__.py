"""A snapshot of PostgreSQL in files or in a bucket, and its restore. Part of the composition root."""
