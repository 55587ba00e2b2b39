"""Whether a state is already as a definition would have it: then nothing has to be written. Pure."""

from __future__ import annotations

import struct

from gateway.core.accounts.definitions import (
    AccountDefinition,
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.layout import LAYOUT, Layout
from gateway.counters.layouts import states, table

_KINDS: dict[type[AccountDefinition], tuple[type[states.Account], Layout]] = {
    KeyDefinition: (states.KeyState, table.DEFINE_KEY),
    UserDefinition: (states.UserState, table.DEFINE_USER),
    TenantDefinition: (states.TenantState, table.DEFINE_TENANT),
    OrganizationDefinition: (states.OrganizationState, table.DEFINE_ORGANIZATION),
}
_PLAN = frozenset(one.name for one in table.PLAN.fields)


def is_as_defined(kind: type[AccountDefinition], packed: bytes, stored: bytes | None) -> bool:
    """Whether `load` would change nothing of what is stored but its version, by a packed definition.

    What is of an older layout is written in today's. What cannot be read, the script says what it is.
    """
    if not stored or stored[0] != LAYOUT:
        return False
    of, layout = _KINDS[kind]
    try:
        state = states.unpack(of, stored)  # type: ignore[type-var]  # one of those that are stored
    except struct.error:
        return False
    wanted = layout.read(packed)
    if isinstance(state, states.UserState):
        wanted["flags"] = int(any(wanted.values()))
    if isinstance(state, states.TenantState):
        if not (state.flags & states.HAS_PLAN and state.plan_id == wanted["plan_id"]):
            wanted = {name: value for name, value in wanted.items() if name not in _PLAN}
        elif state.reset_interval and not state.next_reset:  # when it ends is found out as well
            return False
    return all(getattr(state, name) == value for name, value in wanted.items())
