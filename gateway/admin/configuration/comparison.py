"""Compares wanted and stored values of configuration files, regardless of their notation."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from gateway.admin.resources.resource import PartsDeclaration
from gateway.admin.resources.values import DECIMAL


def are_same_parts(how: PartsDeclaration, wanted: Sequence[Any], stored: Sequence[Any]) -> bool:
    """Return whether two lists have the same parts, in any order."""
    if not how.key:
        return len(wanted) == len(stored) and {*wanted} == {*stored}
    first, second = ({part[how.key]: _document(part) for part in parts} for parts in (wanted, stored))
    return len(wanted) == len(stored) and first == second


# Compares wanted and stored values, regardless of their notation.
def same(wanted: object, stored: object) -> bool:
    """Return whether two values are equal: numbers by value, and an empty document equals null."""
    if isinstance(wanted, dict) or isinstance(stored, dict):
        return _document(wanted or {}) == _document(stored or {})
    if isinstance(wanted, str) and isinstance(stored, Decimal):
        return _document(wanted) == stored
    if isinstance(wanted, list) and isinstance(stored, list):
        return _document(wanted) == _document(stored)
    return wanted == stored


def _document(value: object) -> object:
    """Return a JSON value in a form for comparisons: decimal texts become numbers, nulls are removed."""
    if isinstance(value, dict):
        return {name: _document(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_document(part) for part in value]
    if isinstance(value, str) and DECIMAL.fullmatch(value):
        return Decimal(value)
    return value
