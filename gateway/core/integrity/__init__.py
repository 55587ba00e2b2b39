"""Whether what Redis and PostgreSQL say agrees, and what to do where it does not."""
