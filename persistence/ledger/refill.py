"""Whether a movement fits the place it left: pure.

A dead letter's place is either still the next one of its account, or a listed gap with rows
around it. Balances and epochs on both sides must agree with it: nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Movement:
    """One movement of one account: `balance` is None where it is unlimited.

    `month` (year × 12 + month) counts for spend alone, which begins at zero with each; elsewhere 0.
    """

    account: str
    seq: int
    epoch: int
    delta: int
    balance: int | None
    month: int = 0


def misfit(
    movement: Movement, head_seq: int, rows: dict[int, Movement], drifts: dict[int, int], *, listed: bool
) -> str | None:
    """Say why a movement cannot take its place; None where it fits.

    `rows` are those stored at the places around it, `drifts` the changes stored just after a
    seq, `listed` whether this very entry is why its place is empty.
    """
    account, seq = movement.account, movement.seq
    if seq in rows:
        return f"movement {seq} of {account} is stored already, with other content"
    if seq > head_seq + 1:
        return f"{account} is at movement {head_seq}: those up to {seq - 1} are missing"
    if seq <= head_seq and not listed:
        return f"movement {seq} of {account} is missing for another reason"
    before, after = rows.get(seq - 1), rows.get(seq + 1)
    if before is None and seq == 1:
        before = Movement(account, 0, 0, 0, 0, movement.month)
    return _break(before, movement, drifts) or _break(movement, after, drifts)


def _break(one: Movement | None, following: Movement | None, drifts: dict[int, int]) -> str | None:
    """Say where two neighbours do not chain; a place that is empty says nothing."""
    if one is None or following is None:
        return None
    if one.epoch > following.epoch:
        return f"movement {following.seq} of {one.account} would go back from epoch {one.epoch}"
    if one.balance is None and following.balance is None:
        return None
    base = 0 if one.month < following.month else (one.balance or 0)
    expected = base + drifts.get(one.seq, 0) + following.delta
    if expected == (following.balance or 0):
        return None
    return (
        f"movement {one.seq} of {one.account} leaves {base} and movement {following.seq} moves by"
        f" {following.delta}: that is {expected}, not {following.balance or 0}"
    )
