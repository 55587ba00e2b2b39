"""Quarantine: accounts with contradictions are stopped by the writer, and released.

The entries of a stopped account wait in the outbox until a person decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import FlushReport, stream_place
from gateway.core.accounts.outbox import places_before
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.guard import QuarantineReason

# The held keys and overrides that a release with `accept` opens (`KnownOtherwise`), as JSON.
OPENS = """
CASE WHEN starts_with(quarantine.account, 'access:') THEN jsonb_build_object(
    'keys', (SELECT coalesce(jsonb_agg(jsonb_build_object('id', k.id, 'prefix', k.prefix, 'name', k.name) ORDER BY k.id), '[]')
               FROM api_key AS k
              WHERE jsonb_exists(quarantine.stood->'keys', k.id::text) AND k.revoked_at IS NULL
                AND coalesce(k.expires_at > now(), true)),
    'overrides', (SELECT coalesce(jsonb_agg(jsonb_build_object('budget_id', b.id, 'owner', o.key) ORDER BY b.id, o.key), '[]')
                    FROM budget AS b
                   CROSS JOIN LATERAL jsonb_object_keys(quarantine.stood->'overrides'->(b.id::text)) AS o (key)
                   WHERE b.organization_id = quarantine.organization_id AND b.deleted_at IS NULL)) END"""


def stopped_accounts(connection: Connection[Any], partitions: Sequence[int]) -> set[str]:
    return {account for (account,) in connection.execute(statements.STOPPED, (list(partitions),))}


def quarantine(connection: Connection[Any], faults: Iterable[QuarantineReason]) -> None:
    """Stop accounts until a person or the verifier releases them."""
    for fault in sorted(faults, key=lambda fault: fault.account):
        event = fault.event
        where = (fault.account, fault.partition, event.organization_id, event.tenant_id)
        seqs = (_bounded(event.epoch), fault.stored_seq, _bounded(fault.found_seq))
        why = (fault.kind, fault.behind, fault.entry_id.decode())
        connection.execute(statements.QUARANTINE, (*where, *why, *seqs, fault.reason, _stood(fault)))


def mark_stopped(connection: Connection[Any], report: FlushReport) -> None:
    """Store, for each partition, the newest entry that is deleted from the outbox after this transaction."""
    leaving = {partition: list(ids) for partition, ids in report.acknowledged.items()}
    for (partition, _), ids in report.parked.items():
        leaving.setdefault(partition, []).extend(ids)
    newest = {partition: max(ids, key=stream_place) for partition, ids in leaving.items() if ids}
    if newest:
        partitions = sorted(newest)
        connection.execute(
            statements.MARK, (partitions, [newest[partition].decode() for partition in partitions])
        )


def _stood(fault: QuarantineReason) -> str | None:
    """Return the state of a fault's account before the entry that stopped it, as JSON; None if unknown."""
    for place in places_before(fault.event):
        if place.account == fault.account and abs(place.balance or 0) <= INTEGER_MAX:
            return json.dumps(
                {"balance": place.balance, "cycle": _bounded(place.cycle), "at_ms": place.at_ms}
            )
    return None


def _bounded(number: int) -> int:
    return max(0, min(number, INTEGER_MAX))
