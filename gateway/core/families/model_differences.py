"""The differences of models of one API, for calls that are sent as another model than their caller named. Pure.

A row is what some models of an API refuse; each family states the sources of its rows beside them. What no row names
is taken by all of them, so that a step of a budget decides for models that nobody here knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeGuard

import msgspec

from gateway.core.accounts.budgets import is_of
from gateway.core.accounts.steps import RefusedPart
from gateway.core.billing.price_book import MODEL_CHARS_MAX
from gateway.core.calls.call import CallRequest


class Difference(NamedTuple):
    """What models by these patterns refuse: a member of the body by its path, with one of `values` if there are any.

    The path goes through each element of a list, and `values` may be among those of one. All models take the value
    `plain`. With a `header` it is one of `values` among the words of that field. Or `carries` says of a call whether
    it has it. `what` names it for people.
    """

    what: str
    path: tuple[str, ...]
    models: tuple[str, ...]
    values: frozenset[str] = frozenset()
    plain: object = None
    carries: Callable[[CallRequest], bool] | None = None
    header: bytes = b""


Differences = tuple[Difference, ...]
MODELS_REMEMBERED_MAX: Final = 1_024  # pairs of a model and its substitute, whose rows are remembered
_HOSTED: Final = re.compile(r"^(?:.*[/:.])?[a-z-]+\.(?=[a-z])")
# The parameter of an error, and its code as vendors name it.
_MEMBERS: Final = ("param", "code", "type", "status")
_WORD: Final = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
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


def number_outside(least: int, most: int, *paths: str) -> Callable[[CallRequest], bool]:
    """Return whether the number at one of `paths`, with points, is above 0 and outside of these bounds."""

    def is_outside(call: CallRequest) -> bool:
        numbers = [_value_at(call.body.document, path.split(".")) for path in paths]
        return any(
            isinstance(number, int) and number > 0 and not least <= number <= most for number in numbers
        )

    return is_outside


def read_refused(answer: bytes) -> RefusedPart:
    """Return the part of a call that the body of an API's error names; empty where it names none."""
    try:
        document = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return RefusedPart()
    error = document.get("error") if isinstance(document, dict) else None
    error = error if isinstance(error, dict) else {}
    param, *codes = [value if _is_word(value) else "" for value in map(error.get, _MEMBERS)]
    return RefusedPart(next(filter(None, codes), ""), param)


def _is_word(value: object) -> TypeGuard[str]:
    """Return whether a value is a code or a parameter that logs and messages may show."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def refused_part(
    differences: Differences, call: CallRequest, before: str, models: tuple[str, ...], passed: bytes = b""
) -> str:
    """Return what a call has that one of `models` refuses and the model `before` takes; empty if there is nothing.

    `differences` are those of its family, `passed` the lines of its head that its upstream gets.
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
        if (value := _carried(row, call, passed)) is not None:
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


def _carried(row: Difference, call: CallRequest, passed: bytes) -> object:
    """Return the value of the part of a call that a row names; None if it has none."""
    if row.header:
        lines = [line.partition(b":") for line in passed.lower().splitlines()]
        words = b",".join([value for name, _, value in lines if name == row.header]).decode("latin-1")
        return next((word for word in map(str.strip, words.split(",")) if word in row.values), None)
    if row.carries is not None:
        return row.carries(call) or None
    if row.path == _RENAMED and call.aim.facts and all(facts.maximum for facts in call.aim.facts):
        return None
    value = _value_at(call.body.document, row.path)
    if row.values:
        values = value if isinstance(value, list) else (value,)
        return next((item for item in values if isinstance(item, str) and item in row.values), None)
    return None if value == row.plain else value


def _value_at(document: object, path: Sequence[str]) -> object:
    """Return the value at a path of a document; of elements of a list those that have it; None if there is none."""
    value = document
    for name in path:
        if isinstance(value, list):
            value = [item[name] for item in value if isinstance(item, dict) and name in item] or None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value
