"""What answers of `settle` and `grant` acknowledge: the epoch, and which seqs of which accounts moved.

A settlement that is sent again is answered again, and may be forgotten again before a keeper has seen what it
says of the first answer. So the log notes what earlier answers acknowledged behind the latest one.
"""

from __future__ import annotations

from gateway.core.accounts.losses import Movement, movements
from gateway.core.model import Caller
from gateway.counters.layouts.table import ACKNOWLEDGED, GONE, GRANTED, SETTLED

# How many earlier answers of one settlement are kept: so often it is sent again, and forgotten again.
EARLIER_MAX = 4
_SEQS = tuple(one.name for one in ACKNOWLEDGED.fields)
# Of another size an answer acknowledges nothing; no two of these have the same one.
_MOVING = {one.size: one for one in (SETTLED, GRANTED)}
# What the log notes is one of these, and so many of ACKNOWLEDGED: its size says which.
_NOTED = {one.size % ACKNOWLEDGED.size: one for one in (SETTLED, GONE)}


def epoch_of(noted: bytes) -> int:
    """The epoch a settlement was answered under last, by what the log noted."""
    layout = _NOTED[len(noted) % ACKNOWLEDGED.size]
    epoch: int = layout.read(noted[: layout.size])["epoch"]
    return epoch


def noted(answer: bytes, before: bytes) -> bytes:
    """An answer as the log notes it; `before` is what it had noted of the settlement, if anything."""
    return answer + _moves(before)[: EARLIER_MAX * ACKNOWLEDGED.size] if before else answer


def argument(noted: bytes) -> bytes:
    """What `settle` acknowledged, as `settle` takes it to recover it: of each answer, the latest first, its
    epoch, seq, moved, the other seqs.
    """
    return _moves(noted) or ACKNOWLEDGED.pack(epoch_of(noted), 0, 0, 0, 0)


def acknowledged(caller: Caller, answer: bytes) -> tuple[Movement, ...]:
    """The movements of an answer; none where nothing moved."""
    layout = _MOVING.get(len(answer))
    return _movements(caller, layout.read(answer)) if layout else ()


def recovered(caller: Caller, argument: bytes) -> tuple[Movement, ...]:
    """The movements of the argument made of what was noted; none of one that nobody can read."""
    size = ACKNOWLEDGED.size
    if len(argument) % size:
        return ()
    parts = (argument[at : at + size] for at in range(0, len(argument), size))
    return tuple(one for part in parts for one in _movements(caller, ACKNOWLEDGED.read(part)))


def _moves(noted: bytes) -> bytes:
    """Of each answer what it moved, the latest first; nothing of one that moved nothing."""
    layout = _NOTED[len(noted) % ACKNOWLEDGED.size]
    if layout is GONE:
        return noted[GONE.size :]
    found = SETTLED.read(noted[: SETTLED.size])
    latest = any(found[name] for name in _SEQS[2:])
    return (ACKNOWLEDGED.pack(*(found[name] for name in _SEQS)) if latest else b"") + noted[SETTLED.size :]


def _movements(caller: Caller, found: dict[str, int]) -> tuple[Movement, ...]:
    moved = {name: found[name] for name in _SEQS if name in found}
    return movements(caller.partition, caller.tenant_id, caller.organization_id, **moved)
