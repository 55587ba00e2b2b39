"""What names a row, and what it has: of objects and of rows alike."""

from __future__ import annotations

from gateway.admin.configuration.objects import Wanted
from gateway.admin.configuration.words import declared, references
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import Row
from gateway.core.billing.price_book import folded

Identity = tuple[object, ...]
# A row: its kind and id.
Which = tuple[str, object]


def values_of(wanted: Wanted) -> Row:
    """What an object says, or means where it says nothing, with the ids of others."""
    defaults = {name: getattr(wanted.row, name) for name in declared(wanted.resource).by}
    for name in references(wanted.resource):
        if name in defaults:
            defaults[name] = None
    return {**defaults, **wanted.values, **wanted.ids}


def identity_of(resource: Resource, values: Row) -> Identity:
    """All that a row is named by."""
    how = declared(resource)
    found = (values[name] for name in how.by)
    return tuple(folded(str(each or "")) for each in found) if how.folded else tuple(found)


def stored(resource: Resource, row: Row, name: str) -> object:
    """What a row has, or will have."""
    becomes = declared(resource).becomes.get(name)
    return row[name] if becomes is None or row[becomes] is None else row[becomes]
