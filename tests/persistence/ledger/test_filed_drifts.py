"""What was wrong once, is on file and was made good, contradicts nothing afterwards."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventFlag, EventKind, EventNote, WindowKey
from persistence import engine
from persistence.billing.credit_balances import Allocations
from persistence.keeper.verification import Accounts
from persistence.ledger import checkpoints
from tests.features.archive.aging import months_made
from tests.persistence.ledger.test_budget_moves import budget_of
from tests.persistence.ledger.test_checkpoints import Past
from tests.persistence.scenario import broken, rows_of


@pytest.fixture
async def young(cloned: str) -> AsyncIterator[Past]:
    """An organization in its first January."""
    months_made(cloned, "2026-01-01Z", 8)
    past = Past(cloned, 1_000_000)
    past.begin()
    yield past
    await past.end()


def filed(past: Past, account: str, seq: int, difference: int) -> None:
    rows_of(
        past.url,
        "INSERT INTO known_drift (account, seq, difference) VALUES (%s, %s, %s) RETURNING 1",
        [account, seq, difference],
    )


def ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)


async def allocated(past: Past) -> None:
    while not await Allocations(past.pool).allocate(past.account.organization_id):
        pass


async def told(past: Past) -> set[str]:
    return {each.invariant for each in await broken(past.url)}


async def nothing_wrong(past: Past) -> None:
    past.store()
    await allocated(past)
    assert await told(past) == set()


async def test_tokens_that_were_put_right_are_no_contradiction(young: Past) -> None:
    account = young.account
    for _ in range(3):
        young.use(3)
    filed(young, f"tenant:{account.tenant_id}", account.seq, 3)
    account.used -= 3
    account.remaining += 3
    account.grant(EventKind.ADJUST, -3)
    young.use(3)
    await nothing_wrong(young)
    rows_of(young.url, "UPDATE tenant_quota SET tokens_remaining = tokens_remaining + 1 RETURNING 1")
    assert await told(young) == {"quota"}


@pytest.mark.parametrize("more", [0, 2], ids=["behind the last movement of its month", "within its month"])
async def test_a_drift_of_spend_is_of_the_month_it_is_behind(young: Past, more: int) -> None:
    account = young.account
    for _ in range(3):
        young.use(3)
    young.store()
    filed(young, f"spend:{account.organization_id}", account.spend_seq, 5)
    account.spent += 5
    for _ in range(more):
        young.use(3)
    await nothing_wrong(young)
    for _ in range(2):
        young.on(31)
        await young.close()
        young.use(3)
        young.use(3)
        await nothing_wrong(young)
        name = f"spend:{account.organization_id}"
        said = await Accounts(young.pool).accounts({name: account.spend_seq}, deep=True)
        assert said[name].summed == said[name].last_row


async def test_a_call_of_january_that_is_corrected_in_february_moves_what_is_used_of_february(
    young: Past,
) -> None:
    account = young.account
    budget = budget_of(young.url, account, "tokens")
    rows_of(young.url, "UPDATE budget SET updated_at = '2026-01-02Z' RETURNING 1")
    facts = write_facts(CallFacts(model="m", status=200, counts=(7,) + (0,) * 9, total=7))
    later = write_facts(CallFacts(model="m", status=200, counts=(10,) + (0,) * 9, total=10))

    def day(text: str) -> tuple[WindowKey, ...]:
        return (WindowKey(budget, ms(text), ""),)

    def call(at: str, note: int = 0) -> str:
        account.at_ms = ms(at)
        made = account.consume(
            7, metadata=facts, note=note, budgets=day(at[:10]), money=0, raw_tokens=7, requests=1
        )
        return made.source

    call("2026-01-20T10:00")
    reclaimed = call("2026-01-31T23:59", int(EventNote.RECLAIMED))
    call("2026-02-01T00:03")
    account.seq += 1
    account.remaining -= 3
    account.emit(
        EventKind.ADJUST, EventFlag.TOKENS, amount=3, source=str(uuid.uuid4()),
        metadata=mark_as_correction(later, reclaimed, "reclaimed"), budgets=day("2026-02-01"), money=0, raw_tokens=3,
        requests=0,
    )  # fmt: skip
    young.store()
    await allocated(young)
    assert "budgets" not in await told(young)
    rows_of(young.url, "UPDATE budget_use SET used = used + 1 RETURNING 1")
    assert "budgets" in await told(young)


async def test_more_than_is_told_is_said(young: Past) -> None:
    young.use(3)
    await nothing_wrong(young)
    rows_of(young.url, "UPDATE organization SET credit_balance = credit_balance + 1 RETURNING 1")
    rows_of(young.url, "UPDATE tenant_quota SET tokens_remaining = tokens_remaining + 1 RETURNING 1")
    pool = engine.create(young.url)
    async with pool.connect() as connection:
        assert [one.invariant for one in await checkpoints.violations(connection, most=1)] == [
            "quota",
            "more",
        ]
    await pool.dispose()
