"""What a month came to is added up once, and stands for its movements when accounts are compared."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.outbox import (
    CallFacts,
    EventFlag,
    EventKind,
    EventNote,
    WindowKey,
    corrected,
    decode,
    write_facts,
)
from gateway.core.integrity.reconciliation import DifferenceKind, Owner
from persistence import engine
from persistence import engine as engines
from persistence.billing.credit_balances import Allocations
from persistence.keeper import verification
from persistence.keeper.verification import Accounts
from persistence.ledger import checkpoints
from persistence.ledger.checkpoints import Checkpoints, count_again
from persistence.ledger.writer import LedgerWriter
from tests.builders import encode
from tests.features.archive.aging import months_made
from tests.persistence.ledger.test_budget_uses import budget_of
from tests.persistence.scenario import batch_of, broken, rows_of, settle_in

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
    max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
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
    with psycopg.connect(migrated) as connection:
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
    with psycopg.connect(url) as connection:
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
    with psycopg.connect(old.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute(statement)  # type: ignore[arg-type]  # SQL of our own


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's node and all below it."""
    return [plan, *(node for below in plan.get("Plans", ()) for node in nodes(below))]


# --- filed drifts -----------------------------------------------------------------------
# What was wrong once, is on file and was made good, contradicts nothing afterwards.


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
        metadata=corrected(later, reclaimed, "reclaimed"), budgets=day("2026-02-01"), money=0, raw_tokens=3,
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


# --- invariants -------------------------------------------------------------------------
# Each invariant view finds the contradiction it is there for.


TOKEN = (
    "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, seq,"
    " request_id, created_at, epoch, cycle)"
    " VALUES ({t}, '{kind}', {amount}, {left}, '{way}', {seq}, {request}, now(), 1, 1)"
)
CREDIT = (
    "INSERT INTO credit_transaction (organization_id, tenant_id, credits_used, balance_after, seq,"
    ' feature_id, "timestamp", epoch) VALUES ({o}, {t}, {used}, {left}, {seq}, 1, now(), 1)'
)
SPEND = (
    "INSERT INTO feature_usage (organization_id, tenant_id, spend, spent_after, seq, usage_amount,"
    ' feature_id, "timestamp", epoch) VALUES ({o}, {t}, {used}, {left}, {seq}, 1, 1, now(), 1)'
)
REQUEST = "'00000000-0000-4000-8000-000000000001'"
INVOICE = (
    "INSERT INTO invoice (organization_id, currency, period_start, period_end, total_amount)"
    " VALUES ({o}, 'USD', '2026-01-01', '2026-01-31', 3)"
)
PAYMENT = (
    "INSERT INTO payment (organization_id, invoice_id, amount, currency, reference)"
    " SELECT organization_id, id, 1, currency, 'x' FROM invoice"
)
CHARGE = (
    "INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount,"
    " currency, source, source_id, fact, tenant_id)"
    " VALUES ({o}, '{kind}', '2026-01-01Z', '2026-01-02Z', 2, 3, 6, 'USD', '{source}', {id}, 'x', 1)"
)
ROLL_UP = (
    "INSERT INTO usage_daily (day, organization_id, tenant_id, service_id, tokens)"
    " VALUES ('2026-01-01', {o}, {t}, 1, 7)"
)
CALL = (
    "INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, input, cache_read,"
    " cache_write, cache_write_1h, output, reasoning, audio_input, audio_output, image_input, image_output,"
    " tokens, credits, units, status, streamed, estimated, duration_ms) VALUES"
    " (gen_random_uuid(), now(), {o}, {t}, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1, 200, false, false, 5)"
)
BUDGET = (
    'INSERT INTO budget (organization_id, name, unit, amount, "interval", updated_at)'
    " VALUES ({o}, 'b', 'money', 1, 'day', '2026-01-01')"
)
BUDGET_USE = "INSERT INTO budget_use (budget_id, start, used) SELECT id, '2026-01-02', 5 FROM budget"
ALLOCATION = "INSERT INTO credit_allocation (organization_id, seq, amount) VALUES ({o}, 1, 4)"
CHECKPOINT = (
    "INSERT INTO account_checkpoint (account, first_seq, last_seq, month, movements, amount)"
    " VALUES ('tenant:{t}', 0, 1, '2026-01-01', 1, 99)"
)
# Begins behind a place where none ends.
LATER_CHECKPOINT = CHECKPOINT.replace("0, 1,", "5, 9,")
QUOTA = "UPDATE tenant_quota SET last_seq = 1, epoch = 1, cycle = 1, {change} WHERE tenant_id = {t}"


def reset(amount: int) -> str:
    return _filled(TOKEN, seq=1, kind="reset", way="IN", amount=amount, left=amount, request="NULL")


def consume(seq: int, amount: int, left: int, *, request: str = "NULL") -> str:
    return _filled(TOKEN, seq=seq, kind="consume", way="OUT", amount=amount, left=left, request=request)


def _filled(statement: str, **values: object) -> str:
    """The statement with everything but the account's ids."""
    return statement.format(o="{o}", t="{t}", **values)


# Statements that break each invariant, and perhaps others with it.
CONTRADICTIONS = {
    "chain": [reset(100), consume(2, 10, 91)],
    "gapless": [reset(100), consume(3, 10, 90)],
    "checkpoints": [reset(100), CHECKPOINT, LATER_CHECKPOINT],
    "quota": [reset(100), _filled(QUOTA, change="tokens_remaining = 99")],
    "blocked": [_filled(QUOTA, change="tokens_remaining = 0, is_blocked = false")],
    "credits": ["UPDATE organization SET credit_balance = 5 WHERE id = {o}"],
    "carried": ["UPDATE organization SET credit_ahead = 5 WHERE id = {o}"],
    "request_once": [reset(100), consume(2, 10, 90, request=REQUEST), consume(3, 10, 80, request=REQUEST)],
    "rollup": [ROLL_UP],
    "allocations": [
        _filled(CREDIT, used=5, left=-5, seq=1),
        ALLOCATION,
        "UPDATE organization SET allocated_seq = 1",
    ],
    "drawn": ["INSERT INTO credit_addition (organization_id, credits_added, spent) VALUES ({o}, 9, 5)"],
    "invoice": [INVOICE],
    "payments": [INVOICE, PAYMENT],
    "owed": [CHARGE.format(o="{o}", kind="usage", source="usage_tier", id=1)],
    "days": [CHARGE.format(o="{o}", kind="subscription", source="subscription_segment", id=1)],
    "usage_adds_up": [CALL],
    "budgets": [BUDGET, BUDGET_USE],
}


@pytest.mark.parametrize("name", checkpoints.INVARIANTS)
async def test_a_contradiction_is_found(migrated: str, name: str) -> None:
    found = await _violations(migrated, CONTRADICTIONS[name])
    assert name in {violation.invariant for violation in found}


@pytest.mark.parametrize(("account", "statement"), [("credits", CREDIT), ("spend", SPEND)])
async def test_every_account_has_its_chain(migrated: str, account: str, statement: str) -> None:
    sign = -1 if account == "credits" else 1
    rows = [_filled(statement, used=5, left=sign * left, seq=seq) for seq, left in ((1, 5), (2, 11))]
    found = await _violations(migrated, rows)
    chains = [violation for violation in found if violation.invariant == "chain"]
    assert [(violation.account.split(":")[0], violation.seq) for violation in chains] == [(account, 2)]


async def test_an_empty_database_contradicts_nothing(migrated: str) -> None:
    assert await _violations(migrated, []) == []


async def _violations(url: str, statements: list[str]) -> list[checkpoints.Violation]:
    [account] = settle_in(url, 100)
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.format(o=account.organization_id, t=account.tenant_id))
    pool = engine.create(url)
    async with pool.connect() as connection:
        found = await checkpoints.violations(connection)
    await pool.dispose()
    return found
