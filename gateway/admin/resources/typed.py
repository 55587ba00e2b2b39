"""What people type, as the Admin API takes it. What cannot be read stays as typed: its field refuses it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from gateway.admin.resources.fields import Field
from gateway.core.accounts.budgets import MONEY

CHARS_MAX = 30
# What stands between groups of three digits, and nowhere else: 12,50 is no number, for some mean 12.5 by it.
_APART = "[,_ \u00a0\u2009\u202f]"
_WHOLE = rf"([+-]?(?:\d{{1,3}}(?:{_APART}\d{{3}})+|\d+)"
_NUMBER = re.compile(rf"{_WHOLE}(?:\.\d+)?)([kKmMgG]?)", re.ASCII)
_WHOLE_NUMBER = re.compile(rf"{_WHOLE})([kKmMgG]?)", re.ASCII)
# What a letter behind a number stands for.
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def exact(text: str) -> Decimal | None:
    """A number as people write it, such as 12.50, 1,250 or 1.5M; None where it is none."""
    digits, power = _parts(_NUMBER, text)
    return Decimal(digits) * power if digits else None


def whole(text: str) -> int | None:
    """A whole number as people write it: 5000000, 5,000,000, 5 000 000, 5M; None where it is none.

    1.000 is none: some mean a thousand by it.
    """
    digits, power = _parts(_WHOLE_NUMBER, text)
    return int(digits) * power if digits else None


def numbers(text: str) -> list[object]:
    """Numbers with commas or blanks between them: 0.5, 0.8, 1."""
    return [_number(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def amount(unit: str, text: str) -> str | int:
    """An amount of a unit: of money a decimal in a string, else a whole number; 5M and 5,000,000 alike."""
    if unit == MONEY:
        number = exact(text)
        return text if number is None else f"{number:f}"
    count = whole(text)
    return text if count is None else count


def amounts(fields: Sequence[Field], body: Mapping[str, Any]) -> list[str]:
    """The fields of a body that are amounts of its unit, as they were typed."""
    kinds = {each.name: each.kind for each in fields}
    return [name for name, said in body.items() if kinds.get(name) == "amount" and isinstance(said, str)]


def _parts(form: re.Pattern[str], text: str) -> tuple[str, int]:
    """The digits of a number, and what its letter multiplies them by; no digits where it is none."""
    text = text.strip()
    found = form.fullmatch(text) if len(text) <= CHARS_MAX else None
    return (re.sub(_APART, "", found[1]), _POWERS[found[2].lower()]) if found else ("", 1)


def _number(text: str) -> object:
    with suppress(ValueError):
        return float(text)
    return text
