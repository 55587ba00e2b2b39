"""What people are asked for a row, and what they type, as the Admin API takes it.

Light: the command line knows it without the models of the resources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from keyword import iskeyword
from typing import Any

MONEY = "money"  # a unit of budgets

# What an id refers to; a resource says so where its own refers to something else.
REFERS = {
    "organization_id": "organizations",
    "tenant_id": "tenants",
    "plan_id": "token-plans",
    "token_plan_id": "token-plans",
    "next_plan_id": "subscription-plans",
    "service_id": "services",
    "feature_id": "services",
    "business_model_id": "business-models",
    "user_id": "users",
    "added_by_id": "users",
    "api_key_id": "api-keys",
    "webhook_id": "webhooks",
    "corrects_id": "invoices",
    "invoice_id": "invoices",
}


@dataclass(frozen=True, slots=True)
class IntegerParameter:
    """A whole number that a report is asked with."""

    hint: str
    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential made on create, answered once in `field`, kept as its digest.

    `kept` keeps it as it is: what signs cannot be a digest. Where the fields of `instead` are set they stand
    in its place, and none is made.
    """

    field: str
    prefix: str
    kept: bool = False
    instead: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        return f"The {self.field} is not shown again: keep it now."

    def is_made(self, values: Mapping[str, Any]) -> bool:
        return not self.instead or any(values.get(name) is None for name in self.instead)


# Names that are not said as they are spelled.
PROPER = {
    "postgresql": "PostgreSQL", "iban": "IBAN", "request_id": "Request id", "url": "URL",
    "api_key_id": "API key", "external_id": "User id", "source_id": "Row of the source", "ours": "Staff",
    "of_team": "By a team's lead", "duration_ms": "Duration, ms", "first_token_ms": "First token, ms",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FormField:
    """One thing that is asked; `name` may be `outer.inner`.

    `kind` is text, long, whole, money, amount (of money or a whole number, as the unit of its row says), day,
    instant, flag, choice, many, lines, numbers or json.
    `nullable` says that leaving it empty may be sent as null; `refers` names the resource an id is of;
    `of_texts` says that all a document's values are texts.
    """

    name: str
    kind: str
    required: bool = False
    nullable: bool = False
    hint: str = ""
    choices: tuple[str, ...] = ()
    refers: str = ""
    default: str = ""
    of_texts: bool = False

    @property
    def label(self) -> str:
        return words(self.name.rpartition(".")[2])

    @property
    def group(self) -> str:
        """The heading of the fields it stands together with; empty if it stands alone."""
        outer, _, _ = self.name.rpartition(".")
        return f"{words(outer)} (empty: not limited)" if outer else ""

    @property
    def control(self) -> str:
        """An identifier that a label or an option can point to."""
        name = self.name.replace(".", "_")
        return f"{name}_" if iskeyword(name) else name


def words(name: str) -> str:
    if name in PROPER:
        return PROPER[name]
    text = name.removesuffix("_id").removesuffix("_at").replace("_", " ").replace("-", " ").strip() or name
    return text[:1].upper() + text[1:]


# What people type, as the Admin API takes it. Text that cannot be read stays as typed: its field refuses it.

CHARS_MAX = 30
# The separator of groups of three digits, and nowhere else: 12,50 is no number, for some mean 12.5 by it.
_APART = "[,_ \u00a0\u2009\u202f]"
_WHOLE = rf"([+-]?(?:\d{{1,3}}(?:{_APART}\d{{3}})+|\d+)"
_NUMBER = re.compile(rf"{_WHOLE}(?:\.\d+)?)([kKmMgG]?)", re.ASCII)
_WHOLE_NUMBER = re.compile(rf"{_WHOLE})([kKmMgG]?)", re.ASCII)
# What a letter behind a number stands for.
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def exact(text: str) -> Decimal | None:
    """Return a number as people write it, such as 12.50, 1,250 or 1.5M; None where it is none."""
    digits, power = _parts(_NUMBER, text)
    return Decimal(digits) * power if digits else None


def whole(text: str) -> int | None:
    """Return a whole number as people write it: 5000000, 5,000,000, 5 000 000, 5M; None where it is none.

    1.000 is none: some mean a thousand by it.
    """
    digits, power = _parts(_WHOLE_NUMBER, text)
    return int(digits) * power if digits else None


def numbers(text: str) -> list[object]:
    """Return numbers with commas or blanks between them: 0.5, 0.8, 1."""
    return [_number(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def amount(unit: str, text: str) -> str | int:
    """Return an amount as sent: a decimal string for money, else an integer; 5M and 5,000,000 are equal."""
    if unit == MONEY:
        number = exact(text)
        return text if number is None else f"{number:f}"
    count = whole(text)
    return text if count is None else count


def amounts(fields: Sequence[FormField], body: Mapping[str, Any]) -> list[str]:
    """Return the fields of a body that are amounts of its unit, as they were typed."""
    kinds = {each.name: each.kind for each in fields}
    return [name for name, said in body.items() if kinds.get(name) == "amount" and isinstance(said, str)]


def _parts(form: re.Pattern[str], text: str) -> tuple[str, int]:
    """Return the digits of a number, and what its letter multiplies them by; no digits where it is none."""
    text = text.strip()
    found = form.fullmatch(text) if len(text) <= CHARS_MAX else None
    return (re.sub(_APART, "", found[1]), _POWERS[found[2].lower()]) if found else ("", 1)


def _number(text: str) -> object:
    with suppress(ValueError):
        return float(text)
    return text
