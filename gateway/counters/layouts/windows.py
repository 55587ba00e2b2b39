"""An account of budgets, packed: a header, its windows as they are defined, then their meters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from gateway.core.accounts.budgets import DEFINED_WINDOW
from gateway.core.layout import LAYOUT, Layout

# Of one for each how many calls in flight take from it: they may use what they do not hold, so it stays.
# A window that is open is as it is defined, and has what its meter has.
BUDGET = Layout("BUDGET", "number, u8 flags, f64 expires calls=0@132")
METER = Layout("METER", "f64 used held")
WINDOW = Layout("WINDOW", "f64 budget_id limit start next after, u8 flags, f64 used held")
LAYOUTS = BUDGET, METER, WINDOW


@dataclass(slots=True)
class WindowState:
    """One budget of an account: as it is defined, and what is used and held of it; see
    `gateway/core/accounts/budgets.py`.
    """

    budget_id: int
    limit: int
    start: int
    next: int
    after: int
    flags: int
    used: int = 0
    held: int = 0


def pack_windows(windows: Sequence[WindowState], expires: int = 0, calls: int = 0) -> bytes:
    """An account of budgets as the scripts read it; one for each is forgotten when it `expires` (ms), or as
    soon as it is unused, by `calls` in flight too.
    """
    defined = (DEFINED_WINDOW.pack(*astuple(one)[:-2]) for one in windows)
    meters = (METER.pack(one.used, one.held) for one in windows)
    return b"".join((BUDGET.pack(LAYOUT, 0, expires, calls), *defined, *meters))


def unpack_windows(packed: bytes) -> list[WindowState]:
    """The windows of an account of budgets as they are stored."""
    whole = BUDGET.today(packed)
    count = (len(whole) - BUDGET.size) // (DEFINED_WINDOW.size + METER.size)
    meters_at = BUDGET.size + count * DEFINED_WINDOW.size
    defined = DEFINED_WINDOW.struct.iter_unpack(whole[BUDGET.size : meters_at])
    meters = METER.struct.iter_unpack(whole[meters_at:])
    return [WindowState(*map(int, (*one, *meter))) for one, meter in zip(defined, meters, strict=True)]
