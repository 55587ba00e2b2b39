"""PostgreSQL as of one moment, kept in files or in a bucket, and back again. Part of the composition root."""
