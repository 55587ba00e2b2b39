"""Events of blocked tenants."""

from collections.abc import Mapping
from typing import Final

from gateway.core.alerts.events.event import Data, Event
from gateway.core.alerts.words import plain

# How a tenant was blocked, by the cause; without one its tokens are used up.
BLOCKED_BY: Final[Mapping[str, str]] = {
    "": "as nothing remains of its tokens",
    "manual": "by hand",
    "dunning": "as an invoice is not paid",
    "backlog": "as too much of its use waits to be stored",
}


def _why(data: Data) -> str:
    return BLOCKED_BY[plain(data.get("block_cause")) or ("manual" if data.get("manual_block") else "")]


_FIELDS = "organization_id tenant_id tenant:text manual_block:flag block_cause:text? tokens_remaining:count?"
_MADE = "persistence/keeper/events/tenants.py"

EVENTS = (
    Event(
        name="tenant.blocked",
        title="Blocked: {tenant}",
        sentence="Calls of {tenant} are refused from now on: it was blocked {why}.",
        fields=_FIELDS,
        when="a tenant's `is_blocked` became true, by hand or by use",
        once="a change",
        produced_by=_MADE,
        words={"why": _why},
    ),
    Event(
        name="tenant.unblocked",
        title="No longer blocked: {tenant}",
        sentence="Calls of {tenant} are admitted again.",
        fields=_FIELDS,
        when="a tenant's `is_blocked` became false",
        once="a change",
        produced_by=_MADE,
    ),
)
