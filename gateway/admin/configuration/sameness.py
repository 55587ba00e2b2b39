"""Whether a value that is wanted is the one that is stored, however each is written."""

from __future__ import annotations

from decimal import Decimal

from gateway.admin.resources.values import DECIMAL


def same(wanted: object, stored: object) -> bool:
    """Whether both say the same: numbers by their value, and nothing said is null or nothing in it."""
    if isinstance(wanted, dict) or isinstance(stored, dict):
        return _document(wanted or {}) == _document(stored or {})
    if isinstance(wanted, str) and isinstance(stored, Decimal):
        return _document(wanted) == stored
    if isinstance(wanted, list) and isinstance(stored, list):
        return _document(wanted) == _document(stored)
    return wanted == stored


def _document(value: object) -> object:
    """A document as it is compared; decimals in it are texts."""
    if isinstance(value, dict):
        return {name: _document(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_document(each) for each in value]
    if isinstance(value, str) and DECIMAL.fullmatch(value):
        return Decimal(value)
    return value
