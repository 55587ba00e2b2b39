"""The ledger says what the upstream counted: for every API, however client and upstream behave."""

from __future__ import annotations

import pytest

from tests.journey.apis import DOCUMENTS, STREAMS, Api
from tests.journey.exactness import LEFT_MIN, Comparison, as_counted, by_size, dying, leaving, mixed
from tests.journey.stack import Stack

# One of each family; `core/meter`, `core/metering` and `http/test_abandoned.py` have them all.
EACH = tuple(api for api in STREAMS if api.name in {"chat", "messages", "gemini (events)"})


def name_of(api: Api) -> str:
    return api.name.replace(" ", "_")


def test_a_thousand_mixed_calls_over_all_apis_differ_by_nothing(stack: Stack) -> None:
    compared = mixed(stack, 1000)
    assert (compared.calls, compared.wrong) == (1000, ())
    assert compared.charged == compared.counted > 0
    assert all(heard.complete and heard.status == 200 for heard in compared.heard)


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_a_client_that_hangs_up_at_any_event_is_charged_what_was_produced(stack: Stack, api: Api) -> None:
    compared = leaving(stack, api)
    assert compared.calls >= LEFT_MIN
    assert compared.wrong == ()
    assert sum(not heard.complete for heard in compared.heard) >= LEFT_MIN


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_an_upstream_that_dies_at_any_event_is_charged_what_came(stack: Stack, api: Api) -> None:
    compared = dying(stack, api)
    assert compared.calls >= 6
    assert compared.wrong == ()
    assert sum(heard.complete for heard in compared.heard) <= 1  # only the one that was not cut
    assert all(heard.status in (200, 502) for heard in compared.heard)


@pytest.mark.parametrize("api", DOCUMENTS[:1], ids=name_of)
def test_a_document_that_breaks_off_is_a_clean_502_charged_at_most_what_was_made(
    stack: Stack, api: Api
) -> None:
    compared = dying(stack, api)
    assert {heard.status for heard in compared.heard} == {502}
    assert all(0 <= charged <= by_size(noted) for noted, charged, _ in compared.wrong)


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_missing_use_is_not_zero_use(stack: Stack, api: Api) -> None:
    comparison = Comparison(stack)
    comparison.warm(api)
    comparison.run([(api, None, {"usage": "none", "words": "6"})] * 4)
    compared = comparison.compare(as_counted, by_size)
    query = f"SELECT amount, metadata->>'estimated' FROM token_ledger WHERE tenant_id = {comparison.tenant}"
    marked = [amount for amount, estimated in stack.rows(query) if estimated == "true"]
    assert len(marked) == compared.calls == 4
    if api.name != "chat":
        most = api.body.get("max_tokens", 0)  # these always report, so not to is charged all they could use
        assert all(charged > max(most, as_counted(noted)) for noted, charged, _ in compared.wrong)
        assert len(compared.wrong) == 4
    else:  # every event is a token, and the input goes by its size
        assert compared.wrong == ()
    assert compared.charged > 0


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_an_upstreams_own_error_passes_and_charges_nothing(stack: Stack, api: Api) -> None:
    comparison = Comparison(stack)
    comparison.run([(api, None, {"status": status}) for status in ("400", "429", "500", "503")])
    compared = comparison.compare(as_counted)
    assert [heard.status for heard in compared.heard] == [400, 429, 500, 503]
    assert all(b"as you asked" in heard.raw for heard in compared.heard)
    assert (compared.calls, compared.charged) == (0, 0)


@pytest.mark.parametrize("api", EACH, ids=name_of)
def test_numbers_that_cannot_be_true_are_bounded_and_marked(stack: Stack, api: Api) -> None:
    comparison = Comparison(stack)
    wrong = ["-5,7", "9007199254740993,1", "5,-7", "5,999999999999"]
    comparison.run([(api, None, {"usage": usage}) for usage in wrong])
    comparison.compare(as_counted)
    query = f"SELECT amount, metadata->>'estimated' FROM token_ledger WHERE tenant_id = {comparison.tenant}"
    rows = [(amount, estimated) for amount, estimated in stack.rows(query) if estimated is not None]
    assert [estimated for _, estimated in rows] == ["true"] * len(wrong)
    assert all(0 <= amount <= 100_000_000 for amount, _ in rows)
