"""Partitions are verified, opened and reconciled."""
