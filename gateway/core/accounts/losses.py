"""Movements that were acknowledged, by their place in their account: what a loss is counted from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Movement:
    """Movements `first_seq` to `last_seq` of an account, acknowledged under an epoch.

    `account` is `tenant:<id>`, `credits:<organization id>` or `spend:<organization id>`.
    """

    account: str
    partition: int
    epoch: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What Redis forgot of an account's epoch: `recovered` by somebody's evidence, `lost` without any.

    `more` of these are lost than were counted before; below 0 where evidence came late.
    """

    account: str
    epoch: int
    first_seq: int
    last_seq: int
    recovered: int
    lost: int
    more: int


def movements(
    partition: int,
    tenant_id: int,
    organization_id: int,
    *,
    epoch: int,
    seq: int = 0,
    moved: int = 0,
    credit_seq: int = 0,
    spend_seq: int = 0,
) -> tuple[Movement, ...]:
    """What one answer of a script acknowledged: the tenant's seq moved by so much, 0 is not at all."""
    found = []
    if moved:
        found.append(Movement(f"tenant:{tenant_id}", partition, epoch, seq - moved + 1, seq))
    if credit_seq:
        found.append(Movement(f"credits:{organization_id}", partition, epoch, credit_seq, credit_seq))
    if spend_seq:
        found.append(Movement(f"spend:{organization_id}", partition, epoch, spend_seq, spend_seq))
    return tuple(found)
