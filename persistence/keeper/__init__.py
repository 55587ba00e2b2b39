"""Reads and writes of the keeper's loops in addition to the ledger."""
