"""What was used, at a billing service: each use once, whatever dies, is refused or comes again."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.holds import LateSettlement
from gateway.core.accounts.outbox import EventKind
from gateway.core.model import Caller, Settlement
from gateway.features.usage_feed.events import Terms
from persistence.keeper.sweeps import Sweeps
from persistence.ledger.writer import LedgerWriter
from persistence.usage_feed.queue import FeedQueue
from tests.builders import CHAT
from tests.features.usage_feed.fed import fed
from tests.features.usage_feed.usage_servers import Failure
from tests.persistence.scenario import Account, batch_of, rows_of, settle_in

FACTS = CallFacts(
    model="m", status=200, duration_ms=9, counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0), total=21, units=1,
    cost=354_000_001, currency="USD", price_id=3, route="/v1/messages",
)  # fmt: skip


def opened(url: str) -> Account:
    [account] = settle_in(url, 10**9)
    account.reset()
    return account


def use(account: Account, count: int = 1, **facts: object) -> None:
    for _ in range(count):
        account.consume(21, metadata=write_facts(msgspec.structs.replace(FACTS, **facts)))


@pytest.mark.parametrize("lago", [True, False], ids=["lago", "openmeter"])
async def test_usage_event_contains_the_organization_tenant_user_and_amounts_of_a_call(
    migrated: str, writer: LedgerWriter, *, lago: bool
) -> None:
    account = opened(migrated)
    account.credit(100)
    async with fed(migrated, lago=lago) as feed:
        event = account.consume(
            21, credits_=3, user="ann", attribution="7\t8\tv3", metadata=write_facts(FACTS)
        )
        await writer.write(batch_of(account))
        await feed.drain()
        name = f"{event.source}:use"
        [(key,)] = rows_of(migrated, "SELECT key FROM service WHERE id = 1")
        [(organization,)] = rows_of(migrated, "SELECT name FROM organization")
        [(tenant,)] = rows_of(migrated, "SELECT name FROM tenant")
        assert feed.billing.events == {
            name: {
                "kind": "use", "request_id": event.source, "organization": organization, "tenant": tenant,
                "tenant_id": str(account.tenant_id), "user": "ann", "project_id": "8", "api_key_id": "5",
                "service": key, "model": "m", "currency": "USD", "requests": "1", "input": "5",
                "cache_read": "4", "cache_write": "5", "output": "7", "reasoning": "6", "tokens": "21",
                "credits": "3", "units": "1", "cost": "0.354000001",
                "used_at": datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
            }
        }  # fmt: skip
        assert feed.billing.subjects == {name: str(account.organization_id)}
        assert feed.billing.times == {name: event.at_ms / 1000}
        assert (feed.out(), feed.feed("sent, attempts, error")) == ([], (1, 0, None))
        feed.agree()


async def test_usage_events_are_queued_only_for_use_between_the_begin_and_end_of_a_usage_feed(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    use(account, 3)
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT count(*) FROM usage_outbox") == [(0,)]
    async with fed(migrated) as feed:
        ahead = "UPDATE usage_feed SET begun_at = to_timestamp(%s / 1000.0) RETURNING id"
        rows_of(migrated, ahead, [account.at_ms + 2])
        use(account, 5)
        await writer.write(batch_of(account))
        assert len(feed.out()) == 3
        rows_of(
            migrated,
            "UPDATE usage_feed SET ended_at = to_timestamp(%s / 1000.0) RETURNING id",
            [account.at_ms],
        )
        use(account, 5)
        await writer.write(batch_of(account))
        assert len(feed.out()) == 3


async def test_usage_event_has_the_tags_of_its_call(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account, tags={"feature": "search", "team": "7"})
        use(account)
        await writer.write(batch_of(account))
        await feed.drain()
        found = [
            {name: text for name, text in event.items() if name.startswith("tag:")}
            for event in feed.billing.events.values()
        ]
        assert sorted(found, key=len) == [{}, {"tag:feature": "search", "tag:team": "7"}]


async def test_usage_event_names_the_step_of_its_call(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account, step=("opus", 7, "team", 3))
        use(account)
        await writer.write(batch_of(account))
        await feed.drain()
        names = [
            (event.get("model_asked"), event.get("substituted_by")) for event in feed.billing.events.values()
        ]
        assert sorted(names, key=str) == [("opus", "team"), (None, None)]


async def test_call_that_used_no_tokens_makes_no_usage_event(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        account.consume(0, metadata=write_facts(CallFacts(status=502, reason="upstream_unreachable")))
        await writer.write(batch_of(account))
        assert rows_of(migrated, "SELECT count(*) FROM call") == [(1,)]
        assert feed.out() == []


async def test_call_stored_twice_makes_a_single_usage_event(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account, 4)
        batch = batch_of(account)
        await writer.write(batch)
        await writer.write(batch)
        assert len(feed.out()) == 4


async def test_late_settlement_of_a_call_is_sent_as_a_separate_usage_event_with_the_difference(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    account.credit(100)
    request = str(uuid.uuid4())
    async with fed(migrated) as feed:
        seen = b'{"estimated":true,"reclaimed":true,"model":"m"}'
        account.consume(5, credits_=1, request_id=request, metadata=seen)
        await writer.write(batch_of(account))
        await feed.drain()
        account.consume(
            16, credits_=2, kind=EventKind.ADJUST,
            metadata=mark_as_correction(write_facts(FACTS), request, "settled late"),
        )  # fmt: skip
        await writer.write(batch_of(account))
        await feed.drain()
        first, second = sorted(feed.billing.events.items(), key=lambda each: each[1]["kind"] != "use")
        assert first[0] == f"{request}:use"
        assert second[0].startswith(f"{request}:")
        told = [
            (each["kind"], each["requests"], each["tokens"], each["credits"]) for _, each in (first, second)
        ]
        assert told == [("use", "1", "5", "1"), ("late", "0", "16", "2")]
        assert first[1]["used_at"] == second[1]["used_at"]
        # A difference counts when it became known.
        assert feed.billing.times[second[0]] != feed.billing.times[first[0]]
        feed.agree()


async def test_credits_refunded_by_a_late_settlement_are_sent_once_as_a_negative_usage_event(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    account.credit(100)
    async with fed(migrated) as feed:
        charged = account.consume(21, credits_=18, metadata=write_facts(FACTS))
        await writer.write(batch_of(account))
        caller = Caller(account.organization_id, account.tenant_id, 3, account.partition)
        settled = Settlement(caller, charged.source, "", CHAT, charge=True)
        for _ in range(2):
            await Sweeps(feed.pool).refund(LateSettlement(b"1-0", settled, 0), 7)
        assert [(kind, credits_) for kind, _, _, _, credits_, *_ in feed.out()] == [
            ("use", 18),
            ("refunded", -7),
        ]
        await feed.drain()
        feed.agree()


async def test_late_correction_of_the_model_of_a_call_moves_the_sent_tokens_to_the_new_model(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    async with fed(migrated) as feed:
        account.consume(5, request_id=request, metadata=b'{"model":"seen","reclaimed":true}')
        await writer.write(batch_of(account))
        more = mark_as_correction(write_facts(FACTS), request, "settled late")
        account.consume(16, kind=EventKind.ADJUST, metadata=more)
        await writer.write(batch_of(account))
        await feed.drain()
        by_model: dict[str, int] = {}
        for each in feed.billing.events.values():
            by_model[each["model"]] = by_model.get(each["model"], 0) + int(each["tokens"])
        assert by_model == {"seen": 0, "m": 21}
        feed.agree()


@pytest.mark.parametrize("lago", [True, False], ids=["lago", "openmeter"])
async def test_keeper_that_dies_after_sending_usage_events_causes_no_use_to_be_counted_twice(
    migrated: str, writer: LedgerWriter, *, lago: bool
) -> None:
    account = opened(migrated)
    async with fed(migrated, lago=lago) as feed:
        use(account, 250)
        await writer.write(batch_of(account))
        dead = FeedQueue(feed.pool)
        events = await dead.claim(feed.terms.service, 400)
        assert len(events) == 250
        sent = await feed.service.send(events[:100])
        assert len(sent.taken) == 100
        # Nobody else sends while it may be alive.
        assert await feed.queue.claim(feed.terms.service, 400) == ()
        feed.pass_time()
        use(account, 3)
        await writer.write(batch_of(account))
        await feed.drain()
        assert (len(feed.billing.events), feed.billing.repeated, feed.out()) == (253, 100, [])
        assert feed.feed("sent") == (253,)
        feed.agree()


async def test_stopping_keeper_releases_the_usage_feed_to_another_keeper(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account)
        await writer.write(batch_of(account))
        first = FeedQueue(feed.pool)
        assert len(await first.claim(feed.terms.service, 1)) == 1
        await first.release()
        assert len(await feed.queue.claim(feed.terms.service, 1)) == 1
        await first.release()
        assert len(await feed.queue.claim(feed.terms.service, 1)) == 1


async def test_usage_feed_pauses_longer_each_time_the_billing_service_is_unavailable(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account, 2)
        await writer.write(batch_of(account))
        feed.billing.fail = lambda _: Failure(503)
        rows_of(migrated, "UPDATE usage_feed SET attempts = 5 RETURNING id")
        for attempts, least, most in ((6, 80, 160), (7, 160, 300), (8, 160, 300)):
            await feed.drain()
            assert await feed.queue.claim(feed.terms.service, 1) == (), "it pauses"
            made, seconds = feed.feed("attempts, extract(epoch FROM paused_until - now())::float8")
            assert made == attempts
            assert least < seconds <= most
            feed.pass_time()
        assert feed.billing.requests == 3
        assert "503" in feed.feed("error")[0]
        assert feed.said[-1]["what"] == "usage feed pauses"
        feed.billing.fail = lambda _: None
        await feed.drain()
        assert feed.feed("attempts, error, paused_until, sent") == (0, None, None, 2)
        feed.agree()


async def test_usage_feed_pauses_as_long_as_retry_after_says_up_to_an_hour(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    async with fed(migrated) as feed:
        use(account)
        await writer.write(batch_of(account))
        asked = iter(("120", "999999999999"))
        feed.billing.fail = lambda _: Failure(429, {"Retry-After": next(asked)})
        for low, high in ((100, 120), (3_500, 3_600)):
            await feed.drain()
            [(seconds,)] = rows_of(
                migrated, "SELECT extract(epoch FROM paused_until - now()) FROM usage_feed"
            )
            assert low < float(str(seconds)) <= high
            feed.pass_time()


@pytest.mark.parametrize("lago", [True, False], ids=["lago", "openmeter"])
async def test_usage_event_refused_by_the_service_is_stored_as_failed_and_other_events_are_sent(
    migrated: str, writer: LedgerWriter, *, lago: bool
) -> None:
    account = opened(migrated)
    async with fed(migrated, lago=lago) as feed:
        use(account, 20)
        bad = account.consume(21, metadata=write_facts(FACTS))
        use(account, 20)
        await writer.write(batch_of(account))
        feed.billing.poison = {bad.source}
        await feed.drain()
        assert len(feed.billing.events) == 40
        [(name, state, error)] = rows_of(migrated, "SELECT name, state, error FROM usage_outbox")
        assert (name, state) == (f"{bad.source}:use", "failed")
        assert ("metric_not_found" if lago else "400") in str(error)
        assert [each["what"] for each in feed.said] == ["usage event refused"]


async def test_usage_feed_stops_sending_after_the_service_refused_too_many_events(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    async with fed(migrated, failed_max=10) as feed:
        use(account, 12)
        await writer.write(batch_of(account))
        feed.billing.poison = {":use"}
        await feed.drain()
        use(account, 1)
        await writer.write(batch_of(account))
        before = feed.billing.requests
        await feed.drain()
        assert feed.billing.requests == before
        assert [state for _, state, *_ in feed.out()].count("waiting") == 1


async def test_too_many_waiting_usage_events_are_merged_by_hour_without_losing_use(
    migrated: str, writer: LedgerWriter
) -> None:
    account, other = settle_in(migrated, 10**9, 10**9)
    account.at_ms = other.at_ms = account.at_ms - account.at_ms % 3_600_000
    for each in (account, other):
        each.reset()
    async with fed(migrated, waiting_max=10) as feed:
        for turn in range(20):
            for each in (account, other):
                use(each, 3, model=f"m{turn % 2}")
                each.consume(21, user=f"user {turn}", metadata=write_facts(FACTS))
            await writer.write(batch_of(account, other))
        kinds = [kind for kind, *_ in feed.out()]
        # Two flushes of eight; then of two organizations three models each, in one hour.
        assert (kinds.count("use"), kinds.count("folded")) == (16, 6)
        assert sum(requests for _, _, requests, *_ in feed.out()) == 160
        # What was taken to be sent is not added to: its answer may be lost.
        dead = FeedQueue(feed.pool)
        taken = await dead.claim(feed.terms.service, 400)
        assert len(taken) == 22
        await feed.service.send(taken[:100])
        for each in (account, other):
            use(each, 2)
        await writer.write(batch_of(account, other))
        feed.pass_time()
        await feed.drain()
        assert feed.billing.repeated == 22
        assert feed.out() == []
        feed.agree()


async def test_far_too_many_waiting_usage_events_are_merged_even_across_models(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    async with fed(migrated, waiting_max=10) as feed:
        for number in range(40):
            use(account, 1, model=f"made up {number}")
            await writer.write(batch_of(account))
        models = rows_of(migrated, "SELECT model FROM usage_outbox WHERE kind = 'folded'")
        assert len(feed.out()) <= 22
        assert ("other",) in models
        await feed.drain()
        feed.agree()


async def test_open_usage_feed_continues_after_a_change_of_service_and_maximum(migrated: str) -> None:
    async with fed(migrated) as feed:
        await feed.queue.begin(Terms("openmeter", 5_000))
        assert feed.feed("service, waiting_max, begun_at::date::text") == ("openmeter", 5_000, "2000-01-01")
        assert rows_of(migrated, "SELECT count(*) FROM usage_feed") == [(1,)]


async def test_cost_in_a_usage_event_is_exact_to_the_last_digit(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    costs = [1, 10**9, 10**9 + 1, 999_999_999, 123_456_789_012_345_678]
    async with fed(migrated) as feed:
        for cost in costs:
            use(account, 1, cost=cost)
        use(account, 1, cost=None)
        await writer.write(batch_of(account))
        await feed.drain()
        told = sorted(Decimal(each["cost"]) for each in feed.billing.events.values())
        assert told == [0, *sorted(Decimal(cost) / 10**9 for cost in costs)]
