#!/usr/bin/env python3
"""Compare the bundled list with the second table, kind by kind and tier by tier: what each says of a name.

`make prices` writes the file, and a test holds it to the list. Both are of the versions that its head names.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from deploy.second_prices import read_table
from gateway.core.billing.price_book import EXACT_NAME, KINDS
from gateway.run.bundled_prices import Bundle, Row

FILE: Final = Path(__file__).with_name("price-differences.md")
# Which of two prices the list has.
REASON: Final = "The list has the first one's price: it is dated, and the second's is not."


def written(bundle: Bundle) -> str:
    """Return the file, a line a difference of the newest row of a name that both know."""
    library, second = read_table()
    newest: dict[tuple[str, str], Row] = {}
    for row in bundle.rows:
        if row["match"] == EXACT_NAME:
            newest[row["provider"], row["model"]] = row
    lines = [
        f"| {provider} | `{name}` | {what} | {ours} | {theirs} |"
        for (provider, name), row in sorted(newest.items())
        for what, ours, theirs in _differences(row, second.get(provider, {}).get(name, {}))
    ]
    both = sum(name in second.get(provider, {}) for provider, name in newest)
    return (
        f"# Differences of two price lists\n\n"
        f"`make prices` writes this file. It compares {bundle.library} with {library} for the {both}\n"
        f"names that both know. What the first does not know, the second adds where both say the same of\n"
        f"`input` and `output`. All else that differs is below, in dollars a million tokens.\n"
        f"{REASON}\nAn operator's own price stands above both.\n\n"
        f"| Provider | Name | What | List | litellm |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _differences(ours: Row, theirs: Row) -> Iterator[tuple[str, str, str]]:
    """Yield prices that both know and that are not equal."""
    yield from _of_kinds("", ours, theirs)
    tables: Row = theirs.get("service_tiers", {})
    for tier, said in ours.get("service_tiers", {}).items():
        table = tables.get(tier, {})
        own = said if isinstance(said, dict) else _times(ours, Decimal(said))
        yield from _of_kinds(f"{tier}, ", own, table)


def _of_kinds(where: str, ours: Row, theirs: Row) -> Iterator[tuple[str, str, str]]:
    for kind in KINDS:
        if kind in ours and kind in theirs and Decimal(ours[kind]) != Decimal(theirs[kind]):
            yield where + kind, ours[kind], theirs[kind]
    steps = {step["above"]: step for step in theirs.get("context_tiers", ())}
    for step in ours.get("context_tiers", ()):
        yield from _of_kinds(f"{where}above {step['above']:,}, ", step, steps.get(step["above"], {}))


def _times(row: Row, factor: Decimal) -> dict[str, Any]:
    found: dict[str, Any] = {
        kind: f"{(Decimal(row[kind]) * factor).normalize():f}" for kind in KINDS if kind in row
    }
    if "context_tiers" in row:
        found["context_tiers"] = [
            {"above": one["above"], **_times(one, factor)} for one in row["context_tiers"]
        ]
    return found
