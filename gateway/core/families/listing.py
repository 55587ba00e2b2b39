"""Lists of models: which path is one, and what of one a caller is shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

from gateway.core.calls.route import Route
from gateway.core.families.family import Listing
from gateway.core.metering.readable import UNREADABLE, decoded
from gateway.errors import UpstreamUnreachable

MODELS_MAX = 5_000
AT_ONCE_MODELS_MAX = 50  # looked at in one turn: a key may have a hundred patterns
_LIST = "/models"
_ONE = re.compile(r".*/models/\{\+?([a-z_]+)\}")


def is_list(route: Route) -> bool:
    """Whether a route that costs nothing lists models."""
    return route.path.endswith(_LIST)


def one_of(route: Route, params: Mapping[str, str]) -> str:
    """The model that a route that costs nothing tells of; empty for any other route."""
    found = _ONE.fullmatch(route.path)
    return params.get(found[1], "") if found is not None else ""


def narrowed(document: bytes, listing: Listing, shows: Callable[[str], bool]) -> Iterator[bytes]:
    """The document with those models alone that are to be shown, in turns: nothing before the last one.

    Beside the models only plain values stay. `UpstreamUnreachable` where it cannot be read as a list.
    """
    try:
        said = decoded(msgspec.json.decode, document)
    except UNREADABLE:
        said = None
    models = said.get(listing.field) if isinstance(said, dict) else said
    if not isinstance(models, list):
        raise UpstreamUnreachable("The upstream's list of models cannot be read.")
    if len(models) > MODELS_MAX:
        raise UpstreamUnreachable(f"The upstream lists more than {MODELS_MAX} models.")
    shown: list[object] = []
    for start in range(0, len(models), AT_ONCE_MODELS_MAX):
        yield b""
        part = models[start : start + AT_ONCE_MODELS_MAX]
        shown += [each for each in part if _is_shown(each, listing, shows)]
    if isinstance(said, dict):
        plain = {name: each for name, each in said.items() if not isinstance(each, list | dict)}
        yield msgspec.json.encode({**plain, listing.field: shown})
    else:
        yield msgspec.json.encode(shown)


def _is_shown(model: object, listing: Listing, shows: Callable[[str], bool]) -> bool:
    name = model.get(listing.name) if isinstance(model, dict) else None
    return isinstance(name, str) and shows(name.removeprefix(listing.prefix))
