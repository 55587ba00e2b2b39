"""The last stored movement of each account of a batch."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import Batch
from persistence.ledger import statements
from persistence.ledger.guard import UNKNOWN, Head, Heads


def read_heads(connection: Connection[Any], batch: Batch) -> Heads:
    """Return the last stored movement of every account of a batch; unusable accounts are marked stopped."""
    tenants, organizations = set(), set()
    for entries in batch.values():
        for _, _, event in entries:
            if event is not None:
                tenants.add(event.tenant_id)
                organizations.add(event.organization_id)
    heads = Heads(
        {id_: Head(f"tenant:{id_}", 0, 0, 0, UNKNOWN) for id_ in tenants},
        {id_: Head(f"credits:{id_}", id_, 0, 0, UNKNOWN) for id_ in organizations},
        {id_: Head(f"spend:{id_}", id_, 0, 0, UNKNOWN) for id_ in organizations},
    )
    rows = connection.execute(statements.TENANTS, (sorted(tenants),))
    for id_, organization_id, epoch, seq in rows:
        heads.tenants[id_] = Head(f"tenant:{id_}", organization_id, epoch, seq)
    rows = connection.execute(statements.ORGANIZATIONS, (sorted(organizations),))
    for id_, credit_epoch, credit_seq, spend_epoch, spend_seq in rows:
        heads.credits[id_] = Head(f"credits:{id_}", id_, credit_epoch, credit_seq)
        heads.spends[id_] = Head(f"spend:{id_}", id_, spend_epoch, spend_seq)
    return heads
