"""Operations of vendors' APIs: each is metered, about objects of its caller, free, or refused by name.

`operations.txt` has them by vendor, with the file of `deploy/providers` that they are tried with, and says
what becomes of each: `metered`, `owned`, `free` (lists of models, counts of tokens) or `refused`. Behind a
`?` stand query parameters. `python deploy/operations.py` adds those of the SDKs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.operations import REFUSED, SDKS, Sdk, new_rows, operations_of, updated
from gateway.core.http_limits import HttpLimits
from gateway.core.model import GENERIC
from gateway.http.routing.routed_head import HeadRouter, RoutedHead
from gateway.http.routing.routes import unknown_path
from gateway.http.routing.worker_bindings import WorkerBindings
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
# Values of query parameters that do not take any.
VALUES = {"alt": "sse", "beta": "true"}
NONE: frozenset[str] = frozenset({"-"})
OF_SDK_MIN = 80
OPERATIONS = 871
_COUNTS = re.compile(r".*(?:count_tokens|:countTokens|input_tokens|tokenize)")


class Row(NamedTuple):
    """An operation, what becomes of it, and its query parameters."""

    outcome: str
    method: str
    path: str
    queries: frozenset[str]


def operations() -> dict[str, list[Row]]:
    """What becomes of a method and a path, by vendor and file."""
    found: dict[str, list[Row]] = {}
    for line in (HERE / "operations.txt").read_text().splitlines():
        if line.startswith("["):
            of = found[line.strip("[]")] = []
        elif line:
            outcome, method, path, *query = line.split()
            of.append(Row(outcome, method, path, frozenset("".join(query)[1:].split(",")) - {""}))
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


def routed_by(vendor: str, file: str) -> Iterator[tuple[Row, str, RoutedHead]]:
    """Each operation of a vendor as the list has it, without and with a query, and as it is routed."""
    settings = load(ENVIRON, FOLDER / f"{file}.yaml" if file != "default" else None)
    targets = {one.name: one for one in settings.upstreams}
    bindings = WorkerBindings(
        settings.routes, targets, settings.services, FakeDirectory(), lambda event, **facts: None
    )
    router = HeadRouter(settings.routes, targets, bindings, HttpLimits())
    key = KEYS.get(vendor, b"authorization: Bearer k\r\n")
    for row in operations()[f"{vendor} | {file}"]:
        asked = key + SOCKET if row.method == "WS" else key
        verb = row.method.replace("WS", "GET").encode()
        for name in ("", *sorted(row.queries)):
            query = f"?{name}={VALUES.get(name, '1')}" if name else ""
            target = f"{row.path}{query}".replace(REFUSED, "").encode()
            routed = router.route(b"%b %b HTTP/1.1\r\nhost: gateway\r\n%b\r\n" % (verb, target, asked))
            yield row, query, routed


@pytest.mark.parametrize("place", list(operations()))
def test_no_operation_passes_without_a_meter_or_an_owner(place: str) -> None:
    vendor, _, file = place.partition(" | ")
    wrong: list[str] = []
    for row, query, routed in routed_by(vendor, file):
        listed = "refused" if REFUSED in query else row.outcome
        found = "refused" if query and routed.field_refusal else outcome_of(routed)
        if found != listed:
            wrong.append(f"{row.method} {row.path}{query}: {found}, listed as {listed}")
    assert not wrong


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/organization/costs", "administers the account"), ("/v1/projects/p/roles", "administers the account"),
        ("/v1/sessions", "no answer tells what it uses"), ("/v1/threads/t/runs", "no answer tells what it uses"),
        ("/v1/content_provenance_checks", "no answer tells what it uses"), ("/v1/nowhere", "No route"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_served_is_refused_with_a_reason(path: str, words: str) -> None:
    assert words in unknown_path(path, "").told


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.package)
def test_each_path_and_query_parameter_of_an_sdk_has_a_row(sdk: Sdk) -> None:
    listed = {
        f"{row.method} {row.path}": frozenset(name.removeprefix(REFUSED) for name in row.queries)
        for row in operations()[sdk.part]
    }
    found = operations_of(sdk)
    assert len(found) > OF_SDK_MIN
    assert not {operation for operation, names in found.items() if names != listed.get(operation, NONE)}


def test_the_page_of_providers_says_how_many_pass() -> None:
    page, everything, vendors = PAGE.read_text(), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for place, listed in operations().items():
        counts = Counter(row.outcome for row in listed)
        everything += counts
        vendors[place.partition(" | ")[0]] += counts
    for vendor, counts in (*vendors.items(), ("All", everything)):
        assert row(vendor, counts) in page
    assert everything.total() == OPERATIONS


def row(vendor: str, counts: Counter[str]) -> str:
    numbers = [counts.total(), *(counts[name] for name in ("metered", "owned", "free", "refused"))]
    return f"| {vendor} | " + " | ".join(map(str, numbers)) + " |"


def test_new_rows_are_the_operations_and_query_parameters_that_a_list_lacks() -> None:
    rows = (HERE / "operations.txt").read_text()
    assert updated(rows) == rows
    fewer = rows.replace("metered POST /v1/embeddings\n", "", 1)
    fewer = fewer.replace("GET /v1/files ?after,limit,order,purpose\n", "GET /v1/files ?after,order\n", 1)
    assert new_rows(fewer) == [
        "owned GET /v1/files ?after,limit,order,purpose", "refused POST /v1/embeddings",
    ]  # fmt: skip
