"""Lists of models: which path is one, and what of one a caller is shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from gateway.core.calls.route import Route
from gateway.core.families.family import Listing
from gateway.core.metering.readable import UNREADABLE, decoded
from gateway.errors import UpstreamUnreachable

MODELS_MAX = 5_000
_LIST = "/models"
_ONE = re.compile(r".*/models/\{\+?([a-z_]+)\}")


def is_list(route: Route) -> bool:
    """Whether a route that costs nothing lists models."""
    return route.path.endswith(_LIST)


def one_of(route: Route, params: Mapping[str, str]) -> str:
    """The model that a route that costs nothing tells of; empty for any other route."""
    found = _ONE.fullmatch(route.path)
    return params.get(found[1], "") if found is not None else ""


def narrowed(document: bytes, listing: Listing, shows: Callable[[str], bool]) -> bytes:
    """The document with those models alone that are to be shown; what lists no models stays as it is."""
    try:
        said = decoded(msgspec.json.decode, document)
    except UNREADABLE:
        return document
    models = said.get(listing.field) if isinstance(said, dict) else None
    if not isinstance(models, list):
        return document
    if len(models) > MODELS_MAX:
        raise UpstreamUnreachable(f"The upstream lists more than {MODELS_MAX} models.")
    said[listing.field] = [each for each in models if _is_shown(each, listing, shows)]
    return msgspec.json.encode(said)


def _is_shown(model: object, listing: Listing, shows: Callable[[str], bool]) -> bool:
    name = model.get(listing.name) if isinstance(model, dict) else None
    return isinstance(name, str) and shows(name.removeprefix(listing.prefix))
