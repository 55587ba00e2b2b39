"""The row of an event: its texts, its fields, and how it is made. OpenAPI, docs and pruning are made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

Data = Mapping[str, object]

KEPT_DAYS: Final = 30
# For states that last longer than a month: they would be reported again once their message is deleted.
KEPT_LONG_DAYS: Final = 400

# JSON schemas by the kind of a field.
_KINDS: Final[Mapping[str, Mapping[str, str]]] = {
    "id": {"type": "integer"},
    "count": {"type": "integer"},
    "number": {"type": "number"},
    "text": {"type": "string"},
    "money": {"type": "string"},
    "amount": {},
    "flag": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event.

    `fields` are names with kinds, such as `organization_id used:count until:time?`; `?` means that null is
    possible, and a name that ends in `_id` is an id. `title` and `sentence` name fields in braces, or words:
    `words` are the event's own, those of all events are in `gateway/core/alerts/words.py`.
    """

    name: str
    title: str
    sentence: str
    fields: str
    # For people: the condition, and the occasion that it is reported once for.
    when: str
    once: str
    # The module that makes it.
    produced_by: str
    # Days for which a message is stored, so that its occasion is not reported again.
    kept_days: int = KEPT_DAYS
    # Whether a webhook may select it.
    is_selectable: bool = True
    words: Mapping[str, Callable[[Data], str]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.schema())

    def schema(self) -> dict[str, dict[str, object]]:
        """Return the JSON schema of each field, by its name."""
        return {
            name: _schema(kind or "id")
            for name, _, kind in (word.partition(":") for word in self.fields.split())
        }


def _schema(kind: str) -> dict[str, object]:
    schema: dict[str, object] = dict(_KINDS[kind.removesuffix("?")])
    return schema | {"type": [schema["type"], "null"]} if kind.endswith("?") else schema
