"""What a month came to is added up once, and stands for its movements when accounts are compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.outbox import EventFlag, EventKind, decode
from gateway.core.integrity.reconciliation import DifferenceKind, Owner
from persistence import engine as engines
from persistence.keeper import verification
from persistence.keeper.verification import Accounts
from persistence.ledger.checkpoints import Checkpoints, count_again
from persistence.ledger.writer import LedgerWriter
from tests.builders import encode
from tests.connections import connected
from tests.persistence.scenario import batch_of, broken, rows_of, settle_in
from tests.search import examples

BEGINS = datetime(2026, 1, 20, tzinfo=UTC)
MONTHS_ON = st.tuples(st.just("on"), st.integers(1, 45))
STEPS = st.one_of(
    MONTHS_ON,
    st.tuples(st.just("use"), st.integers(0, 900)),
    st.tuples(st.just("use"), st.integers(0, 900)),
    st.tuples(st.just("grant"), st.integers(-50, 500)),
    st.tuples(st.just("credit"), st.integers(-50, 500)),
    st.tuples(st.just("unlimited"), st.none()),
    st.tuples(st.just("limited"), st.integers(1, 5_000)),
    st.tuples(st.just("close"), st.none()),
)


class Past:
    """An organization's accounts through the months, and our own count of what they come to."""

    def __init__(self, url: str, movements_max: int) -> None:
        self.url = url
        [self.account] = settle_in(url, 1_000)
        self.writer, self.pool = LedgerWriter(url), engines.create(url)
        self.movements_max = movements_max
        self.tokens: list[int | None] = []
        self.credits: list[int] = []
        self.spends: list[tuple[str, int]] = []
        self.account.at_ms = int(BEGINS.timestamp() * 1000)

    @property
    def today(self) -> date:
        return datetime.fromtimestamp(self.account.at_ms / 1000, UTC).date()

    def begin(self) -> None:
        self.account.reset()
        self.tokens.append(1_000)

    def on(self, days: int) -> None:
        self.account.at_ms += days * 86_400_000

    def use(self, count: int) -> None:
        self.account.consume(count, credits_=count % 7, units=1, spend=count)
        self.tokens.append(None if self.account.total is None else -count)
        self.credits.append(-(count % 7))
        self.spends.append((f"{self.today:%Y-%m}", count))

    def grant(self, count: int) -> None:
        self.account.grant(EventKind.RECHARGE if count >= 0 else EventKind.ADJUST, count)
        self.tokens.append(None if self.account.total is None else count)

    def credit(self, count: int) -> None:
        self.account.credit(count)
        self.credits.append(count)

    def unlimited(self, _: None) -> None:
        account, before = self.account, 0 if self.account.total is None else self.account.remaining
        account.total, account.seq, account.remaining = None, account.seq + 1, 0
        inward = EventFlag.IN if before < 0 else EventFlag(0)
        account.emit(EventKind.ADJUST, EventFlag.TOKENS | inward, amount=abs(before))
        self.tokens.append(None)

    def limited(self, total: int) -> None:
        account = self.account
        before = 0 if account.total is None else account.remaining
        account.total, account.seq, account.remaining = total, account.seq + 1, total
        inward = EventFlag.IN if total >= before else EventFlag(0)
        account.emit(EventKind.ADJUST, EventFlag.TOKENS | inward, amount=abs(total - before))
        self.tokens.append(total - before)

    async def close(self, open_month: date | None = None) -> int:
        self.store()
        checkpoints = Checkpoints(self.pool, movements_max=self.movements_max)
        owners = await checkpoints.after(self.account.organization_id - 1, 1)
        return await checkpoints.close_months(owners, open_month or self.today.replace(day=1))

    def store(self) -> None:
        self.writer.write_now(batch_of(self.account))

    async def compare(self) -> None:
        """What is told of each account is what we counted."""
        self.store()
        account = self.account
        owner = Owner(account.organization_id, (account.tenant_id,))
        seqs = dict(zip(owner.accounts, (account.seq, account.credit_seq, account.spend_seq), strict=True))
        found = await Accounts(self.pool).accounts(seqs, deep=True)
        expected = dict(zip(owner.accounts, self._counted(), strict=True))
        told = {name: (one.rows, one.summed, one.last_row) for name, one in found.items()}
        assert told == {name: (rows, came_to, came_to) for name, (rows, came_to) in expected.items()}
        assert await Accounts(self.pool).disproved([owner], 100) == []

    def _counted(self) -> list[tuple[int, int | None]]:
        since = [number + 1 for number, delta in enumerate(self.tokens) if delta is None]
        tokens = [delta for delta in self.tokens[since[-1] if since else 0 :] if delta is not None]
        last = self.spends[-1][0] if self.spends else ""
        return [
            (len(self.tokens), None if self.tokens[-1] is None else sum(tokens)),
            (len(self.credits), sum(self.credits)),
            (len(self.spends), sum(count for month, count in self.spends if month == last)),
        ]

    async def end(self) -> None:
        self.writer.close()
        await self.pool.dispose()


@settings(
    max_examples=examples(8), phases=(Phase.explicit, Phase.generate)
)  # fmt: skip
@given(steps=st.lists(STEPS, min_size=6, max_size=30), movements_max=st.sampled_from([2, 5, 1_000]))
def test_months_that_are_over_stand_for_their_movements(
    migrated: str, steps: list[tuple[str, Any]], movements_max: int
) -> None:
    asyncio.run(live(migrated, steps, movements_max))


async def live(url: str, steps: list[tuple[str, Any]], movements_max: int) -> None:
    past = Past(url, movements_max)
    past.begin()
    try:
        for what, how in [*steps, ("on", 40), ("use", 3), ("close", None)]:
            if what == "close":
                await past.close()
                await past.compare()
                assert await broken(url) == []
            else:
                getattr(past, what)(how)
        await past.compare()
        assert await past.close() == 0
        name = [f"tenant:{past.account.tenant_id}"]
        [(kept,)] = rows_of(url, "SELECT sum(movements) FROM checkpoint_in_force WHERE account = %s", name)
        # The last use is of the month that is open.
        assert kept == len(past.tokens) - 1
        assert await broken(url) == []
    finally:
        await past.end()


@pytest.fixture
async def old(migrated: str) -> AsyncIterator[Past]:
    """Three months of movements, the first two of them closed."""
    past = Past(migrated, 1_000_000)
    past.begin()
    for _ in range(3):
        for count in range(200):
            past.use(count)
        past.on(31)
    past.on(-31)
    assert await past.close() == 6
    yield past
    await past.end()


async def test_comparing_reads_the_open_month_alone(old: Past) -> None:
    """By what PostgreSQL says of its scans: a closed month's rows are never fetched."""
    account = old.account
    kinds = {
        "tenant": account.tenant_id,
        "credits": account.organization_id,
        "spend": account.organization_id,
    }
    ledgers = ("token_ledger", "credit_transaction", "credit_posting", "feature_usage")
    for kind, owner in kinds.items():
        _, sums = verification._READS[kind]
        async with old.pool.connect() as connection:
            explained = f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {sums.text}"
            found = await connection.exec_driver_sql(explained.replace(":ids", "%(ids)s"), {"ids": [owner]})
            [plan] = found.scalar_one()
        fetched = sum(
            node["Actual Rows"] * node["Actual Loops"]
            for node in nodes(plan["Plan"])
            if node.get("Relation Name", "").startswith(ledgers)
        )
        assert fetched == 200, kind
    await old.compare()


async def test_what_is_stored_late_has_a_checkpoint_of_its_own(old: Past) -> None:
    assert await old.close() == 0
    april = date(2026, 4, 1)
    assert await old.close(april) == 3
    # What was under way at the month's end: a time before it, a seq behind what is closed.
    old.use(11)
    await old.compare()
    assert (await old.close(april), await old.close(april)) == (3, 0)
    old.on(31)
    old.use(5)
    await old.compare()
    assert await broken(old.url) == []


async def test_a_movement_that_takes_its_place_is_counted_in_its_month(migrated: str) -> None:
    past = Past(migrated, 1_000_000)
    past.begin()
    past.use(40)
    lost = past.account.consume(7)
    entry_id, packed = past.account.entries[-1]
    past.account.entries[-1] = (entry_id, encode(replace(decode(packed), amount=2**60)))
    past.use(30)
    past.on(31)
    past.use(3)
    assert await past.close() == 3
    assert {kind.account for kind in await broken(migrated)} == set()
    with connected(migrated) as connection:
        connection.execute(
            "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
            " created_at, epoch, seq, cycle, request_id)"
            " VALUES (%s, 'consume', 7, %s, 'OUT', '2026-01-20', 1, %s, 1, %s)",
            (past.account.tenant_id, lost.remaining, lost.seq, lost.source),
        )
    assert [each.invariant for each in await broken(migrated) if each.invariant == "checkpoints"]
    async with past.pool.begin() as connection:
        await connection.run_sync(count_again, [(f"tenant:{past.account.tenant_id}", lost.seq)])
    assert not [each for each in await broken(migrated) if each.invariant == "checkpoints"]
    [(versions, movements)] = rows_of(
        migrated,
        "SELECT max(version), max(movements) FROM account_checkpoint WHERE starts_with(account, 'tenant:')",
    )
    assert (versions, movements) == (2, 4)
    await past.end()


async def test_a_closed_month_that_was_changed_is_told(old: Past) -> None:
    url, account = old.url, old.account
    owner = Owner(account.organization_id, (account.tenant_id,))
    with connected(url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE token_ledger SET amount = amount + 5 WHERE seq = 10")
    found = await Accounts(old.pool).disproved([owner], 100)
    assert [(item.account, item.kind, item.difference) for item in found] == [
        (f"tenant:{account.tenant_id}", DifferenceKind.DRIFT, 5)
    ]
    assert "their checkpoint says 201" in found[0].detail
    # The chain says it too; a comparison of the open month does not.
    assert {"chain", "checkpoints"} <= {each.invariant for each in await broken(url)}


@pytest.mark.parametrize(
    "statement", ["UPDATE account_checkpoint SET amount = 0", "DELETE FROM account_checkpoint"]
)
async def test_a_checkpoint_is_never_changed(old: Past, statement: str) -> None:
    with connected(old.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute(statement)  # type: ignore[arg-type]  # SQL of our own


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's node and all below it."""
    return [plan, *(node for below in plan.get("Plans", ()) for node in nodes(below))]
