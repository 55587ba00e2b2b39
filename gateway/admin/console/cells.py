"""What stands in a cell: each field of a row as a kind, a text and perhaps an address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.admin.console import budget_use, shown
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.resources.fields import words
from gateway.core.accounts.administration import Row
from gateway.core.accounts.plan_terms import TERMS
from gateway.core.accounts.selectors import SELECTING
from gateway.core.billing.vector import KINDS

Names = Mapping[tuple[str, int], str]

TIMES = frozenset({"timestamp", "last_reset", "effective_from", "raised_until"})
MARKS = frozenset(
    {
        "status", "payment_status", "state", "category", "kind", "role", "transaction_type", "direction",
        "meter",
        "billing_interval", "service_type", "action", "resolution", "mode",
        *(one.name for one in TERMS if one.choices),
    }
)  # fmt: skip
MONEY = frozenset(
    {"spend_cap", "monthly_cost", "annual_cost", "overage_unit_price", "unit_cost", "total_amount",
     "subtotal", "tax", "cost", "unit_price", "request", "amount", "raised_to", "used", "held", "remaining",
     *KINDS}
)  # fmt: skip
CODES = frozenset({"key", "prefix", "request_id", "entry_id", "raw", "account", "resource_id", "actor"})
UNLIMITED = frozenset({"total_amount", "tokens_remaining", "spend_cap", "total_remaining"})
LABELS = {
    "id": "No.",
    "quota": "Tokens left",
    "use": "Used",
    "of": "Of",
    "after": "What",
    "resource_id": "Row",
    "timestamp": "When",
    "credits_added": "Added",
    "credits_remaining": "Left",
    "negotiated_credits": "Credits",
}
ITEMS_MAX = 6
MINUTE_CHARS = len("2026-01-31 10:00")


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a row.

    `kind` is text, number, time, mark, code, document, quota, use or none; `tone` is how a mark is set.
    """

    kind: str
    text: str
    href: str = ""
    tone: str = ""


def label_of(column: str) -> str:
    """A column's heading."""
    return LABELS.get(column) or words(column)


def cell(screen: Screen, row: Row, column: str, names: Names) -> Cell:
    """What a row has in a column."""
    if column == "state":
        word = state_of(screen.name, row)
        return Cell("mark", word, tone=shown.tone(word))
    if column in {"quota", "use"}:
        return Cell(column, "")
    if column == "of":
        targets = {name: screen.resource.target(name) for name in SELECTING}
        return Cell("text", budget_use.selector(row, names, targets))
    if column == "change":
        sign, tone = ("+", "good") if row["direction"] == "IN" else ("−", "plain")
        return Cell("number", f"{sign}{shown.number(row['amount'])}", tone=tone)
    value: Any = row.get(column)
    if column == "resource_id":
        return Cell("code", str(value or shown.NONE), _page_of(row.get("resource"), value))
    if column == "request_id" and value and screen.name != "calls":
        return Cell("code", str(value), f"/calls?request_id={value}")
    if column == "model" and column not in row:
        metadata: Any = row.get("metadata") or {}
        value = metadata.get("model") or metadata.get("reason")
    target = screen.resource.target(column)
    if target and isinstance(value, int):
        known = SCREENS.get(target)
        name = names.get((target, value)) or (f"{known.one} {value}" if known else str(value))
        return Cell("text", name, f"/{target}/{value}" if known and known.has_page else "")
    if value is None:
        return Cell("none", "unlimited" if column in UNLIMITED and screen.name != "invoices" else shown.NONE)
    return _of_value(screen, column, value, row)


def references(screen: Screen, rows: Iterable[Row]) -> dict[str, set[int]]:
    """Every id that rows refer to, by resource."""
    found: dict[str, set[int]] = {}
    for row in rows:
        for column, value in row.items():
            target = screen.resource.target(column)
            if target and isinstance(value, int):
                found.setdefault(target, set()).add(value)
    return found


def state_of(name: str, row: Row) -> str:
    """The state a row is in, in a word."""
    if row.get("state"):
        return str(row["state"])
    if name == "budgets":
        return budget_use.state_of(row)
    if name == "tenants":
        quota: Any = row.get("quota") or {}
        if quota.get("manual_block"):
            return "blocked"
        return "used up" if quota.get("is_blocked") else "active"
    if row.get("revoked_at"):
        return "revoked"
    if row.get("resolved_at"):
        return str(row.get("resolution") or "resolved")
    if row.get("released_at"):
        return "released"
    ends = row.get("expires_at")
    if ends and datetime.fromisoformat(str(ends)) <= datetime.now(UTC):
        return "expired"
    return "open" if name in {"dead-letters", "quarantine"} else "active"


def _page_of(resource: object, row_id: object) -> str:
    """The page of a row that the audit log names; empty if it has none."""
    screen = SCREENS.get(str(resource))
    return f"/{resource}/{row_id}" if screen and screen.has_page and str(row_id).isdecimal() else ""


def _of_value(screen: Screen, column: str, value: Any, row: Row) -> Cell:
    if isinstance(value, bool):
        return Cell("mark", "yes" if value else "no", tone="good" if value else "plain")
    if column in MONEY and isinstance(value, str):
        return Cell("number", shown.money(value, str(row.get("currency") or "")))
    if column in MARKS:
        return Cell("mark", str(value).replace("_", " "), tone=shown.tone(value))
    if column == "id":
        return Cell("number", str(value))
    if isinstance(value, int):
        return Cell("number", shown.number(value))
    if column in TIMES or column.endswith("_at"):
        text = shown.moment(value) if "T" in str(value) else shown.day(value)
        in_order = not screen.has_page and column in {"timestamp", "created_at"}
        return Cell("time", text if in_order else text[:MINUTE_CHARS])
    if column.endswith("limits"):
        return Cell("text", shown.limits(value))
    if column in {"weights", "thresholds"}:
        text = ", ".join(_parts_of(value))
        return Cell("text" if text else "none", text or shown.NONE)
    if column == "last_delivery":
        return Cell("mark", f"{value['event']}: {value['state']}", tone=shown.tone(value["state"]))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        more = f" and {len(value) - ITEMS_MAX} more" if len(value) > ITEMS_MAX else ""
        return Cell("text", (", ".join(value[:ITEMS_MAX]) + more) or "everything")
    if isinstance(value, dict | list):
        return Cell("document", shown.document(value))
    return Cell("code" if column in CODES else "text", str(value))


def _parts_of(value: Any) -> Iterator[str]:
    """Weights by kind, or thresholds, one by one."""
    if isinstance(value, Mapping):
        return (f"{words(kind).lower()} {weight}" for kind, weight in value.items())
    return (f"{100 * part:g} %" for part in value)
