"""The Admin API's resources in PostgreSQL."""
