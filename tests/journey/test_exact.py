"""The ledger says what the upstream counted: for every API, however client and upstream behave."""

from __future__ import annotations

import pytest

from tests.journey.apis import STREAMS, Api
from tests.journey.exactness import LEFT_MIN, dying, leaving, mixed
from tests.search import examples
from tests.stage import Stage

# One of each family; `core/meter`, `core/metering` and `http/test_abandoned.py` have them all. They have what
# numbers that cannot be true are charged, and an upstream's own errors.
MIXED = examples(1_000)
EACH = tuple(api for api in STREAMS if api.name in {"chat", "messages", "gemini (events)"})


def name_of(api: Api) -> str:
    return api.name.replace(" ", "_")


def test_many_mixed_calls_over_all_apis_differ_by_nothing(stage: Stage) -> None:
    compared = mixed(stage, MIXED)
    assert (compared.calls, compared.wrong) == (MIXED, ())
    assert compared.charged == compared.counted > 0
    assert all(heard.complete and heard.status == 200 for heard in compared.heard)


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_a_client_that_hangs_up_at_any_event_is_charged_what_was_produced(stage: Stage, api: Api) -> None:
    compared = leaving(stage, api)
    assert compared.calls >= LEFT_MIN
    assert compared.wrong == ()
    assert sum(not heard.complete for heard in compared.heard) >= LEFT_MIN


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_an_upstream_that_dies_at_any_event_is_charged_what_came(stage: Stage, api: Api) -> None:
    compared = dying(stage, api)
    assert compared.calls >= 6
    assert compared.wrong == ()
    assert sum(heard.complete for heard in compared.heard) <= 1  # only the one that was not cut
    assert all(heard.status in (200, 502) for heard in compared.heard)
