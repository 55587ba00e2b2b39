"""Events on their way: in the shape of each service, by halves where one is refused, left for a pause."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gateway.features.usage_feed.events import FeedEvent
from gateway.features.usage_feed.services import CloudEventsWebhook, FeedApi, Lago, OpenMeter, UsageEvents
from gateway.outbound.posting import Outgoing
from tests.features.usage_feed.usage_servers import CODE, TOKEN, Billing, Failure, billing_server

AT = datetime(2026, 4, 1, 12, 0, 0, 123_000, tzinfo=UTC)


@dataclass
class Way:
    billing: Billing
    outgoing: Outgoing

    def to(self, url: str = "", token: str = TOKEN) -> UsageEvents:
        shape: FeedApi = Lago(CODE) if self.billing.lago else OpenMeter(CODE)
        return UsageEvents(self.outgoing.ask, shape, url or self.billing.url, lambda: token)


@pytest.fixture(params=[True, False], ids=["lago", "openmeter"])
async def way(request: pytest.FixtureRequest) -> AsyncIterator[Way]:
    async with billing_server(lago=request.param) as billing:
        outgoing = Outgoing(private=True)
        yield Way(billing, outgoing)
        await outgoing.aclose()


def events(count: int) -> list[FeedEvent]:
    return [
        FeedEvent(number, f"e{number:03}:use", "7", AT, {"tokens": str(number), "cost": "0.5"})
        for number in range(1, count + 1)
    ]


async def test_billing_service_receives_a_batch_of_usage_events_with_subject_amount_and_time(
    way: Way,
) -> None:
    sent = await way.to().send(events(100))
    assert (len(sent.taken), sent.refused, sent.pause) == (100, {}, None)
    assert way.billing.sizes == [100]
    assert way.billing.total("tokens") == 5050
    assert set(way.billing.subjects.values()) == {"7"}
    assert set(way.billing.times.values()) == {AT.timestamp()}


async def test_cloud_events_webhook_receives_the_batch_of_usage_events_at_the_configured_url() -> None:
    async with billing_server(lago=False) as billing:
        outgoing = Outgoing(private=True)
        events_ = UsageEvents(outgoing.ask, CloudEventsWebhook(CODE), billing.url + "/hook", lambda: TOKEN)
        sent = await events_.send(events(7))
        await outgoing.aclose()
    assert (sent.taken, billing.total("tokens"), billing.sizes) == (set(range(1, 8)), 28, [7])


async def test_usage_events_sent_twice_are_accepted_and_counted_once_by_the_billing_service(way: Way) -> None:
    await way.to().send(events(6))
    sent = await way.to().send(events(10))
    assert sent.taken == set(range(1, 11))
    assert (way.billing.total("tokens"), way.billing.repeated) == (55, 6)


@pytest.mark.parametrize("at", [1, 37, 100])
async def test_usage_event_refused_by_the_billing_service_blocks_no_other_event_of_the_batch(
    way: Way, at: int
) -> None:
    way.billing.poison = {f"e{at:03}"}
    sent = await way.to().send(events(100))
    assert sent.taken == set(range(1, 101)) - {at}
    assert way.billing.total("tokens") == 5050 - at
    [(refused, why)] = sent.refused.items()
    assert refused == at
    assert ("metric_not_found" if way.billing.lago else "invalid event") in why
    # Lago says which it is; else seven halves, and each other half.
    assert way.billing.requests <= (2 if way.billing.lago else 2 * 7 + 1)


async def test_refused_usage_events_are_distinguished_from_repeated_events(way: Way) -> None:
    await way.to().send(events(3))
    way.billing.poison = {"e005", "e006"}
    sent = await way.to().send(events(8))
    assert (sent.taken, sent.refused.keys()) == ({1, 2, 3, 4, 7, 8}, {5, 6})


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 408, 429, 500, 502, 503])
async def test_service_error_that_names_no_event_pauses_the_feed_and_leaves_the_whole_batch_unsent(
    way: Way, status: int
) -> None:
    way.billing.fail = lambda _: Failure(status, {"Retry-After": "17"}, body=f"say {TOKEN} nobody")
    sent = await way.to().send(events(10))
    assert (sent.taken, sent.refused, way.billing.requests) == (set(), {}, 1)
    assert sent.pause is not None
    assert sent.pause.seconds == 17
    assert f"it answers {status}" in sent.pause.reason
    assert TOKEN not in sent.pause.reason


async def test_retry_after_date_in_the_answer_of_the_billing_service_sets_the_pause(way: Way) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    way.billing.fail = lambda _: Failure(503, {"Retry-After": soon})
    sent = await way.to().send(events(1))
    assert sent.pause is not None
    assert 3_600 < sent.pause.seconds <= 7_200


@pytest.mark.parametrize("said", ["", "soon", "-3", "Fri, 99 Xxx 2026 99:99:99 GMT", "²"])
async def test_invalid_retry_after_of_the_billing_service_sets_no_waiting_time(way: Way, said: str) -> None:
    way.billing.fail = lambda _: Failure(503, {"Retry-After": said.encode().decode("latin-1")})
    sent = await way.to().send(events(1))
    assert sent.pause is not None
    assert sent.pause.seconds == 0


async def test_usage_feed_pauses_when_the_billing_service_is_unreachable_or_refuses_the_token(
    way: Way,
) -> None:
    sent = await way.to("http://127.0.0.1:9").send(events(2))
    assert sent.pause is not None
    assert "does not answer" in sent.pause.reason
    sent = await way.to(token="another-token-altogether").send(events(2))  # of the tests only
    assert sent.pause is not None
    assert "401" in sent.pause.reason
    assert way.billing.events == {}


async def test_pause_while_a_refused_batch_is_split_leaves_unanswered_events_for_the_next_send(
    way: Way,
) -> None:
    way.billing.poison = {"e001"}
    way.billing.fail = lambda number: Failure(503) if number == 3 else None
    sent = await way.to().send(events(8))
    assert sent.pause is not None or way.billing.lago
    way.billing.fail = lambda _: None
    left = [each for each in events(8) if each.id not in sent.taken and each.id not in sent.refused]
    again = await way.to().send(left)
    assert (again.refused.keys() | sent.refused.keys()) == {1}
    assert way.billing.total("tokens") == 35


async def test_splitting_a_refused_batch_ends_at_the_time_limit_after_a_refused_event_is_found(
    way: Way,
) -> None:
    way.billing.lago = False
    way.billing.poison = {"e"}
    ticks = itertools.count()
    way_there = (way.outgoing.ask, OpenMeter(CODE), way.billing.url, lambda: TOKEN)
    halving = UsageEvents(*way_there, clock=lambda: next(ticks), sending_s_max=8.5)
    sent = await halving.send(events(100))
    assert way.billing.requests == 8
    assert sent.refused.keys() == {1}
    assert (sent.taken, sent.pause) == (set(), None)


@pytest.mark.parametrize("body", ["", "[]", '{"error_details": {"events": ["x"]}}', '{"error_details": 3}'])
async def test_batch_refused_without_naming_an_event_is_split_until_the_service_accepts_the_parts(
    way: Way, body: str
) -> None:
    def fail(number: int) -> Failure | None:
        return Failure(422, body=body) if way.billing.sizes[number - 1] > 2 else None

    way.billing.fail = fail
    sent = await way.to().send(events(5))
    assert sent.taken == {1, 2, 3, 4, 5}
    assert max(way.billing.sizes[1:]) <= 3


async def test_refusal_text_of_the_billing_service_is_cut_to_500_characters(way: Way) -> None:
    way.billing.fail = lambda _: Failure(400, body="é\0x" * 100_000)
    sent = await way.to().send(events(1))
    [why] = sent.refused.values()
    assert len(why) == 500
    assert "\0" not in why
