"""Verifies partitions after a loss, opens them to admission, and reconciles counters with the ledger."""
