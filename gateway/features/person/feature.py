"""All data of a person: `tollkeeper person export` and `tollkeeper person delete`."""

from __future__ import annotations

from gateway.features.record import Feature, lazy

FEATURE = Feature(name="person", commands=lazy("gateway.features.person.command:add_person"))
