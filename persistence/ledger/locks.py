"""The lock of a partition: who has it may store what its outbox has."""

from gateway.core.model import PARTITIONS

# A session lock would outlive a frozen flusher; this one ends with the transaction.
LOCK = """
SELECT p FROM unnest(%s::integer[]) AS p WHERE pg_try_advisory_xact_lock(7800, p)"""
# Looked at, not tried: nobody else's try fails by it.
LOCKED = """
SELECT DISTINCT objid::integer FROM pg_locks
 WHERE locktype = 'advisory' AND classid = 7800 AND objsubid = 2 AND granted AND objid::integer = ANY(%s)
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
# All of them, one after the other: every flush begun before has ended then, and none begins.
HOLD_FLUSHES = f"SELECT pg_advisory_xact_lock(7800, p) FROM generate_series(0, {PARTITIONS - 1}) AS p"  # noqa: S608  # our own words
