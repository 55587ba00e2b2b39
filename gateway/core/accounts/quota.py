"""A tenant's quota as administration looks at it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveQuota:
    """A tenant's token account as the counters hold it now.

    `tokens_remaining` is settled (holds apart) and None where unlimited; `next_reset_ms` is 0
    where the plan never resets. Tokens are counted as its plan weighs them.
    """

    tokens_used: int
    tokens_remaining: int | None
    tokens_held: int
    is_blocked: bool
    manual_block: bool
    last_reset_ms: int
    next_reset_ms: int
    cycle: int
    seq: int
