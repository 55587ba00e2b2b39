"""Lists of stored objects: all organizations share an account, and each is shown its own objects.

Pages of the account are read until one for the caller is full, up to a bound: older objects are told by their
ids alone. No id of another organization is told, also not as the place where a page ends.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from gateway.core.calls.call import write_document
from gateway.core.families.registry import FAMILIES
from gateway.core.metering.reading import loose_document
from gateway.errors import InvalidRequest, ObjectNotFound, UnknownRoute
from gateway.http.admission import admit, identify, known
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange

# Pages of an account that are read for one answer, and objects on each.
PAGES_MAX: Final = 10
PAGE_OBJECTS: Final = 100
# Objects of an answer: by default, and at most.
LIMIT, LIMIT_MAX = 20, 100
# What else a list may be asked by, and passes.
_PASSED: Final = ("purpose", "order")
_JSON: Final = [(b"content-type", b"application/json")]


async def list_objects(exchange: Exchange) -> None:
    """Answer with the objects of a collection that are the caller's organization's."""
    caller = known(exchange) or await identify(exchange)
    admitted = await admit(exchange, caller)
    ports, paths = exchange.worker.ports, FAMILIES[exchange.routed.family].batches
    if ports.jobs is None or paths is None:
        raise UnknownRoute
    limit, after, asked = _read(exchange.routed.query, paths.after)
    if after and not await ports.objects.owned(caller, (after,)):
        raise ObjectNotFound
    found: list[Any] = []
    more, document = False, dict[str, object]()
    for _ in range(PAGES_MAX):
        place = {paths.after: after} if after else {}
        path = f"{exchange.routed.label}?{urlencode(asked | {'limit': str(PAGE_OBJECTS)} | place)}"
        status, said = await ports.jobs.ask(exchange.routed.upstream, path, paths.headers)
        if status != 200:
            await admitted.settle(status, True)
            own_answer(exchange, status, _JSON, said)
            return
        document = loose_document(said)
        listed = document.get("data")
        page = [one for one in listed if _id_of(one)] if isinstance(listed, list) else []
        for one in page:
            if await ports.objects.owned(caller, (_id_of(one),)):
                more = len(found) == limit
                if more:
                    break
                found.append(one)
        if more or not page or not document.get("has_more"):
            break
        after = _id_of(page[-1])
    ends = {"first_id": _id_of(found[0]), "last_id": _id_of(found[-1])} if found else {}
    kept = {"object": document["object"]} if "object" in document else {}
    content = kept | dict.fromkeys(("first_id", "last_id")) | ends | {"data": found, "has_more": more}
    await admitted.settle(200, True)
    own_answer(exchange, 200, _JSON, write_document(content))


def _read(query: str, after: str) -> tuple[int, str, dict[str, str]]:
    """The number of objects that are asked for, the one they follow, and the parameters that pass."""
    asked = dict(parse_qsl(query[1:], keep_blank_values=True))
    limit = asked.pop("limit", str(LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= LIMIT_MAX):
        raise InvalidRequest(f"limit must be a number from 1 to {LIMIT_MAX}.", param="limit")
    place = asked.pop(after, "")
    for name in asked:
        if name not in _PASSED:
            right = ", ".join(("limit", after, *_PASSED))
            raise InvalidRequest(
                f"The query parameter {name} is not accepted on this list: {right}.", param=name
            )
    return int(limit), place, asked


def _id_of(one: Any) -> str:
    found = one.get("id") if isinstance(one, dict) else None
    return found if isinstance(found, str) else ""
