"""Words of texts about events: values as one line of visible text, and the words that several events name.

Names in them come from others: a user's name is any text of a call. Names are shortened and made visible here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from gateway.core.alerts.events.event import Data
from gateway.core.text import visible
from gateway.core.times import TimeZone

VALUE_CHARS_MAX: Final = 200


def plain(value: object) -> str:
    """Return a value as one line of visible text; empty for None, lists and mappings."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return cut(visible(" ".join(text[: VALUE_CHARS_MAX + 1].split())))


def spoken(moment: object, time_zone: object = "UTC") -> str:
    """Return a moment (RFC 3339) as text in a time zone; unchanged if moment or zone is invalid."""
    zone = str(time_zone or "UTC")
    try:
        at = datetime.fromisoformat(str(moment)).astimezone(TimeZone(zone))
    except (ValueError, KeyError):
        return plain(moment)
    return f"{at.day} {at:%B %Y, %H:%M} ({zone})"


def cut(text: str, most: int = VALUE_CHARS_MAX) -> str:
    """Return a text of at most `most` characters; a longer one ends with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def who(data: Data, kind: str) -> str:
    """Return the name of a tenant, for example (`kind`), from the event's data; without one, kind and id."""
    return plain(data.get(kind)) or f"{kind} {plain(data.get(f'{kind}_id'))}".strip()


def resets_on(moment: object, time_zone: object = None) -> str:
    """Return the sentence about the next reset; empty if there is none."""
    return f" It resets on {spoken(moment, time_zone)}." if moment else ""


def _budget_of(data: Data) -> str:
    whom, scope = plain(data.get("account")), plain(data.get("each"))
    owner = f" of {scope} {whom}" if whom else ""
    return f"“{who(data, 'budget')}”{owner} ({who(data, 'organization')})"


def _unit(data: Data) -> str:
    return plain(data.get("currency")) or plain(data.get("unit"))


# Values of words in braces; any other word is one of the event's own, or a field of it.
WORDS: Final[Mapping[str, Callable[[Data], str]]] = {
    "tenant": lambda data: who(data, "tenant"),
    "organization": lambda data: who(data, "organization"),
    "budget": _budget_of,
    "unit": _unit,
    "so_much": lambda data: f"{plain(data.get('used'))} of {plain(data.get('amount'))} {_unit(data)}",
    "again": lambda data: resets_on(data.get("resets_at"), data.get("time_zone")),
}
