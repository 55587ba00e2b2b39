"""Windows of budgets in words, as people say them behind an amount. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.core.accounts.intervals import INTERVALS
from gateway.core.accounts.windows import ROLLING

_UNITS: Final = {"m": "minute", "h": "hour", "d": "day"}


def render_window(budget: Mapping[str, Any]) -> str:
    """Return a budget's window behind an amount, as people say it: `a month`, `in all`, `in any 5 hours`."""
    if budget.get("interval"):
        return INTERVALS[str(budget["interval"])].per
    length = describe_length(str(budget["length"]))
    return (
        f"in any {length.removeprefix('1 ')}"
        if budget["window"] == ROLLING
        else f"in {length} from a first call"
    )


def describe_length(length: str) -> str:
    """Return the length of a window in words, such as `5 hours`."""
    number, unit = length[:-1], _UNITS[length[-1]]
    return f"{number} {unit}{'' if number == '1' else 's'}"
