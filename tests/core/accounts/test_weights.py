"""What tokens of each kind count: the integers against the same by fractions."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.plans import TERMS, PlanTerms, plan_payload, read_terms
from gateway.core.accounts.weights import ONE, WEIGHT_DIGITS_MAX, WEIGHT_MAX, Weights, millionths
from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import FALLBACK, KINDS
from gateway.core.times import APART_MS, CLOCK_OF_UTC, DAY_MS, HOUR_MS, ZoneOffset, clock_of, offset_at

SAID = st.dictionaries(st.sampled_from(KINDS), st.integers(0, WEIGHT_MAX * ONE))
TOKENS = st.integers(0, 10**8)
PARTS = ("reasoning", "audio_output", "image_output"), ("audio_input", "image_input")
CACHED = {"cache_read": "0.1"}
# What a call used of which most came from a cache, as Anthropic tells it: its input is without that.
ANTHROPIC = (3, 180_000, 14_000, 6_000, 500, 0, 0, 0, 0, 0)


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, ...]:
    """Counts by kind: parts are within their whole, together."""
    read, cache_read, written, written_1h, output = (draw(TOKENS) for _ in range(5))
    reasoning = draw(st.integers(0, output))
    audio_output = draw(st.integers(0, output - reasoning))
    image_output = draw(st.integers(0, output - reasoning - audio_output))
    audio = draw(st.integers(0, read))
    image = draw(st.integers(0, read - audio))
    return (
        read, cache_read, written, written_1h, output,
        reasoning, audio, audio_output, image, image_output,
    )  # fmt: skip


def weight(said: dict[str, int], kind: str) -> Fraction:
    while kind not in said:
        if kind not in FALLBACK:
            return Fraction(1)
        kind = FALLBACK[kind]
    return Fraction(said[kind], ONE)


def by_fractions(said: dict[str, int], counts: tuple[int, ...]) -> int:
    """The same once more: each token by its most exact kind, all of them added up, rounded up once."""
    left = dict(zip(KINDS, counts, strict=True))
    for part in PARTS[0]:
        left["output"] -= left[part]
    for part in PARTS[1]:
        left["input"] -= left[part]
    return ceil(sum((count * weight(said, kind) for kind, count in left.items()), Fraction(0)))


@given(SAID, calls())
def test_every_token_counts_by_its_kind_and_the_sum_is_rounded_up_once(
    said: dict[str, int], counts: tuple[int, ...]
) -> None:
    assert Weights.of(said).count(counts, sum(counts[:5])) == by_fractions(said, counts)


@given(st.tuples(*[TOKENS] * len(KINDS)), TOKENS)
def test_where_all_count_one_a_call_counts_what_is_reported_whatever_its_kinds_are(
    counts: tuple[int, ...], total: int
) -> None:
    counted = Weights.of({}).count(counts, total)
    assert counted <= total
    if total >= sum(counts[:5]):
        assert counted == total


@given(SAID, st.tuples(*[TOKENS] * len(KINDS)), TOKENS)
def test_no_call_counts_more_than_all_of_it_at_the_largest_weight(
    said: dict[str, int], counts: tuple[int, ...], total: int
) -> None:
    weights = Weights.of(said)
    assert 0 <= weights.count(counts, total) <= ceil(total * max(weight(said, kind) for kind in KINDS))


@given(SAID, calls(), st.integers(0, 1000), st.integers(0, 1000))
def test_a_hold_of_the_most_covers_whatever_comes_of_it(
    said: dict[str, int], counts: tuple[int, ...], more_read: int, more_written: int
) -> None:
    weights, read, total = Weights.of(said), sum(counts[:4]), sum(counts[:5])
    held = weights.at_most(total + more_read + more_written, read + more_read)
    assert weights.count(counts, total) <= held


@given(SAID, TOKENS, TOKENS)
def test_a_call_bound_to_what_is_held_never_counts_more(said: dict[str, int], held: int, read: int) -> None:
    weights = Weights.of(said)
    most = weights.covered(held, read)
    if read <= most < ENDLESS:
        assert weights.at_most(most, read) <= held < weights.at_most(most + 1, read)


def test_a_cached_read_counts_a_tenth() -> None:
    weights = Weights.of(millionths(CACHED))
    assert weights.count((0, 180_000, 0, 0, 0, 0, 0, 0, 0, 0), 180_000) == 18_000
    assert weights.count(ANTHROPIC, 200_503) == 3 + 18_000 + 20_000 + 500
    assert weights.count((0, 1, 0, 0, 0, 0, 0, 0, 0, 0), 1) == 1  # never less than a call's part of one


def test_a_kind_without_a_weight_counts_as_what_its_price_falls_back_to() -> None:
    weights = Weights.of(millionths({"input": "2", "cache_write": "1.25", "output": "5"}))
    by_kind = dict(zip(KINDS, weights.by_kind, strict=True))
    assert by_kind["cache_read"] == by_kind["audio_input"] == 2 * ONE
    assert by_kind["cache_write_1h"] == 1_250_000
    assert by_kind["reasoning"] == by_kind["audio_output"] == by_kind["image_output"] == 5 * ONE
    assert (weights.read, weights.written) == (2 * ONE, 5 * ONE)


def test_a_weight_of_a_part_takes_the_place_of_its_wholes() -> None:
    weights = Weights.of(millionths({"output": "5", "reasoning": "1"}))
    assert weights.count((0, 0, 0, 0, 100, 60, 0, 0, 0, 0), 100) == 40 * 5 + 60


def test_what_is_reported_beyond_all_kinds_counts_as_input_or_output_whichever_is_more() -> None:
    weights = Weights.of(millionths({"input": "0.5", "output": "3"}))
    assert weights.count((10, 0, 0, 0, 10, 0, 0, 0, 0, 0), 30) == 5 + 30 + 30


def test_weights_of_nothing_bind_nothing() -> None:
    free = Weights.of(dict.fromkeys(KINDS, 0))
    assert free.count(ANTHROPIC, 200_503) == free.at_most(10**9, 10**8) == 0
    assert free.covered(0, 10**6) == ENDLESS


def test_a_weight_is_read_to_its_last_decimal() -> None:
    assert millionths({"output": "0.000001"}) == {"output": 1}
    assert millionths({"output": str(WEIGHT_MAX)}) == {"output": WEIGHT_MAX * 10**WEIGHT_DIGITS_MAX}
    assert millionths(None) == {}


# --- plan terms -------------------------------------------------------------------------
# A plan's terms: what of them is stated, defaulted, committed and read again.


ROW = {
    "id": 4, "name": "Team", "total_amount": 500, "reset_interval": "daily", "overage_policy": "bill",
    "rollover_max": 3, "admission": "strict", "on_exhausted": "cut", "on_store_failure": "allow",
    "time_zone": "Europe/Berlin", "anchor_day": 7,
}  # fmt: skip
SUMMER = 1_774_746_000_000  # 2026-03-29T01:00Z: clocks of Berlin are set on


def test_a_control_write_brings_the_terms_of_its_plan() -> None:
    payload = plan_payload(ROW, anchor=31, since_ms=SUMMER)
    stated = {name: value for name, value in ROW.items() if name not in ("id", "name")}
    assert payload.items() >= ({"plan_id": 4, "anchor": 31, "since_ms": SUMMER} | stated).items()
    assert payload.keys() == {"plan_id", "anchor", "since_ms"} | {one.name for one in TERMS}
    clock = ZoneOffset(HOUR_MS, SUMMER, 2 * HOUR_MS)
    assert read_terms(payload, SUMMER - 1) == PlanTerms(plan_id=4, anchor=31, clock=clock, **stated)


def test_no_plan_is_unlimited_and_never_reset() -> None:
    payload = plan_payload(None, anchor=7, since_ms=0)
    assert payload["plan_id"] is None
    assert read_terms(payload, SUMMER) == PlanTerms(anchor=7)
    assert (PlanTerms().plan_id, PlanTerms().total_amount, PlanTerms().reset_interval) == (0, None, "none")


def test_a_field_that_its_version_did_not_know_has_its_default() -> None:
    payload = plan_payload(ROW, anchor=1, since_ms=0)
    for name in ("rollover_max", "time_zone", "anchor_day"):
        del payload[name]
    terms = read_terms(payload, SUMMER)
    assert (terms.rollover_max, terms.time_zone, terms.anchor_day, terms.clock) == (
        0,
        "UTC",
        None,
        CLOCK_OF_UTC,
    )


def test_every_field_of_a_plan_is_a_term_and_only_a_number_may_be_null() -> None:
    stated = [one.name for one in fields(PlanTerms)]
    assert stated == ["plan_id", "anchor", "clock", *(one.name for one in TERMS)]
    assert [one.name for one in TERMS if one.nullable] == ["total_amount", "anchor_day"]
    assert {one.name: one.default for one in TERMS}["reset_interval"] == "monthly"
    for one in TERMS:
        assert one.default in (one.choices or (("UTC",) if one.is_text else (None, 0))), one.name


# --- zones ------------------------------------------------------------------------------
# Time zones: what is told of their clocks, and what is wrong with days that are counted in one.


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "at", "clock"),
    [
        ("UTC", "2026-01-01", CLOCK_OF_UTC),
        ("Asia/Kathmandu", "2026-01-01", ZoneOffset(20_700_000, 0, 20_700_000)),
        ("Pacific/Kiritimati", "2026-01-01", ZoneOffset(14 * HOUR_MS, 0, 14 * HOUR_MS)),
        ("Europe/Berlin", "2026-01-01", ZoneOffset(HOUR_MS, ms("2026-03-29T01:00"), 2 * HOUR_MS)),
        ("Europe/Berlin", "2026-07-01", ZoneOffset(2 * HOUR_MS, ms("2026-10-25T01:00"), HOUR_MS)),
        (
            "Australia/Lord_Howe",
            "2026-01-01",
            ZoneOffset(11 * HOUR_MS, ms("2026-04-04T15:00"), 21 * HOUR_MS // 2),
        ),
        ("America/Santiago", "2026-07-01", ZoneOffset(-4 * HOUR_MS, ms("2026-09-06T04:00"), -3 * HOUR_MS)),
    ],
)
def test_a_clock_says_when_it_changes_next(zone: str, at: str, clock: ZoneOffset) -> None:
    assert clock_of(zone, ms(at)) == clock


def test_a_change_is_told_until_no_clock_can_be_before_it() -> None:
    change = ms("2026-03-29T01:00")
    for since in (0, 1, APART_MS - HOUR_MS):
        assert clock_of("Europe/Berlin", change + since).turns_at == change
    assert clock_of("Europe/Berlin", change + APART_MS + HOUR_MS).turns_at == ms("2026-10-25T01:00")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Africa/Casablanca", "Asia/Beirut", "America/St_Johns"])
def test_a_clock_is_exact_up_to_its_change_and_behind_it(zone: str) -> None:
    for day in range(ms("2024-01-01"), ms("2030-01-01"), 11 * DAY_MS):
        clock = clock_of(zone, day)
        assert clock.turns_at > day - APART_MS or clock == (clock.offset, 0, clock.offset)
        # An edition of tzdata may know of no change in the year ahead.
        turns_at = clock.turns_at or day + 370 * DAY_MS
        for at in range(day, turns_at + 27 * DAY_MS, 7 * DAY_MS):
            wanted = clock.offset if at < turns_at else clock.offset_after
            assert offset_at(ZoneInfo(zone), at) == wanted, (zone, day, at)
