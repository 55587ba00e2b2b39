"""What answers of `settle` and `grant` acknowledge: the epoch, and which seqs of which accounts moved."""

from __future__ import annotations

import struct

from gateway.core.accounts.losses import Movement, movements

_SETTLED = struct.Struct("<9d")
_GONE = struct.Struct("<3d")
_GRANTED = struct.Struct("<8d")
_ARGUMENT = struct.Struct("<5d")


def epoch_of(answer: bytes) -> int:
    """The epoch a settlement was answered under."""
    return int((_SETTLED.unpack(answer)[5]) if len(answer) == _SETTLED.size else _GONE.unpack(answer)[2])


def argument(answer: bytes) -> bytes:
    """What `settle` acknowledged, as `settle` takes it to recover it: epoch, seq, moved, the other seqs."""
    if len(answer) != _SETTLED.size:
        return _ARGUMENT.pack(epoch_of(answer), 0, 0, 0, 0)
    _, _, seq, _, _, epoch, moved, credit_seq, spend_seq = _SETTLED.unpack(answer)
    return _ARGUMENT.pack(epoch, seq, moved, credit_seq, spend_seq)


def of_argument(partition: int, tenant_id: int, organization_id: int, packed: bytes) -> tuple[Movement, ...]:
    """The movements an argument names; none where there is no argument."""
    if not packed:
        return ()
    epoch, seq, moved, credit_seq, spend_seq = map(int, _ARGUMENT.unpack(packed))
    return movements(
        partition, tenant_id, organization_id,
        epoch=epoch, seq=seq, moved=moved, credit_seq=credit_seq, spend_seq=spend_seq,
    )  # fmt: skip


def of_grant(partition: int, tenant_id: int, organization_id: int, answer: bytes) -> tuple[Movement, ...]:
    """What an answer of `grant` acknowledged; none where nothing moved."""
    if len(answer) != _GRANTED.size:
        return ()
    _, _, seq, _, _, epoch, moved, credit_seq = map(int, _GRANTED.unpack(answer))
    return movements(
        partition, tenant_id, organization_id, epoch=epoch, seq=seq, moved=moved, credit_seq=credit_seq
    )


def of_settle(partition: int, tenant_id: int, organization_id: int, answer: bytes) -> tuple[Movement, ...]:
    """What an answer of `settle` acknowledged; none where nothing moved."""
    if len(answer) != _SETTLED.size:
        return ()
    return of_argument(partition, tenant_id, organization_id, argument(answer))
