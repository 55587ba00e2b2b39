"""Operations of vendors' APIs: each is metered, about objects of its caller, free, or refused by name.

`operations.txt` has them by vendor, with the file of `deploy/providers` that they are tried with, and says
what becomes of each: `metered`, `owned`, `free` (lists of models, counts of tokens) or `refused`. One that is
refused may come to pass, but none may pass without a meter or an owner.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.http_limits import HttpLimits
from gateway.core.model import GENERIC
from gateway.http.routing.head import HeadRouter, RoutedHead
from gateway.http.routing.routes import WorkerBindings
from gateway.settings.settings import load
from tests.http.fakes import FakeDirectory
from tests.settings.test_providers import ENVIRON, FOLDER

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "providers.md"
KEYS = {
    "Anthropic": b"x-api-key: k\r\nanthropic-version: 2023-06-01\r\n",
    "Gemini": b"x-goog-api-key: k\r\n",
    "Azure OpenAI": b"api-key: k\r\n",
}
# What opens a WebSocket, by the method `WS`.
SOCKET = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
OPERATIONS_MIN = 299
_COUNTS = re.compile(r".*(?:count_tokens|:countTokens|input_tokens|tokenize)")


def operations() -> dict[str, list[tuple[str, str, str]]]:
    """What becomes of a method and a path, by vendor and file."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in (HERE / "operations.txt").read_text().splitlines():
        if line.startswith("["):
            of = found[line.strip("[]")] = []
        elif line:
            outcome, method, path = line.split()
            of.append((outcome, method, path))
    return found


def outcome_of(routed: RoutedHead) -> str:
    refusal = routed.refusal or routed.object_refusal
    if refusal is not None:
        assert refusal.reason
        assert refusal.told
        return "refused"
    if routed.metered:
        return "metered"
    if routed.listing is not None or _COUNTS.fullmatch(routed.label):
        return "free"
    assert routed.family != GENERIC
    return "owned" if routed.owned is not None else "unmetered"


def routed_by(vendor: str, file: str) -> Iterator[tuple[str, str]]:
    """The outcome of each operation of a vendor, with the outcome that the list says."""
    settings = load(ENVIRON, FOLDER / f"{file}.yaml" if file != "default" else None)
    targets = {one.name: one for one in settings.upstreams}
    bindings = WorkerBindings(
        settings.routes, targets, settings.services, FakeDirectory(), lambda event, **facts: None
    )
    router = HeadRouter(settings.routes, targets, bindings, HttpLimits())
    key = KEYS.get(vendor, b"authorization: Bearer k\r\n")
    for listed, method, path in operations()[f"{vendor} | {file}"]:
        asked = key + SOCKET if method == "WS" else key
        verb = method.replace("WS", "GET").encode()
        head = b"%b %b HTTP/1.1\r\nhost: gateway\r\n%b\r\n" % (verb, path.encode(), asked)
        found = outcome_of(router.route(head))
        yield f"{method} {path}: {listed}", f"{method} {path}: {found}"


@pytest.mark.parametrize("place", list(operations()))
def test_no_operation_passes_without_a_meter_or_an_owner(place: str) -> None:
    vendor, _, file = place.partition(" | ")
    for listed, found in routed_by(vendor, file):
        assert not found.endswith("unmetered"), found
        assert found == listed or listed.endswith("refused"), (found, listed)


def test_the_page_of_providers_says_how_many_pass() -> None:
    page, everything, vendors = PAGE.read_text(), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for place, listed in operations().items():
        counts = Counter(outcome for outcome, _, _ in listed)
        everything += counts
        vendors[place.partition(" | ")[0]] += counts
    for vendor, counts in (*vendors.items(), ("All", everything)):
        assert row(vendor, counts) in page
    assert everything.total() == OPERATIONS_MIN


def row(vendor: str, counts: Counter[str]) -> str:
    numbers = [counts.total(), *(counts[name] for name in ("metered", "owned", "free", "refused"))]
    return f"| {vendor} | " + " | ".join(map(str, numbers)) + " |"
