"""The Admin API: its routes, and its OpenAPI document."""
