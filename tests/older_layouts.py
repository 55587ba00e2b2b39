"""States as versions before had stored them, and by the names that they had there."""

from __future__ import annotations

import struct
from dataclasses import asdict, replace
from typing import TypeVar

from gateway.counters.layouts import states
from gateway.counters.layouts.packing import LAYOUTS

S = TypeVar("S", states.TenantState, states.OrganizationState)


def changed_state(state: S, fields: dict[str, int]) -> S:
    """It with these fields changed: what remains by the limit, the balance by what is used of it."""
    remaining, balance = fields.pop("remaining", None), fields.pop("balance", None)
    changed = replace(state, **fields)
    if remaining is not None and isinstance(changed, states.TenantState):
        changed.limit += remaining - changed.remaining
    if balance is not None and isinstance(changed, states.OrganizationState):
        changed.credits_used = -balance
    return changed


def stored_before(number: int, state: states.State) -> bytes:
    """A state as an older layout had stored it: its fields in their order, without those that came since."""
    name = type(state).__name__.removesuffix("State").upper()
    layout = next(one for one in LAYOUTS if one.name == name)
    since, names = layout.before
    order = names.split() if number < since else [one.name for one in layout.fields]
    values = asdict(state)
    if number < since and isinstance(state, states.TenantState):
        values["limit"] = state.remaining
    if number < since and isinstance(state, states.OrganizationState):
        values["credits_used"] = state.balance
    fields = [layout.fields[layout.index(one)] for one in order[1:]]
    there = [one for one in fields if one.since <= number]
    parts = (struct.pack("<" + one.kind.python, values[one.name]) for one in there)
    return b"".join((bytes([number]), *parts))
