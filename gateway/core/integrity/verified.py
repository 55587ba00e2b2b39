"""Where an account stands: its last movement and the balance after it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccountHead:
    """`balance` is None where the account is unlimited."""

    seq: int
    balance: int | None
