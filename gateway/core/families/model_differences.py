"""The differences of models of one API, for calls that are sent as another model than their caller named. Pure.

A row is what some models of an API refuse; each family states the sources of its rows beside them. What no row names
is taken by all of them, so that a step of a budget decides for models that nobody here knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import is_of
from gateway.core.billing.price_book import MODEL_CHARS_MAX
from gateway.core.calls.call import CallRequest


class Difference(NamedTuple):
    """What models by these patterns refuse: a member of the body by its path, with one of `values` if there are any.

    All of them take the value `plain`. Or `carries` says of a call whether it has it. `what` names it for people.
    """

    what: str
    path: tuple[str, ...]
    models: tuple[str, ...]
    values: frozenset[str] = frozenset()
    plain: object = None
    carries: Callable[[CallRequest], bool] | None = None


Differences = tuple[Difference, ...]
MODELS_REMEMBERED_MAX: Final = 1_024  # pairs of a model and its substitute, whose rows are remembered
_HOSTED: Final = re.compile(r"^(?:.*[/:.])?[a-z-]+\.(?=[a-z])")
_RENAMED: Final = ("max_tokens",)  # unless its upstreams have their own name for it, by which it is sent


def has_pictures(call: CallRequest) -> bool:
    return call.media.count > 0 or call.body.names.files > 0


def has_sound(call: CallRequest) -> bool:
    return call.media.heard > 0


def has_tools(call: CallRequest) -> bool:
    return len(call.body.tools) > 0


def levels_refused(
    what: str, paths: tuple[str, ...], levels: str, taken: Mapping[str, str]
) -> tuple[Difference, ...]:
    """Return the rows of a member that has one of `levels`, by the levels `taken` by models; all separated by blanks.

    `paths` are its places in bodies of the API, with points.
    """
    return tuple([
        Difference(what, tuple(path.split(".")), (*models.split(),), frozenset(levels.split()).difference(some.split()))
        for some, models in taken.items()
        for path in paths
    ])  # fmt: skip


def refused_part(differences: Differences, call: CallRequest, before: str, models: tuple[str, ...]) -> str:
    """Return what a call has that one of `models` refuses and the model `before` takes; empty if there is nothing.

    `differences` are those of its family.
    """
    key = id(differences), before, models
    known = _known.get(key)
    if known is None:
        known = differences, _rows_between(differences, before, models)
        if len(before) <= MODEL_CHARS_MAX:
            if len(_known) >= MODELS_REMEMBERED_MAX:
                _known.clear()
            _known[key] = known
    for row in known[1]:
        if (value := _carried(row, call)) is not None:
            return f"{row.what} {value}" if row.values else row.what
    return ""


def _rows_between(differences: Differences, before: str, models: tuple[str, ...]) -> Differences:
    """Return the rows that name one of `models`, and not the model `before`."""
    names, named_before = [_plain_name(model) for model in models], _plain_name(before)
    return tuple([
        row
        for row in differences
        if any(is_of(name, pattern) for name in names for pattern in row.models)
        and not any(is_of(named_before, pattern) for pattern in row.models)
    ])  # fmt: skip


# By the id of the rows of a family, to which each refers, and the models: the rows that tell these apart.
_known: Final[dict[tuple[int, str, tuple[str, ...]], tuple[Differences, Differences]]] = {}


def _plain_name(model: str) -> str:
    """Return the vendor's name of a model that a host names by region and vendor, such as `us.vendor.name-1`."""
    return _HOSTED.sub("", model, 1)


def _carried(row: Difference, call: CallRequest) -> object:
    """Return the value of the part of a call that a row names; None if it has none."""
    if row.carries is not None:
        return row.carries(call) or None
    if row.path == _RENAMED and call.aim.facts and all(facts.maximum for facts in call.aim.facts):
        return None
    value: object = call.body.document
    for name in row.path:
        value = value.get(name) if isinstance(value, dict) else None
    if row.values:
        return value if isinstance(value, str) and value in row.values else None
    return None if value == row.plain else value
