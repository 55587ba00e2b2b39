"""The fields of forms and commands, and the conversion of typed texts to values of the Admin API.

It loads quickly: the command line uses it without the models of the resources.
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

# The resource that an id refers to, by field; a resource may override it.
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
    "group_id": "groups",
    "webhook_id": "webhooks",
    "corrects_id": "invoices",
    "invoice_id": "invoices",
}


@dataclass(frozen=True, slots=True)
class IntegerParameter:
    """A whole number as query parameter of a report."""

    hint: str
    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential created with a row: answered once in `field`, stored as a digest.

    `kept` stores the secret itself, since a digest cannot sign. If the fields of `instead` are set, no
    credential is created.
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


# Names with a special spelling.
PROPER = {
    "postgresql": "PostgreSQL", "iban": "IBAN", "request_id": "Request id", "url": "URL",
    "api_key_id": "API key", "external_id": "User id", "source_id": "Row of the source", "ours": "Staff",
    "of_team": "By a tenant's lead", "duration_ms": "Duration, ms", "first_token_ms": "First token, ms",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of a form or command; `name` may be `outer.inner`.

    `kind` is text, long, whole, money, amount (of money or a whole number, by the unit of its row), day,
    instant, flag, choice, many, lines, numbers or json. `nullable` sends an emptied field as null; `refers`
    is the resource that an id refers to; `of_texts` marks a nested value whose values are all texts.
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
        """The heading over the field and its neighbours; "" for a field without one."""
        outer, _, _ = self.name.rpartition(".")
        return f"{words(outer)} (empty: {'not limited' if is_limits(outer) else 'none'})" if outer else ""

    @property
    def control(self) -> str:
        """The HTML id of the field, for its label and options."""
        name = self.name.replace(".", "_")
        return f"{name}_" if iskeyword(name) else name


def is_limits(name: str) -> bool:
    return name.endswith("limits")


def is_flat(name: str) -> bool:
    """Return whether the parts of a nested field are fields of their own in forms and commands."""
    return is_limits(name) or name == "carry"


def words(name: str) -> str:
    if name in PROPER:
        return PROPER[name]
    text = name.removesuffix("_id").removesuffix("_at").replace("_", " ").replace("-", " ").strip() or name
    return text[:1].upper() + text[1:]


# Conversion of typed texts to values of the Admin API. A text that cannot be parsed is passed on to be
# refused.

CHARS_MAX = 30
# Separators, only between groups of three digits: 12,50 is refused, as some people mean 12.5.
_APART = "[,_ \u00a0\u2009\u202f]"
_WHOLE = rf"([+-]?(?:\d{{1,3}}(?:{_APART}\d{{3}})+|\d+)"
_NUMBER = re.compile(rf"{_WHOLE}(?:\.\d+)?)([kKmMgG]?)", re.ASCII)
_WHOLE_NUMBER = re.compile(rf"{_WHOLE})([kKmMgG]?)", re.ASCII)
# The factor for a letter after a number.
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def exact(text: str) -> Decimal | None:
    """Parse a decimal number as people type it, such as 12.50, 1,250 or 1.5M; None if it is invalid."""
    digits, power = _parts(_NUMBER, text)
    return Decimal(digits) * power if digits else None


def whole(text: str) -> int | None:
    """Parse a whole number as people type it: 5000000, 5,000,000, 5 000 000, 5M; None if it is invalid.

    1.000 is invalid, as some people mean a thousand.
    """
    digits, power = _parts(_WHOLE_NUMBER, text)
    return int(digits) * power if digits else None


def numbers(text: str) -> list[object]:
    """Parse numbers separated by commas or blanks: 0.5, 0.8, 1."""
    return [_number(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def amount(unit: str, text: str) -> str | int:
    """Return a typed amount for the API: a decimal string for money, else an integer; 5M equals 5,000,000."""
    if unit == MONEY:
        number = exact(text)
        return text if number is None else f"{number:f}"
    count = whole(text)
    return text if count is None else count


def amounts(fields: Sequence[FormField], body: Mapping[str, Any]) -> list[str]:
    """Return the names of a body's fields that are typed amounts in the row's unit."""
    names = [field.name for field in fields if field.kind == "amount"]
    return [name for name in names if isinstance(_part_of(body, name), str)]


def set_amounts(names: Sequence[str], body: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return a body in which the typed amounts with these names are amounts of the unit."""
    changed = dict(body)
    for name in names:
        outer, _, inner = name.partition(".")
        number = amount(unit, _part_of(body, name))
        changed[outer] = {**changed[outer], inner: number} if inner else number
    return changed


def _part_of(body: Mapping[str, Any], name: str) -> Any:
    outer, _, inner = name.partition(".")
    value = body.get(outer)
    if not inner:
        return value
    return value.get(inner) if isinstance(value, Mapping) else None


def _parts(form: re.Pattern[str], text: str) -> tuple[str, int]:
    """Return the digits of a typed number, and the factor of its letter; no digits if it is invalid."""
    text = text.strip()
    match = form.fullmatch(text) if len(text) <= CHARS_MAX else None
    return (re.sub(_APART, "", match[1]), _POWERS[match[2].lower()]) if match else ("", 1)


def _number(text: str) -> object:
    with suppress(ValueError):
        return float(text)
    return text
