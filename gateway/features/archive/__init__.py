"""Months of the ledgers, written to an archive and removed from PostgreSQL. Part of the composition root."""
