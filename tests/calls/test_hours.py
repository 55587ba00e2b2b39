"""What a call costs whose price changes by the hour: held, charged, itemized and rated again alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.calls.charge import MeteredUse, UseTerms, charge
from gateway.calls.journal import JournalUse, PricesThen, UseHour, itemize
from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.billing.price_book import KINDS, PriceBook, cost_nano, read_price
from gateway.core.calls.tariff import CallPrices, PriceMatch, held_price
from gateway.core.metering.meter import Detail
from gateway.core.model import GENERIC, Caller, Service
from tests.core.billing.prices import price_row

LATER = datetime(2026, 11, 1, tzinfo=UTC)
CALLER, SERVICE = Caller(1, 2, 3, 0), Service(1, "chat")
NOTHING: Any = CallFacts().metadata
PEAK = {"days": [1, 2, 3, 4, 5], "from": "09:00", "to": "12:00", "time_zone": "Asia/Shanghai", "factor": "2"}
COUNTS = tuple(1_000_001 if kind in {"input", "output"} else 0 for kind in KINDS)


def ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def row(number: int = 1, price: str = "0.66", **over: Any) -> dict[str, Any]:
    return price_row(id=number, input=price, output="1.98", hours=[PEAK], **over)


def charged(at: str, ended: str, *rows: dict[str, Any]) -> CallFacts:
    """The facts of a call as the outbox has them."""
    book = PriceBook(map(read_price, rows))
    vector = book.vector("m", "USD", ms(at))
    assert vector is not None
    held = held_price(vector, ms(at), 3_600_000)
    use = MeteredUse(True, COUNTS, 2_000_002, 1, False, Detail(), "m", "/v1", GENERIC, 200, NOTHING)
    prices = CallPrices((), (PriceMatch("m", held),), ms(at), own=True, hourly=True)
    made = charge(lambda *_: None, ms(ended), use, UseTerms(CALLER, "", "", SERVICE, prices))
    facts = read_facts(made.settlement.metadata)
    assert facts is not None
    assert cost_nano(held, COUNTS) >= made.cost
    return facts


# (1,000,001 × 0.66 + 1,000,001 × 1.98) / 1,000,000 dollars is 2.64000264; twice that is 5.28000528.
USUAL, TWICE = 2_640_002_640, 5_280_005_280
# The peak of Monday, 30 November 2026 is from 01:00 to 04:00 UTC.
BEFORE, BEGINS, LAST, ENDS = (
    f"2026-11-30T{at}+00:00" for at in ("00:59:59.999", "01:00", "03:59:59.999", "04:00")
)


@pytest.mark.parametrize(
    ("hours_at", "begin", "end", "cost", "at"),
    [
        ("begin", BEFORE, BEGINS, USUAL, BEFORE), ("begin", BEGINS, ENDS, TWICE, BEGINS),
        ("begin", LAST, ENDS, TWICE, LAST), ("begin", ENDS, ENDS, USUAL, ENDS),
        ("end", BEFORE, BEFORE, USUAL, BEFORE), ("end", BEFORE, BEGINS, TWICE, BEGINS),
        ("end", BEGINS, ENDS, USUAL, ENDS), ("end", BEGINS, LAST, TWICE, LAST),
    ],
)  # fmt: skip
def test_charge_is_by_the_hour_of_its_begin_or_its_end(
    hours_at: str, begin: str, end: str, cost: int, at: str
) -> None:
    facts = charged(begin, end, row(hours_at=hours_at))
    assert (facts.cost, facts.priced_ms, facts.hour_factor) == (cost, ms(at), "2" if cost == TWICE else "1")


def test_hold_of_a_price_by_the_end_is_at_the_dearest_hour_within_its_time() -> None:
    price = read_price(row(hours_at="end"))
    for at, life_ms, factor in (
        (BEFORE, 1, 2), (BEFORE, 0, 1), ("2026-11-30T00:00:00+00:00", 3_599_999, 1),
        ("2026-11-30T00:00:00+00:00", 3_600_000, 2), (ENDS, 3_600_000, 1), (ENDS, 24 * 3_600_000, 2),
    ):  # fmt: skip
        vector = PriceBook([price]).vector("m", "USD", ms(at))
        assert vector is not None
        assert held_price(vector, ms(at), life_ms).prices[0] == factor * 660_000_000, at


@pytest.mark.parametrize("hours_at", ["begin", "end"])
def test_call_is_itemized_and_rated_again_to_the_billionth(hours_at: str) -> None:
    late = row(2, "1.000000001", hours_at=hours_at, effective_from=LATER)
    for begin, end in ((BEFORE, BEGINS), (BEGINS, LAST), (LAST, ENDS)):
        facts = charged(begin, end, row(hours_at=hours_at))
        usage = dict(zip(KINDS, facts.counts, strict=True))
        call = {
            "usage": usage, "currency": "USD", "exchange_rate": None, "service_tier": None,
            "hour_factor": facts.hour_factor, "cost": f"{facts.cost / 10**9:.9f}" if facts.cost else None,
        }  # fmt: skip
        assert itemize(call, row(hours_at=hours_at)).adds_up
        use = JournalUse(
            facts.model, "", facts.currency, "", facts.price_id, facts.cost or 0, ms(ENDS), facts.counts, {},
            "", (), UseHour.of("", ms(ENDS), 0, facts.priced_ms),
        )  # fmt: skip
        rating = PricesThen(map(read_price, (row(hours_at=hours_at), late)), "USD").rate_again(use, 2)
        assert rating is not None
        again = charged(begin, end, late)
        assert (rating.cost, rating.priced_ms, rating.hour_factor) == (
            again.cost, again.priced_ms, again.hour_factor,
        )  # fmt: skip
        assert rating.left_out == ""


def test_call_charged_before_its_price_had_hours_is_rated_by_the_time_in_its_id() -> None:
    """The id says 01:00; the row was stored at 04:00."""
    begun = f"{ms(BEGINS):012x}"
    use = JournalUse(
        "m", "", "USD", "", 1, 660_000_660, ms(ENDS), (1_000_001, *[0] * 9), {}, "", (),
        UseHour.of(f"{begun[:8]}-{begun[8:]}-7000-8000-000000000000", ms(ENDS), 5, 0),
    )  # fmt: skip
    before = price_row(id=1, input="0.66")
    rating = PricesThen(map(read_price, (before, row(2, effective_from=LATER))), "USD").rate_again(use, 2)
    assert rating is not None
    assert (rating.cost, rating.hour_factor) == (1_320_001_320, "2")
