"""What webhooks are told, from real rows: each occasion once, tried again until it is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.core.alerts.messages import Delivery, DeliveryOutcome, Mail
from persistence import engine
from persistence.keeper.news import Deliveries, EmptyUpstreamAccount, Notices
from persistence.ledger.writer import LedgerWriter
from tests.connections import connected
from tests.persistence.credits import give
from tests.persistence.scenario import Account, batch_of, rows_of, settle_in


class Receiver:
    """The other side: answers as it is told to, remembers what it got."""

    def __init__(self) -> None:
        self.status: int | None = 204
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        self.got.append((url, headers, body))
        return DeliveryOutcome(self.status, None if self.status == 204 else "refused")


@pytest.fixture
async def deliveries(migrated: str) -> AsyncIterator[Deliveries]:
    pool = engine.create(migrated)
    yield Deliveries(pool)
    await pool.dispose()


@pytest.fixture
async def notices(migrated: str) -> AsyncIterator[Notices]:
    pool = engine.create(migrated)
    yield Notices(pool)
    await pool.dispose()


def now() -> datetime:
    return datetime.now(UTC)


def hook(url: str, events: str = "[]") -> None:
    with connected(url) as connection:
        connection.execute(
            "INSERT INTO webhook (url, events, secret) VALUES ('https://example.com/', %s, 'whsec_AAAA')",
            (events,),
        )


def store(url: str, account: Account) -> None:
    writer = LedgerWriter(url)
    try:
        writer.write_now(batch_of(account))
    finally:
        writer.close()


def half_used(url: str) -> Account:
    """An account that somebody is told of."""
    [account] = settle_in(url, 100)
    account.reset()
    account.consume(55)
    store(url, account)
    return account


def told(url: str) -> list[str]:
    return [str(event) for (event,) in rows_of(url, "SELECT event FROM webhook_delivery ORDER BY id")]


async def deliver(webhook_deliveries: WebhookDeliveries) -> int:
    """Make one attempt of what is due; answers how many."""
    due = await webhook_deliveries.claim()
    for delivery in due:
        await webhook_deliveries.attempt(delivery)
    return len(due)


async def look(notices: Notices) -> None:
    await notices.notice(now() - timedelta(hours=1), now())


async def test_an_organizations_webhook_hears_of_no_other(migrated: str, notices: Notices) -> None:
    ours, theirs = settle_in(migrated, 100, 100)
    for account in (ours, theirs):
        hook(migrated)
        with connected(migrated) as connection:
            connection.execute(
                "UPDATE webhook SET organization_id = %s WHERE organization_id IS NULL",
                [account.organization_id],
            )
    hook(migrated)
    ours.reset()
    ours.consume(50)
    store(migrated, ours)
    await look(notices)
    heard = rows_of(
        migrated,
        "SELECT w.organization_id FROM webhook_delivery AS d JOIN webhook AS w ON w.id = d.webhook_id",
    )
    assert sorted(heard, key=str) == sorted([(ours.organization_id,), (None,)], key=str)


async def test_thresholds_are_told_once_a_cycle(migrated: str, notices: Notices) -> None:
    hook(migrated, '["quota.50", "quota.80", "quota.100"]')
    [account] = settle_in(migrated, 100)
    account.reset()
    account.consume(49)
    store(migrated, account)
    await look(notices)
    assert told(migrated) == []
    for tokens, events in ((1, ["quota.50"]), (35, ["quota.50", "quota.80"]), (1, ["quota.50", "quota.80"])):
        account.consume(tokens)
        store(migrated, account)
        await look(notices)
        await look(notices)
        assert sorted(told(migrated)) == events
    account.consume(50)
    store(migrated, account)
    await look(notices)
    assert sorted(told(migrated)) == ["quota.100", "quota.50", "quota.80"]
    account.reset()
    account.consume(60)
    store(migrated, account)
    await look(notices)
    assert sorted(told(migrated)) == ["quota.100", "quota.50", "quota.50", "quota.80"]


async def test_what_still_stands_is_remembered_longer_than_its_message(
    migrated: str, notices: Notices
) -> None:
    """A month's quota has a cycle of up to 31 days."""
    hook(migrated)
    account = half_used(migrated)
    await look(notices)
    with connected(migrated) as connection:
        connection.execute(
            "UPDATE webhook_delivery SET state = 'delivered', created_at = now() - interval '31 days'"
        )
    account.consume(1)
    store(migrated, account)
    await notices.forget()
    await look(notices)
    await look(notices)
    assert told(migrated) == ["quota.50"]


async def test_staff_hear_once_of_an_empty_account_until_a_good_answer(
    migrated: str, notices: Notices
) -> None:
    """An account that is empty again later is another occasion."""
    [account] = settle_in(migrated, 100)
    hook(migrated)
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET organization_id = %s", [account.organization_id])
    hook(migrated, '["upstream.empty"]')
    first = EmptyUpstreamAccount("0123456789abcdef", "deepseek", 402, 1_796_000_000_000)
    await notices.tell_empty([first])
    await notices.tell_empty([first])
    with connected(migrated) as connection:
        connection.execute(
            "UPDATE webhook_delivery SET state = 'delivered', created_at = now() - interval '31 days'"
        )
    await notices.forget()
    other = EmptyUpstreamAccount("fedcba9876543210", "deepseek", 429, 1_796_000_000_500)
    await notices.tell_empty([first, other])
    await notices.tell_empty([first._replace(since_ms=1_796_000_900_000)])
    assert rows_of(migrated, "SELECT organization_id, payload FROM webhook_delivery JOIN webhook AS w"
                   " ON w.id = webhook_id ORDER BY webhook_delivery.id") == [
        (None, {"upstream": "deepseek", "status": 402, "since": "2026-11-30T00:53:20Z"}),
        (None, {"upstream": "deepseek", "status": 429, "since": "2026-11-30T00:53:20.500000Z"}),
        (None, {"upstream": "deepseek", "status": 402, "since": "2026-11-30T01:08:20Z"}),
    ]  # fmt: skip


async def test_who_did_not_answer_is_forgotten_with_the_link(migrated: str, notices: Notices) -> None:
    hook(migrated)
    [account] = settle_in(migrated, 100)
    with connected(migrated) as connection:
        connection.execute(
            """INSERT INTO mail_consent (organization_id, address, mailbox, asked_at, expires_at, given_at)
               SELECT %s, address, address, now() - asked::interval, now() + expires::interval, given
                 FROM (VALUES ('agreed', '1 year', '-1 year', now()), ('asked', '6 days', '1 day', NULL),
                              ('over', '8 days', '-1 hour', NULL), ('waits', '29 days', NULL, NULL),
                              ('never sent', '31 days', NULL, NULL)) AS v (address, asked, expires, given)""",
            (account.organization_id,),
        )
    await notices.forget()
    left = rows_of(migrated, "SELECT address FROM mail_consent ORDER BY address")
    assert left == [("agreed",), ("asked",), ("waits",)]


async def test_messages_of_a_webhook_that_is_gone_end_too(migrated: str, notices: Notices) -> None:
    hook(migrated, '["tenant.blocked"]')
    [account] = settle_in(migrated, 100)
    account.consume(100)
    store(migrated, account)
    await look(notices)
    assert told(migrated) == ["tenant.blocked"]
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET deleted_at = now()")
        connection.execute(
            "UPDATE webhook_delivery SET state = 'delivered', created_at = now() - interval '31 days'"
        )
    await notices.forget()
    assert told(migrated) == []


async def test_blocked_and_unblocked(migrated: str, notices: Notices) -> None:
    hook(migrated, '["tenant.blocked", "tenant.unblocked"]')
    [account] = settle_in(migrated, 100)
    account.reset()
    account.consume(100)
    store(migrated, account)
    await look(notices)
    account.reset()
    store(migrated, account)
    await look(notices)
    await look(notices)
    assert told(migrated) == ["tenant.blocked", "tenant.unblocked"]


async def test_credits_are_low_at_a_tenth_of_the_last_addition(migrated: str, notices: Notices) -> None:
    hook(migrated, '["credits.low"]')
    [account] = settle_in(migrated, None)
    give(migrated, account, 100)
    account.consume(None, credits_=89)
    store(migrated, account)
    await look(notices)
    assert told(migrated) == []
    account.consume(None, credits_=1)
    store(migrated, account)
    await look(notices)
    account.consume(None, credits_=1)
    store(migrated, account)
    await look(notices)
    assert told(migrated) == ["credits.low"]
    give(migrated, account, 1_000)
    account.consume(None, credits_=1_000)
    store(migrated, account)
    await look(notices)
    assert told(migrated) == ["credits.low"] * 2


async def test_a_subscription_that_ends_soon(migrated: str, notices: Notices) -> None:
    hook(migrated, '["subscription.ending"]')
    [account] = settle_in(migrated, None)
    with connected(migrated) as connection:
        connection.execute(
            "WITH p AS (INSERT INTO subscription_plan (name, monthly_cost, annual_cost) VALUES ('p', 1, 1)"
            " RETURNING id) INSERT INTO organization_subscription (organization_id, plan_id, start_date,"
            " end_date, status) SELECT %s, id, '2026-01-01', %s, 'active' FROM p",
            (account.organization_id, now().date() + timedelta(days=7)),
        )
    await look(notices)
    await look(notices)
    assert told(migrated) == ["subscription.ending"]


async def test_a_message_is_tried_until_it_is_taken(
    migrated: str, notices: Notices, deliveries: Deliveries
) -> None:
    hook(migrated)
    half_used(migrated)
    receiver = Receiver()
    webhook_deliveries = WebhookDeliveries(deliveries, receiver, now)
    await look(notices)
    receiver.status = 503
    assert await deliver(webhook_deliveries) == 1
    assert await deliver(webhook_deliveries) == 0
    state = "SELECT state, attempts, response_status, error, next_attempt_at > now() FROM webhook_delivery"
    assert rows_of(migrated, state) == [("pending", 1, 503, "refused", True)]
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook_delivery SET next_attempt_at = now()")
    receiver.status = 204
    assert await deliver(webhook_deliveries) == 1
    assert rows_of(migrated, state)[0][:4] == ("delivered", 2, 204, None)
    [(_, first, body), (_, again, same)] = receiver.got
    assert (first["webhook-id"], body) == (again["webhook-id"], same)


class Postbox:
    """A mail server: notes what it is sent."""

    sender = "tollkeeper@example.com"

    def __init__(self) -> None:
        self.got: list[Mail] = []

    async def send(self, mail: Mail) -> DeliveryOutcome:
        self.got.append(mail)
        return DeliveryOutcome(250)


async def test_a_message_goes_by_mail_where_the_url_says_so(
    migrated: str, notices: Notices, deliveries: Deliveries
) -> None:
    hook(migrated)
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET url = 'mailto:a@example.com,b@example.com'")
    half_used(migrated)
    receiver, post = Receiver(), Postbox()
    webhook_deliveries = WebhookDeliveries(deliveries, receiver, now, mailer=post)
    await look(notices)
    assert await deliver(webhook_deliveries) == 1
    [sent] = post.got
    assert (sent.recipients, receiver.got) == (("a@example.com", "b@example.com"), [])
    assert b"Subject: [Tollkeeper] 50 % of the tokens are used" in sent.content
    state = "SELECT state, attempts, response_status FROM webhook_delivery"
    assert rows_of(migrated, state) == [("delivered", 1, 250)]


async def test_without_a_mail_server_a_mail_waits(
    migrated: str, notices: Notices, deliveries: Deliveries
) -> None:
    """One that was set up, and is no longer."""
    hook(migrated)
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET url = 'mailto:a@example.com'")
    half_used(migrated)
    webhook_deliveries = WebhookDeliveries(deliveries, Receiver(), now)
    await look(notices)
    assert await deliver(webhook_deliveries) == 1
    state = "SELECT state, attempts, error FROM webhook_delivery"
    assert rows_of(migrated, state) == [("pending", 1, "mail is not set up")]


async def test_a_message_nobody_takes_is_given_up(
    migrated: str, notices: Notices, deliveries: Deliveries
) -> None:
    hook(migrated)
    half_used(migrated)
    await look(notices)
    for _ in range(10):
        [delivery] = await deliveries.claim_due(10, 10)
        assert isinstance(delivery, Delivery)
        await deliveries.done(delivery, DeliveryOutcome(None, "no answer"))
        with connected(migrated) as connection:
            connection.execute("UPDATE webhook_delivery SET next_attempt_at = now()")
    assert await deliveries.claim_due(10, 10) == []
    assert rows_of(migrated, "SELECT state, attempts FROM webhook_delivery") == [("failed", 10)]


async def test_a_webhook_that_is_gone_is_told_nothing(
    migrated: str, notices: Notices, deliveries: Deliveries
) -> None:
    hook(migrated)
    half_used(migrated)
    await look(notices)
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET deleted_at = now()")
    assert await deliveries.claim_due(10, 10) == []
    assert rows_of(migrated, "SELECT state FROM webhook_delivery") == [("failed",)]
