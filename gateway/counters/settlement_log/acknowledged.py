"""What answers of `settle` and `grant` acknowledge: the epoch, and which seqs of which accounts moved."""

from __future__ import annotations

from gateway.core.accounts.losses import Movement, movements
from gateway.core.model import Caller
from gateway.counters.layouts.table import ACKNOWLEDGED, GONE, GRANTED, SETTLED

_SEQS = tuple(one.name for one in ACKNOWLEDGED.fields)
# Of another size an answer acknowledges nothing; no two of these have the same one.
_MOVING = {one.size: one for one in (SETTLED, GRANTED, ACKNOWLEDGED)}


def epoch_of(answer: bytes) -> int:
    """The epoch a settlement was answered under."""
    epoch: int = (SETTLED if len(answer) == SETTLED.size else GONE).read(answer)["epoch"]
    return epoch


def argument(answer: bytes) -> bytes:
    """What `settle` acknowledged, as `settle` takes it to recover it: epoch, seq, moved, the other seqs."""
    if len(answer) != SETTLED.size:
        return ACKNOWLEDGED.pack(epoch_of(answer), 0, 0, 0, 0)
    found = SETTLED.read(answer)
    return ACKNOWLEDGED.pack(*(found[name] for name in _SEQS))


def acknowledged(caller: Caller, answer: bytes) -> tuple[Movement, ...]:
    """The movements of an answer, or of the argument made of one; none where nothing moved."""
    layout = _MOVING.get(len(answer))
    found = layout.read(answer) if layout else {}
    moved = {name: found[name] for name in _SEQS if name in found}
    return movements(caller.partition, caller.tenant_id, caller.organization_id, **moved) if moved else ()
