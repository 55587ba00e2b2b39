"""Who did what, within bounds, taken once; durations fall where a scrape looks for them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.histograms import SECONDS, Histogram
from gateway.http.tally import ANSWERS, SERIES_MAX, Tally, by_class
from tests.http.fakes import CALLER, CHAT, answer, post
from tests.http.stage import Stage, staged
from tests.tree import texts
from tests.waiting import eventually


def test_what_tenants_did_is_taken_once() -> None:
    tally = Tally()
    tally.served(7, 12)
    tally.served(7, 30)
    tally.served(8, 0)
    tally.refused(8, "rate_limited")
    assert tally.take_busy() == {
        (7, "requests"): 2, (7, "tokens"): 42, (8, "requests"): 1, (8, "rate_limited"): 1,
    }  # fmt: skip
    assert tally.take_busy() == {}


def test_tenants_beyond_the_maximum_are_nobody() -> None:
    tally = Tally(tenants_max=2)
    for tenant_id in (1, 2, 3, 4, 1):
        tally.served(tenant_id, 10)
        tally.refused(tenant_id, "rate_limited")
    taken = tally.take_busy()
    assert {tenant_id for tenant_id, _ in taken} == {0, 1, 2}
    assert sum(count for (_, kind), count in taken.items() if kind == "requests") == 5
    assert sum(count for (_, kind), count in taken.items() if kind == "rate_limited") == 5


SERIES = st.tuples(st.sampled_from(["", "/a", "/b"]), st.sampled_from([0, 200, 429]), st.text(max_size=1))


@given(st.lists(SERIES))
def test_requests_in_any_order_are_counted_by_series(asked: list[tuple[str, int, str]]) -> None:
    tally = Tally()
    for one in asked:
        tally.request(*one)
    assert {series: one.count for series, one in tally.requests.items()} == Counter(asked)


def test_series_beyond_the_maximum_are_not_counted() -> None:
    tally = Tally()
    for number in range(SERIES_MAX + 2):
        tally.request("/a", number, "")
    for number in (0, SERIES_MAX, SERIES_MAX):
        tally.request("/a", number, "")
    assert len(tally.requests) == SERIES_MAX
    assert sum(one.count for one in tally.requests.values()) == SERIES_MAX + 1


async def test_a_call_and_a_refusal_are_its_tenants(stage: Stage) -> None:
    await stage.ask(post(CHAT))
    await stage.ask(post(b"{"))
    stage.directory.known = False
    await stage.ask(post(CHAT))
    await eventually(lambda: sum(one.count for one in stage.tally.requests.values()) == 3)
    assert stage.tally.take_busy() == {
        (CALLER.tenant_id, "requests"): 1,
        (CALLER.tenant_id, "tokens"): 12,
        (CALLER.tenant_id, "invalid_request"): 1,
        (0, "invalid_api_key"): 1,
    }


@given(st.floats(-1.0, 1000.0))
def test_an_observation_falls_into_the_first_bucket_it_is_not_above(seconds: float) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    assert histogram.counts.index(1) == sum(bound < seconds for bound in SECONDS)


@given(st.lists(st.floats(-1.0, 1000.0) | st.sampled_from(SECONDS), max_size=30), st.sets(st.integers(0, 30)))
def test_observations_in_any_order_are_those_of_each(seconds: list[float], looks: set[int]) -> None:
    histogram, expected = Histogram(), [0] * (len(SECONDS) + 1)
    for number, one in enumerate(seconds):
        histogram.observe(one)
        expected[sum(bound < one for bound in SECONDS)] += 1
        assert number not in looks or histogram.counts == expected
    assert histogram.snapshot()["buckets"] == expected


@pytest.mark.parametrize("bound", SECONDS)
def test_a_bound_belongs_to_its_own_bucket(bound: float) -> None:
    histogram = Histogram()
    histogram.observe(bound)
    assert histogram.snapshot()["buckets"][SECONDS.index(bound)] == 1
    histogram.observe(bound * (1 + 1e-9))
    assert histogram.counts[SECONDS.index(bound) + 1] == 1


async def test_answers_of_an_upstream_are_counted_by_what_they_say_of_the_call() -> None:
    statuses = (b"200 OK", b"401 Unauthorized", b"404 Not Found", b"418 Odd", b"500 Broken", b"503 Away")
    async with staged() as stage:
        for status in statuses:
            stage.upstream.scripts.append([answer(b"{}", b"", status)])
            assert (await stage.ask(post(CHAT))).status == int(status[:3])
        rows = stage.tally.snapshot()["upstream_answers"]
        assert isinstance(rows, list)
        counted = {status: count for name, status, count in rows if name == "up" and count}
    assert counted == {"2xx": 1, "401": 1, "404": 1, "4xx": 1, "5xx": 2}


def test_the_page_of_metrics_names_each_class_of_answers() -> None:
    page = texts()["docs/metrics.md"]
    [row] = [line for line in page.split("\n") if "upstream_answers_total" in line]
    assert set(re.findall(r"`(\d\w\w)`", row)) == {"1xx", *ANSWERS}


@given(st.lists(st.integers(100, 999)))
def test_each_answer_is_of_one_class(statuses: list[int]) -> None:
    tally = Tally()
    tally.begin_with(("up",))
    for status in statuses:
        tally.answered("up", status)
    found = by_class(tally.upstream_answers["up"])
    assert sum(found.values()) == len(statuses)
    assert set(ANSWERS) <= set(found)
    assert len(found) <= len(ANSWERS) + 5
