"""A use is rated again by the price that it was charged by, and by those of all models in it, or left out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.calls.charge import ChargedUse, MeteredUse, UseTerms, charge
from gateway.calls.journal import UNEXPLAINED, UNKNOWN_MODEL, JournalUse, PricesThen, Rating
from gateway.core.accounts.call_facts import CALL_NAMES, ROW_MARKERS, CallFacts, read_other_models, told_of
from gateway.core.billing.price_book import KINDS, read_price
from gateway.core.billing.vector import ModelPrice
from gateway.core.calls.tariff import CallPrices, PriceMatch
from gateway.core.metering.meter import Detail
from gateway.core.model import GENERIC, Caller, Service
from tests.core.billing.prices import EPOCH, price_row
from tests.search import examples

CALLED = datetime(2026, 11, 20, tzinfo=UTC)
LATE = CALLED - timedelta(days=19)
CALLER = Caller(1, 2, 3, 0)
SERVICE = Service(1, "chat")


def counts(read: int, wrote: int) -> tuple[int, ...]:
    return tuple({"input": read, "output": wrote}.get(kind, 0) for kind in KINDS)


def price(id_: int, model: str, rate: str, at: datetime = EPOCH, **over: Any) -> ModelPrice:
    """A price whose output costs twice its input."""
    dearer = str(2 * Decimal(rate))
    row = price_row(id=id_, model=model, input=rate, output=dearer, effective_from=at, **over)
    return read_price(row)


def nano(read: int, wrote: int, rate: str) -> Fraction:
    return (read + 2 * wrote) * Fraction(rate) * 1000


def charged(
    main: ModelPrice, detail: Detail, total: tuple[int, ...], asked: str, *others: ModelPrice
) -> ChargedUse:
    """A call by a price; `others` are those of models that only answer."""
    book = {one.model: one.vector for one in others}
    tokens = sum(total[:5])
    use = MeteredUse(True, total, tokens, 1, False, detail, asked, "/v1/messages", GENERIC, 200, NOTHING)
    prices = CallPrices((), (PriceMatch(main.model, main.vector),), 0.0, own=True)
    return charge(lambda _, model, *__: book.get(model), 0.0, use, UseTerms(CALLER, "", "", SERVICE, prices))


NOTHING: Any = CallFacts().metadata


def journal(made: ChargedUse) -> JournalUse:
    """The use as the journal has it: its facts, and the parts that a row of a ledger tells."""
    facts = CallFacts(*made.facts)
    parts = read_other_models(json.loads(told_of(facts)).get("other_models"))
    return JournalUse(
        facts.model, facts.response_model, facts.currency, facts.exchange_rate, facts.price_id,
        facts.cost or 0, int(CALLED.timestamp() * 1000), facts.counts, facts.tools, facts.service_tier, parts,
    )  # fmt: skip


def rated(use: JournalUse, ours: ModelPrice, *others: ModelPrice) -> Rating | None:
    return PricesThen((ours, *others), "USD").rate_again(use, ours.vector.price_id)


def advised(advisor: str = "adv") -> Detail:
    detail = Detail()
    detail.model = "m"
    detail.answered_within(advisor, counts(40, 20))
    return detail


M, ADVISOR = price(1, "m", "1"), price(2, "adv", "10")


def test_the_same_price_again_moves_nothing_of_a_call_with_an_advisor() -> None:
    use = journal(charged(M, advised(), counts(100, 50), "m", ADVISOR))
    first = nano(60, 30, "1") + nano(40, 20, "10")
    assert use.cost == first == 920_000
    assert rated(use, price(3, "m", "1", LATE), M, ADVISOR) == Rating(920_000, 3, "")
    dearer = nano(60, 30, "3") + nano(40, 20, "10")
    assert rated(use, price(3, "m", "3", LATE), M, ADVISOR) == Rating(int(dearer), 3, "")


def test_a_late_price_of_an_advisor_is_about_its_tokens_alone() -> None:
    use = journal(charged(M, advised(), counts(100, 50), "m", ADVISOR))
    late = price(3, "adv", "4", LATE)
    found = rated(use, late, M, ADVISOR)
    assert found == Rating(int(nano(60, 30, "1") + nano(40, 20, "4")), 1, "")
    # And once more, by a later one of either: its facts say what it was charged at first.
    again = use._replace(cost=found.cost)
    assert rated(again, price(4, "adv", "5", LATE + timedelta(1)), late, M, ADVISOR) == Rating(
        int(nano(60, 30, "1") + nano(40, 20, "5")), 1, ""
    )
    assert rated(again, price(4, "m", "2", LATE), late, M, ADVISOR) == Rating(
        int(nano(60, 30, "2") + nano(40, 20, "4")), 4, ""
    )


def amended(use: JournalUse, ours: ModelPrice, amends: dict[int, int], *others: ModelPrice) -> Rating | None:
    return PricesThen((ours, *others), "USD", amends).rate_again(use, ours.vector.price_id)


def test_a_price_that_amends_another_is_about_all_calls_by_that_and_by_what_that_amended() -> None:
    use = journal(charged(M, Detail(), counts(100, 50), "m"))
    right, again = price(3, "m", "2"), price(4, "m", "3")
    assert amended(use, right, {3: 1}, M, ADVISOR) == Rating(int(nano(100, 50, "2")), 3, "")
    both = {3: 1, 4: 3}
    assert amended(use, again, both, M, right) == Rating(int(nano(100, 50, "3")), 4, "")
    by_right = use._replace(price_id=3, cost=int(nano(100, 50, "2")))
    assert amended(by_right, again, both, M, right) == Rating(int(nano(100, 50, "3")), 4, "")
    # A later price was in force when the call ended, and the call was admitted before.
    late = price(5, "m", "7", LATE)
    assert amended(use, right, {3: 1}, M, late) == Rating(int(nano(100, 50, "2")), 3, "")
    assert amended(use._replace(price_id=5), right, {3: 1}, M, late) is None


def test_an_amended_price_is_in_force_for_no_other() -> None:
    """Rated by a late price of the advisor, the model costs what its right price says."""
    use = journal(charged(M, advised(), counts(100, 50), "m", ADVISOR))
    right, late = price(3, "m", "2"), price(4, "adv", "4", LATE)
    now = use._replace(price_id=3, cost=int(nano(60, 30, "2") + nano(40, 20, "10")))
    found = amended(now, late, {3: 1}, M, ADVISOR, right)
    assert found == Rating(int(nano(60, 30, "2") + nano(40, 20, "4")), 3, "")


@pytest.mark.parametrize("why", ["facts of before", "a cost that its caller told"])
def test_a_call_whose_prices_do_not_make_up_its_cost_is_left_out_and_says_so(why: str) -> None:
    use = journal(charged(M, advised(), counts(100, 50), "m", ADVISOR))
    use = use._replace(beside=()) if why == "facts of before" else use._replace(cost=5)
    found = rated(use, price(3, "m", "1", LATE), M, ADVISOR)
    assert found == Rating(use.cost, 1, "", UNEXPLAINED)


@pytest.mark.parametrize(
    ("was", "late", "outcome"),
    [
        (M, {"model": "m"}, "moves"),
        (M, {"model": "house"}, None),
        (M, {"model": "m-2026"}, None),
        (M, {"model": "m", "at": CALLED + timedelta(days=1)}, None),
        (price(1, "m", "1", match="prefix"), {"model": "m-2026"}, "moves"),
        (price(1, "x-", "1", match="prefix"), {"model": "x-large"}, UNKNOWN_MODEL),
        (price(1, "x-", "1", match="prefix"), {"model": "y"}, None),
        (price(1, "m", "1", provider="azure"), {"model": "m"}, "moves"),
        (price(1, "m", "1", provider="azure", source="bundled"), {"model": "m", "provider": "aws"}, None),
    ],
)
def test_a_configured_model_goes_by_the_model_of_its_price(
    was: ModelPrice, late: dict[str, Any], outcome: str | None
) -> None:
    """It was asked for as `house`, and `m-2026` answered."""
    detail = Detail()
    detail.model = "m-2026"
    use = journal(charged(was, detail, counts(100, 50), "house"))
    other = price(7, "m", "9", provider="openai", source="bundled")
    at = late.pop("at", LATE)
    found = rated(use, price(3, late.pop("model"), "2", at, **late), was, other)
    if outcome == "moves":
        assert found == Rating(int(nano(100, 50, "2")), 3, "")
    else:
        assert found == (None if outcome is None else Rating(use.cost, 1, "", outcome))


@given(
    st.lists(st.tuples(st.sampled_from(["adv", "m", ""]), st.integers(0, 9), st.integers(0, 9)), max_size=3),
    st.integers(0, 30), st.integers(0, 30), st.sampled_from(["1", "0.37", "12"]),
)  # fmt: skip
@settings(max_examples=examples(200))
def test_a_price_that_says_the_same_moves_nothing(
    parts: list[tuple[str, int, int]], read: int, wrote: int, rate: str
) -> None:
    main, advisor = price(1, "m", rate), price(2, "adv", "3.3")
    detail = Detail()
    for model, *part in parts:
        detail.answered_within(model, counts(*part))
    use = journal(charged(main, detail, counts(read, wrote), "m", advisor))
    for old in (main, advisor):
        same = replace_id(old, 3)
        found = rated(use, same, main, advisor)
        assert found is None or (found.cost, found.left_out) == (use.cost, "")


def replace_id(one: ModelPrice, id_: int) -> ModelPrice:
    """The same price again, from another day on."""
    at = int(LATE.timestamp() * 1000)
    return one._replace(effective_ms=at, vector=one.vector._replace(price_id=id_))


def test_only_the_gateway_writes_the_markers_of_a_row() -> None:
    """What a caller says under such a name is no part of a charge."""
    parts = [{"model": "adv", "price_id": 2, "input": 90}]
    said = json.dumps({"team": "a", **dict.fromkeys(ROW_MARKERS, parts)})
    told = json.loads(told_of(CallFacts(model="m", metadata=Raw(said.encode()))))
    assert told.keys() == {"team", *CALL_NAMES}
    for foreign in ("x", {"a": 1}, [{"model": "m"}], [{"model": "m", "price_id": "x"}], [5], None):
        assert read_other_models(foreign) == []
