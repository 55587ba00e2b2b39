"""What is used of a budget, in words and as a bar: text and numbers in, text and shares out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateway.admin.console import shown
from gateway.admin.resources.fields import words
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import ENFORCE, MONEY
from gateway.core.accounts.selectors import SELECTING

NEARLY = 80.0


@dataclass(frozen=True, slots=True)
class Use:
    """An account of a budget on a page: amounts as people read them, shares of the limit in per cent."""

    used: str
    held: str
    left: str
    limit: str
    used_share: float
    held_share: float
    tone: str


def use_of(budget: Row, account: Row | None = None) -> Use | None:
    """What is used of a budget, or of one account of it; None of one with `each`, which has many."""
    row = budget if account is None else account
    if row["used"] is None:
        return None
    limit, used, held = (Decimal(str(each)) for each in (limit_of(budget), row["used"], row["held"]))
    used_share = shown.percent(float(used), float(limit))
    tone = "bad" if used >= limit else "warn" if used_share >= NEARLY else "good"
    return Use(
        bare(budget, row["used"]),
        bare(budget, row["held"]),
        bare(budget, row["remaining"]),
        limit_said(budget),
        round(used_share, 2),
        round(min(shown.percent(float(held), float(limit)), 100.0 - used_share), 2),
        tone,
    )


def limit_of(budget: Row) -> object:
    """What may be used now: the amount, or what it is raised to."""
    return budget["amount"] if budget.get("raised_to") is None else budget["raised_to"]


def limit_said(budget: Row) -> str:
    """The same as people read it."""
    return amount(budget, limit_of(budget))


def amount(budget: Row, value: object) -> str:
    """An amount of a budget with its unit: money in its currency."""
    if budget["unit"] == MONEY:
        return shown.about(value, str(budget["currency"]))
    return f"{shown.number(value)} {budget['unit']}"


def bare(budget: Row, value: object) -> str:
    """An amount that stands beside one with its unit."""
    return amount(budget, value) if budget["unit"] == MONEY else shown.number(value)


def state_of(budget: Row) -> str:
    """How a budget stands, in a word or two."""
    use = use_of(budget)
    if use is None:
        return f"each {budget['each']}"
    if use.tone == "bad":
        return "used up" if budget["mode"] == ENFORCE else "passed"
    return "nearly used up" if use.tone == "warn" else "within"


def selector(budget: Row, names: Mapping[tuple[str, int], str], targets: Mapping[str, str]) -> str:
    """What a budget is of, in words: names where ids have them; `targets` are the resources of ids."""
    parts = []
    for name in SELECTING:
        value: Any = budget[name]
        if value is not None:
            called = (
                names.get((targets.get(name, ""), value), str(value)) if isinstance(value, int) else value
            )
            parts.append(f"{words(name).lower()} {called}".replace("api key", "API key"))
    if budget["each"]:
        parts.append(f"each {budget['each']}")
    return ", ".join(parts) or "everything"
