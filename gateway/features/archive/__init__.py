"""Months of the ledgers, written to an archive and taken out of PostgreSQL. Part of the composition root."""
