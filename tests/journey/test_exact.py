"""The ledger says what the upstream counted: for every API, however client and upstream behave."""

from __future__ import annotations

import pytest

from tests.journey.apis import DOCUMENTS, STREAMS, Api
from tests.journey.exactness import LEFT_MIN, Comparison, as_counted, by_size, dying, leaving, mixed
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


def test_a_document_that_breaks_off_is_a_clean_502_charged_at_most_what_was_made(stage: Stage) -> None:
    compared = dying(stage, DOCUMENTS[0])
    assert {heard.status for heard in compared.heard} == {502}
    assert all(0 <= charged <= by_size(noted) for noted, charged, _ in compared.wrong)


def test_missing_use_is_estimated_and_its_row_says_so(stage: Stage) -> None:
    comparison, chat = Comparison(stage), EACH[0]
    comparison.warm(chat)
    comparison.run([(chat, None, {"usage": "none", "words": "6"})] * 4)
    compared = comparison.compare(as_counted, by_size)
    query = f"SELECT amount, metadata->>'estimated' FROM token_ledger WHERE tenant_id = {comparison.tenant}"
    marked = [amount for amount, estimated in stage.rows(query) if estimated == "true"]
    assert len(marked) == compared.calls == 4
    assert compared.wrong == ()  # every event is a token, and the input goes by its size
    assert compared.charged > 0
