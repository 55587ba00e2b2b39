"""The migrations of the schema, by version."""
