"""Entries of the outbox become rows."""
