"""All events of this installation: those of this folder's modules, and those of the features."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from gateway.core.alerts import events as package
from gateway.core.alerts.events.event import Event
from gateway.feature import features


@cache
def all_events() -> Mapping[str, Event]:
    """Return each event by its name; those of one subject stand together."""
    modules = [
        import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    rows = [
        *(event for module in modules for event in getattr(module, "EVENTS", ())),
        *(event for feature in features() for event in feature.events()),
    ]
    events = {event.name: event for event in sorted(rows, key=lambda event: event.name.partition(".")[0])}
    assert len(events) == len(rows), "a name of an event stands twice"
    return events


def selectable_events() -> tuple[str, ...]:
    """Return the names of the events that a webhook may select."""
    return tuple(event.name for event in all_events().values() if event.is_selectable)
