"""Lists of stored objects: organizations share an upstream's account, and each sees its own objects.

Pages of the account are read until a page for the caller is full, up to a maximum; older objects are listed
by id only. No id of another organization is shown, not even as the cursor of a page.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from gateway.core.calls.call import write_document
from gateway.core.families.family import ObjectLists
from gateway.core.families.objects import read_created_ids
from gateway.core.families.registry import FAMILIES
from gateway.core.metering.reading import loose_document
from gateway.errors import InvalidRequest, ObjectNotFound, UnknownRoute
from gateway.http.admission import admit, cached_caller, identify
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange

# Maximum of an account's pages read for one answer, and objects on each page.
PAGES_MAX: Final = 10
PAGE_OBJECTS: Final = 100
# Objects of an answer: by default, and at most.
LIMIT, LIMIT_MAX = 20, 100
# Other query parameters of a list, which are forwarded.
_PASSED: Final = ("purpose", "order", "order_by", "source")
# Page tokens of lists without ids as cursors: the field of the answer, and the query parameter.
_GOES_ON: Final = {"next_page": "page", "nextPageToken": "pageToken"}
_JSON: Final = [(b"content-type", b"application/json")]


async def list_objects(exchange: Exchange) -> None:
    """Answer with the objects of a collection that belong to the caller's organization."""
    caller = cached_caller(exchange) or await identify(exchange)
    admitted = await admit(exchange, caller)
    ports, objects = exchange.worker.ports, FAMILIES[exchange.head.routed.family].objects
    lists = objects.lists
    if ports.jobs is None or lists is None:
        raise UnknownRoute
    path = exchange.head.routed.label
    limit, after, asked = _read(exchange.head.routed.query, lists)
    if after and not await ports.objects.owned(caller, (after,)):
        raise ObjectNotFound(
            f"The {lists.after} of this list names no object of this organization.", param=lists.after
        )
    owned: list[Any] = []
    more, document = False, dict[str, object]()
    at = objects.path.search(path)
    tells = at is not None and at[1] in objects.results
    kind = lists.fields.get(path) or (path.rpartition("/")[2] if lists.size != "limit" else "data")
    place = {lists.after: after} if after and kind == "data" else {}
    behind = not after or kind == "data"  # else the object is searched from the first page on
    for _ in range(PAGES_MAX):
        query = urlencode(asked | {lists.size: str(PAGE_OBJECTS)} | place) + lists.asks.get(path, "")
        status, body = await ports.jobs.ask(exchange.head.routed.upstream, f"{path}?{query}", lists.headers)
        if status != 200:
            await admitted.settle(status, complete=True)
            own_answer(exchange, status, _JSON, body)
            return
        document = loose_document(body)
        listed = document.get(kind)
        page = [item for item in listed if _id_of(item, lists)] if isinstance(listed, list) else []
        for item in page:
            id_ = _id_of(item, lists)
            if not behind:
                behind = id_ == after
            elif await ports.objects.owned(caller, (id_,)):
                more = len(owned) == limit
                if more:
                    break
                owned.append(_narrow_item(item, lists))
                if tells:  # the list also shows results made since then
                    await ports.objects.keep(caller, read_created_ids(exchange.head.routed.family, item))
        token = next((name for name in _GOES_ON if isinstance(document.get(name), str)), "")
        if more or not page or not (token or document.get("has_more")):
            break
        place = {_GOES_ON[token]: str(document[token])} if token else {lists.after: _id_of(page[-1], lists)}
    last = _id_of(owned[-1], lists) if owned else None
    content: dict[str, object]
    if kind == "data":
        kept = {"object": document["object"]} if "object" in document else {}
        first = _id_of(owned[0], lists) if owned else None
        content = {**kept, "first_id": first, "last_id": last, "data": owned, "has_more": more}
    else:
        content = {kind: owned, **({"nextPageToken": last} if more else {})}
    await admitted.settle(200, complete=True)
    own_answer(exchange, 200, _JSON, write_document(content))


def _read(query: str, lists: ObjectLists) -> tuple[int, str, dict[str, str]]:
    """Return the page size, the id of the object before the page, and the parameters to forward."""
    asked = dict(parse_qsl(query[1:], keep_blank_values=True))
    limit = asked.pop(lists.size, str(LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= LIMIT_MAX):
        raise InvalidRequest(f"{lists.size} must be a number from 1 to {LIMIT_MAX}.", param=lists.size)
    place = asked.pop(lists.after, "")
    for name in asked:
        if name not in _PASSED:
            right = ", ".join((lists.size, lists.after, *_PASSED))
            raise InvalidRequest(
                f"The query parameter {name} is not accepted on this list: {right}.", param=name
            )
    return int(limit), place, asked


def _narrow_item(item: dict[str, Any], lists: ObjectLists) -> dict[str, Any]:
    """Remove those parts of an object that are shown by itself only, not in lists, such as its results."""
    for place, names in lists.apart.items():
        inside = item.get(place) if place else item
        if isinstance(inside, dict):
            for name in names & inside.keys():
                del inside[name]
    return item


def _id_of(item: Any, lists: ObjectLists) -> str:
    id_ = item.get(lists.name) if isinstance(item, dict) else None
    return id_ if isinstance(id_, str) else ""
