"""What answers of `settle` and `grant` acknowledge: the epoch, and which seqs of which accounts moved."""

from __future__ import annotations

from gateway.core.accounts.losses import Movement, movements
from gateway.counters.layouts.table import ACKNOWLEDGED, GONE, GRANTED, SETTLED


def epoch_of(answer: bytes) -> int:
    """The epoch a settlement was answered under."""
    epoch: int = (SETTLED if len(answer) == SETTLED.size else GONE).read(answer)["epoch"]
    return epoch


def argument(answer: bytes) -> bytes:
    """What `settle` acknowledged, as `settle` takes it to recover it: epoch, seq, moved, the other seqs."""
    if len(answer) != SETTLED.size:
        return ACKNOWLEDGED.pack(epoch_of(answer), 0, 0, 0, 0)
    found = SETTLED.read(answer)
    return ACKNOWLEDGED.pack(*(found[field.name] for field in ACKNOWLEDGED.fields))


def of_argument(partition: int, tenant_id: int, organization_id: int, packed: bytes) -> tuple[Movement, ...]:
    """The movements an argument names; none where there is no argument."""
    if not packed:
        return ()
    return movements(partition, tenant_id, organization_id, **ACKNOWLEDGED.read(packed))


def of_grant(partition: int, tenant_id: int, organization_id: int, answer: bytes) -> tuple[Movement, ...]:
    """What an answer of `grant` acknowledged; none where nothing moved."""
    if len(answer) != GRANTED.size:
        return ()
    found = GRANTED.read(answer)
    moved = {name: found[name] for name in ("epoch", "seq", "moved", "credit_seq")}
    return movements(partition, tenant_id, organization_id, **moved)


def of_settle(partition: int, tenant_id: int, organization_id: int, answer: bytes) -> tuple[Movement, ...]:
    """What an answer of `settle` acknowledged; none where nothing moved."""
    if len(answer) != SETTLED.size:
        return ()
    return of_argument(partition, tenant_id, organization_id, argument(answer))
