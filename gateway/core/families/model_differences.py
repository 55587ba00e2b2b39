"""The differences of models of one API, for calls that are sent as another model than their caller named. Pure.

A row is what some models of an API refuse, with its source. What no row names is taken by all of them, so that a
step of a budget decides for models that nobody here knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import is_of
from gateway.core.calls.call import CallRequest


class Difference(NamedTuple):
    """What models by these patterns refuse: a member of the body by its path, with one of `values` if there are any.

    Or `carries` says of a call whether it has it. `what` names it for people.
    """

    what: str
    path: tuple[str, ...]
    models: tuple[str, ...]
    values: frozenset[object] = frozenset()
    carries: Callable[[CallRequest], bool] | None = None


_RENAMED: Final = ("max_tokens",)  # unless its upstreams have their own name for it, by which it is sent


def has_pictures(call: CallRequest) -> bool:
    return call.media.count > 0 or call.body.names.files > 0


def has_sound(call: CallRequest) -> bool:
    return call.media.heard > 0


def has_tools(call: CallRequest) -> bool:
    return len(call.body.tools) > 0


def refused_part(
    differences: tuple[Difference, ...], call: CallRequest, before: str, models: tuple[str, ...]
) -> str:
    """Return what a call has that one of `models` refuses and the model `before` takes; empty if there is nothing.

    `differences` are those of its family.
    """
    for row in differences:
        if (
            any(is_of(model, pattern) for model in models for pattern in row.models)
            and not any(is_of(before, pattern) for pattern in row.models)
            and _carries(row, call)
        ):
            return row.what
    return ""


def _carries(row: Difference, call: CallRequest) -> bool:
    if row.carries is not None:
        return row.carries(call)
    if row.path == _RENAMED and call.aim.facts and all(facts.maximum for facts in call.aim.facts):
        return False
    value: object = call.body.document
    for name in row.path:
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None and (not row.values or (isinstance(value, str) and value in row.values))
