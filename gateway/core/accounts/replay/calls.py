"""Calls of the past as budgets count them, and the facts by which budgets select them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gateway.core.accounts.budgets import KEY, PROJECT, SESSION, TENANT, USER, CallAttributes
from gateway.core.accounts.tags import Tags, tag_in


class CallUsage(NamedTuple):
    """What a call used by kind, from which the cost by another model's price follows."""

    counts: tuple[int, ...]
    tools: Mapping[str, int]
    service_tier: str


NO_USAGE = CallUsage((), {}, "")
_TRACE = re.compile("[0-9a-f]{32}")


class StoredCall(NamedTuple):
    """A call that was not refused: when it came (Unix ms), whose it was, and what it used.

    `cost` is in nano-units. `model` is the one that the caller named. `requests` is 0 of a call that failed before it used
    anything. Facts that no budget depends on are empty.
    """

    at_ms: int
    cost: int
    tokens: int
    tenant_id: int = 0
    api_key_id: int = 0
    service_id: int = 0
    user: str = ""
    project_id: int | None = None
    model: str = ""
    response_model: str = ""
    session: str = ""
    requests: int = 1
    tags: Tags = ()
    groups: tuple[int, ...] = ()
    usage: CallUsage = NO_USAGE

    @property
    def session_is_trace(self) -> bool:
        """Whether the session has the form of a trace's id, by which the gateway names it where nothing else does."""
        return _TRACE.fullmatch(self.session) is not None

    def attributes(self, model: str = "") -> CallAttributes:
        """Return the facts that select budgets; with `model`, those of the call sent as that model."""
        models = (model,) if model else tuple(filter(None, (self.model, self.response_model)))
        return CallAttributes(
            self.tenant_id, self.api_key_id, self.service_id, self.user, self.project_id, models,
            self.session, tags=self.tags, groups=self.groups,
        )  # fmt: skip


# Returns the cost of a call by the price of a model that was in force, in nano-units; None without a price.
PriceOfCall = Callable[[StoredCall, str], int | None]
# By kind of `each`: the place of its value in a call, and the value that stands for none.
_VALUES: Mapping[str, tuple[int, object]] = {
    kind: (StoredCall._fields.index(name), absent)
    for kind, name, absent in (
        (USER, "user", ""), (KEY, "api_key_id", 0), (PROJECT, "project_id", None),
        (SESSION, "session", ""), (TENANT, "tenant_id", 0),
    )
}  # fmt: skip
# The owner of the account that calls without a value of `each` share, and of a budget without `each`.
NOBODY = ""


def owner_reader(each: str) -> Callable[[StoredCall], object]:
    """Return a function that returns the value of `each` of a call, `NOBODY` if it has none."""
    if not each:
        return lambda call: NOBODY
    if tag := tag_in(each):
        return lambda call: dict(call.tags).get(tag, NOBODY)
    place, absent = _VALUES[each]

    def read(call: StoredCall) -> object:
        value = call[place]
        return NOBODY if value == absent else value

    return read
