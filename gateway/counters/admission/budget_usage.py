"""What a key holder is told of budgets: how much of each is used, and when it begins again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from gateway.core.accounts.budget_figures import Figures, figures
from gateway.core.accounts.budgets import MONEY, Budget, shown_amount
from gateway.core.moments import moment_of, rfc3339
from gateway.counters.layouts.budgets import live_windows
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable

# Told at once: of those whose calls a caller's may be, the oldest first.
BUDGETS_TOLD_MAX: Final = 100


async def budget_limits(
    wire: Wire, partition: int, found: Sequence[tuple[str, Budget]], now_ms: int
) -> list[dict[str, object]]:
    """The limits of budgets, each with the name of its account, as the caller is told them."""
    found = found[:BUDGETS_TOLD_MAX]
    names = list(dict.fromkeys(name for name, _ in found))
    if not names:
        return []
    raws = await wire.send(
        encode(b"MGET", *(keys.budget_account(partition, name).encode() for name in names))
    )
    if not isinstance(raws, list):
        raise CountersUnavailable
    windows = {name: live_windows(cast("bytes", raw)) for name, raw in zip(names, raws, strict=True) if raw}
    return [_limit(one, figures(one, now_ms, None, windows.get(name))) for name, one in found]


def _limit(budget: Budget, now: Figures) -> dict[str, object]:
    """One budget as it stands, what calls in flight hold taken off what remains."""
    return {
        "scope": "budget",
        "name": budget.name,
        "unit": budget.unit,
        "limit": _told(budget, now.limit),
        "used": _told(budget, now.used),
        "remaining": _told(budget, max(0, now.limit - now.used - now.held)),
        "reset_at": moment(now.resets_ms),
    }


def moment(ms: int) -> str | None:
    """A time in ms since the epoch as it is told; 0 is never."""
    return rfc3339(moment_of(ms), "milliseconds") if ms else None


def _told(budget: Budget, amount: int) -> str | int:
    return shown_amount(MONEY, amount) if budget.unit == MONEY else amount
