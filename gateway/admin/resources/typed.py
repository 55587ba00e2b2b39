"""What people type, as the Admin API takes it. What cannot be read stays as typed: its field refuses it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from gateway.admin.resources.fields import Field
from gateway.core.accounts.budgets import MONEY

CHARS_MAX = 40
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)", re.ASCII)
_APART = re.compile("[\\s_,\u00a0\u2009\u202f]")
# What a letter behind a number stands for.
POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def numbers(text: str) -> list[object]:
    """Numbers with commas or blanks between them: 0.5, 0.8, 1."""
    return [_number(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def amount(unit: str, text: str) -> str | int:
    """An amount of a unit: of money a decimal in a string, else a whole number; 5M and 5,000,000 alike."""
    found = _AMOUNT.fullmatch(_APART.sub("", text)) if len(text) <= CHARS_MAX else None
    if found is None:
        return text
    exact = Decimal(found[1]) * POWERS[found[2].lower()]
    if unit == MONEY:
        return f"{exact:f}"
    return int(exact) if exact == int(exact) else text


def amounts(fields: Sequence[Field], body: Mapping[str, Any]) -> list[str]:
    """The fields of a body that are amounts of its unit, as they were typed."""
    kinds = {each.name: each.kind for each in fields}
    return [name for name, said in body.items() if kinds.get(name) == "amount" and isinstance(said, str)]


def _number(text: str) -> object:
    with suppress(ValueError):
        return float(text)
    return text
