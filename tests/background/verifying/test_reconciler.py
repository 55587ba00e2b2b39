"""Drift is found wherever it was put, told from lag, repaired by appending only when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest

from gateway.background.timed.invoicing import AccountCloser
from gateway.background.verifying.reconciler import KEEP_S, Reconciler
from gateway.core.accounts.administration import Realm
from gateway.core.accounts.definitions import OrganizationTerms
from gateway.core.accounts.groups import ROW_BYTES, GroupTerms
from gateway.core.accounts.outbox import decode
from gateway.core.integrity.reconciliation import DifferenceKind, Item, LedgerAccount
from gateway.core.layout import LAYOUT
from gateway.core.model import Service
from gateway.counters.admission.stored import decode_terms, encode_terms
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import CallsOpen, Conflict, CountersUnavailable, NotStoredYet, Overloaded
from persistence import engine
from persistence.keeper.verification import Accounts
from persistence.ledger.checkpoints import Checkpoints
from persistence.resources.integrity import ReconciliationResults
from tests.background.backend import Backend, backend_at
from tests.builders import CHAT, CREDITS, UNITS, World, encode
from tests.connections import connected
from tests.persistence.scenario import broken
from tests.waiting import eventually


class LookedAt(Accounts):
    """Accounts that know how often they were looked at."""

    looks = 0

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> Mapping[str, LedgerAccount]:
        self.looks += 1
        return await super().accounts(seqs, deep=deep)


def reconciler_of(
    backend: Backend,
    accounts: Accounts | None = None,
    clock: Callable[[], datetime] | None = None,
) -> Reconciler:
    return Reconciler(
        backend.counters, accounts or Accounts(backend.engine), ReconciliationResults(backend.engine,
        partition_of),
        clock or partial(datetime.now, UTC), partition_of=partition_of, look_again_s=0.01,
    )  # fmt: skip


async def busy(backend: Backend) -> World:
    """An organization whose three accounts have moved."""
    world = await backend.settle_in(1_000)
    await backend.made("credit-additions", organization_id=world.caller.organization_id, credits_added=500)
    await backend.push()
    for _ in range(5):
        world.reserve(need=10).settle(tokens=10)
        world.reserve(service=CREDITS, credits_=3).settle(credits=3)
        world.reserve(service=UNITS).settle(units=2)
    await backend.flush()
    return world


def kinds(row: Any) -> list[tuple[str, str, int]]:
    """How accounts differ. What their rows say against each other besides is told as contradictions."""
    items = [item for item in row["items"] if item["kind"] != DifferenceKind.CONTRADICTION]
    return [(item["account"], item["kind"], item["difference"]) for item in items]


async def test_accounts_that_agree(backend: Backend) -> None:
    await busy(backend)
    row = await reconciler_of(backend).run_now()
    assert (row["checked"], row["pending"], row["items"]) == (3, 0, [])
    assert (row["drift_tokens"], row["drift_credits"]) == (0, 0)


async def test_what_is_not_stored_yet_is_lag(backend: Backend) -> None:
    world = await busy(backend)
    world.reserve(need=10).settle(tokens=7)
    row = await reconciler_of(backend).run_now()
    assert kinds(row) == [(f"tenant:{world.caller.tenant_id}", "lag", -7)]
    assert (row["pending"], row["drift_tokens"]) == (1, 0)


async def test_drift_in_the_counters_is_found_and_repaired_by_an_adjust(backend: Backend) -> None:
    world = await busy(backend)
    account, owner = f"tenant:{world.caller.tenant_id}", world.caller.organization_id
    world.put_tenant(remaining=world.tenant.remaining + 40)
    world.put_organization(balance=world.organization.balance - 25)
    reconciler = reconciler_of(backend)
    row = await reconciler.run_now()
    assert kinds(row) == [(account, "drift", 40), (f"credits:{owner}", "drift", -25)]
    assert (row["drift_tokens"], row["drift_credits"]) == (40, 25)
    assert backend.rows("select count(*) as n from known_drift") == [{"n": 0}]

    await reconciler.run_now(repair=True)
    assert await backend.push() == 0
    await backend.flush()
    assert (world.tenant.remaining, world.organization.balance) == (950, 485)
    assert backend.ledger(world.caller.tenant_id)[-1][1:] == ("adjust", -40, 950)
    assert (await reconciler.run_now())["items"] == []
    assert await broken(backend.database) == []


async def test_an_account_that_nobody_can_read_is_told(backend: Backend) -> None:
    world = await busy(backend)
    tenant, owner = world.caller.tenant_id, world.caller.organization_id
    kept = world.get(world.tenant_key), world.get(world.organization_key)
    world.client.set(world.tenant_key, b"\x01garbage")
    row = await reconciler_of(backend).run_now()
    assert kinds(row) == [(f"tenant:{tenant}", "excess", -950)]
    assert row["drift_tokens"] == 950
    assert "nobody can read" in row["items"][0]["detail"]
    assert backend.counters.left_alone.count("account") == 1

    world.client.set(world.organization_key, b"\x01")
    row = await reconciler_of(backend).run_now(repair=True)
    assert kinds(row) == [
        (f"tenant:{tenant}", "excess", -950), (f"credits:{owner}", "excess", -485),
        (f"spend:{owner}", "excess", 0),
    ]  # fmt: skip
    assert backend.rows("select count(*) as n from known_drift") == [{"n": 0}]

    world.client.set(world.organization_key, kept[1])
    world.client.delete(world.tenant_key, keys.marker(world.p))  # as docs/operate/alerts.md says
    await backend.verify()
    assert (await reconciler_of(backend).run_now())["items"] == []
    assert world.again().tenant.remaining == 950
    assert backend.counters.left_alone.count("account") == 0


async def test_an_account_of_a_newer_version_is_no_fault(backend: Backend) -> None:
    world = await busy(backend)
    newer = bytes([LAYOUT + 1]) + world.get(world.tenant_key)[1:]
    world.client.set(world.tenant_key, newer)
    row = await reconciler_of(backend).run_now()
    assert (row["checked"], row["items"]) == (2, [])


async def test_drift_behind_later_movements_is_found_too(backend: Backend) -> None:
    world = await busy(backend)
    world.put_tenant(remaining=world.tenant.remaining - 40)
    world.put_organization(balance=world.organization.balance + 25)
    for _ in range(3):
        world.reserve(need=10).settle(tokens=10)
        world.reserve(service=CREDITS, credits_=3).settle(credits=3)
    await backend.flush()
    reconciler = reconciler_of(backend)
    row = await reconciler.run_now(repair=True)
    assert sorted(difference for _, _, difference in kinds(row)) == [-40, 25]
    await backend.push()
    await backend.flush()
    assert (world.tenant.remaining, world.organization.balance) == (920, 476)
    assert (await reconciler.run_now())["items"] == []
    assert await broken(backend.database) == []


async def test_spend_is_a_measure_whose_drift_is_put_on_file(backend: Backend) -> None:
    world = await busy(backend)
    world.put_organization(spent=world.organization.spent + 9)
    reconciler = reconciler_of(backend)
    row = await reconciler.run_now(repair=True)
    assert kinds(row) == [(f"spend:{world.caller.organization_id}", "drift", 9)]
    assert (row["drift_tokens"], row["drift_credits"]) == (0, 0)
    assert (await reconciler.run_now())["items"] == []
    world.reserve(service=UNITS).settle(units=2)
    await backend.flush()
    assert (await reconciler.run_now())["items"] == []
    assert await broken(backend.database) == []


async def test_deleted_tenants_still_agree(backend: Backend) -> None:
    world = await busy(backend)
    await backend.write("api-keys", "revoke", world.caller.key_id)
    await backend.write("tenants", "delete", world.caller.tenant_id)
    await backend.push()
    assert (await reconciler_of(backend).run_now())["items"] == []


async def test_a_changed_note_in_postgresql_is_found_and_follows_the_next_row(backend: Backend) -> None:
    world = await busy(backend)
    with connected(backend.database) as connection:
        connection.execute("UPDATE tenant_quota SET tokens_remaining = 1")
    reconciler = reconciler_of(backend)
    row = await reconciler.run_now(repair=True)
    assert kinds(row) == [(f"tenant:{world.caller.tenant_id}", "drift", 949)]
    await backend.push()
    await backend.flush()
    assert world.tenant.remaining == 950
    assert backend.ledger(world.caller.tenant_id)[-1][1:] == ("adjust", 0, 950)
    assert (await reconciler.run_now())["items"] == []
    assert await broken(backend.database) == []


async def test_a_changed_row_in_postgresql_is_found(backend: Backend) -> None:
    world = await busy(backend)
    with connected(backend.database) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE token_ledger SET amount = amount + 5 WHERE seq = 3")
    row = await reconciler_of(backend).run_now()
    assert kinds(row) == [(f"tenant:{world.caller.tenant_id}", "drift", 5)]
    told = {item["detail"].partition(":")[0] for item in row["items"] if item["kind"] == "contradiction"}
    assert told == {"chain", "quota", "rollup"}


@pytest.mark.parametrize("service", [CHAT, CREDITS, UNITS], ids=lambda one: str(one.key))
async def test_a_last_movement_that_died_is_a_listed_gap_and_no_drift(
    backend: Backend, service: Service
) -> None:
    world = await busy(backend)
    call = world.reserve(service=service, need=10, credits_=3)
    call.settle(tokens=10, credits=3, units=2)
    [(entry_id, fields)] = world.entries(keys.outbox(world.p))
    poisoned = encode(replace(decode(fields[b"e"]), service_id=2**80))
    world.client.xdel(keys.outbox(world.p), entry_id)
    world.client.xadd(keys.outbox(world.p), {"e": poisoned})
    await backend.flush()
    assert len(backend.rows("select 1 from dead_letter")) == 1
    reconciler = reconciler_of(backend)
    assert (await reconciler.run_now())["items"] == []
    account_closing = AccountCloser(backend.counters, Accounts(backend.engine), reconciler)
    with pytest.raises(Conflict, match="could not be stored"):
        await account_closing.close(world.caller.organization_id)
    [letter] = backend.rows("select id from dead_letter")
    await backend.write("dead-letters", "resolve", letter["id"], reason="a test")
    await account_closing.close(world.caller.organization_id)


async def test_missing_rows_are_a_gap(backend: Backend) -> None:
    world = await busy(backend)
    with connected(backend.database) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("DELETE FROM token_ledger WHERE seq IN (3, 4)")
    assert kinds(await reconciler_of(backend).run_now()) == [(f"tenant:{world.caller.tenant_id}", "gap", 2)]


async def test_counters_that_went_back_are_an_excess_of_the_ledger(backend: Backend) -> None:
    world = await busy(backend)
    world.put_tenant(remaining=990, seq=2)
    assert kinds(await reconciler_of(backend).run_now()) == [
        (f"tenant:{world.caller.tenant_id}", "excess", 40)
    ]


async def test_a_sample_looks_at_last_rows(backend: Backend) -> None:
    world = await busy(backend)
    world.put_tenant(remaining=world.tenant.remaining + 40)
    accounts = Accounts(backend.engine)
    found = await reconciler_of(backend).check(await accounts.some_owners(10), deep=False)
    assert [(item.kind, item.difference) for item in found.items] == [(DifferenceKind.DRIFT, 40)]


async def test_traffic_is_never_taken_for_drift(backend: Backend) -> None:
    world = await busy(backend)
    reconciler, accounts = reconciler_of(backend), Accounts(backend.engine)

    over = asyncio.Event()

    async def traffic() -> None:
        while not over.is_set():
            for _ in range(5):
                await asyncio.to_thread(lambda: world.reserve(need=1).settle(tokens=1))
            await backend.flush()

    running = asyncio.create_task(traffic())
    owners = await accounts.owners(0, 10)
    for _ in range(10):
        for deep in (True, False):
            assert (await reconciler.check(owners, deep=deep)).faults == ()
    over.set()  # a thread that nobody waits for would go on behind the test
    await running


async def test_counters_that_are_not_verified_say_nothing(backend: Backend) -> None:
    world = await busy(backend)
    with backend.client() as client:
        client.delete(keys.marker(world.p))
    with pytest.raises(CountersUnavailable):
        await reconciler_of(backend).run_now()


async def test_accounts_are_closed_when_all_is_stored_and_agrees(backend: Backend) -> None:
    world = await busy(backend)
    accounts = LookedAt(backend.engine)
    account_closing = AccountCloser(backend.counters, accounts, reconciler_of(backend))
    owner = world.caller.organization_id
    await account_closing.close(owner)

    world.reserve(need=10).settle(tokens=10)
    before = accounts.looks
    closing = asyncio.create_task(account_closing.close(owner))
    await eventually(lambda: accounts.looks > before + 1)
    assert not closing.done()
    await backend.flush()
    await closing

    world.put_tenant(remaining=5)
    with pytest.raises(Conflict, match="drift"):
        await account_closing.close(owner)


async def test_await_stored_waits_for_the_rows_of_settled_calls(backend: Backend) -> None:
    world = await busy(backend)
    accounts = LookedAt(backend.engine)
    account_closing = AccountCloser(backend.counters, accounts, reconciler_of(backend))
    world.reserve(need=10).settle(tokens=10)
    before = accounts.looks
    waiting = asyncio.create_task(account_closing.await_stored(world.caller.organization_id))
    await eventually(lambda: accounts.looks > before + 1)
    assert not waiting.done()
    await backend.flush()
    await waiting


async def test_movements_are_settled_once_rows_are_stored(backend: Backend) -> None:
    world = await busy(backend)
    account_closing = AccountCloser(backend.counters, Accounts(backend.engine), reconciler_of(backend))
    owner = Realm(world.caller.organization_id)
    await account_closing.settle(owner)
    world.put_tenant(remaining=5)  # accounts that do not agree owe all the same
    world.reserve(need=10).settle(tokens=10)
    with pytest.raises(NotStoredYet):
        await account_closing.settle(owner)
    await backend.flush()
    await account_closing.settle(owner)


@pytest.mark.parametrize("service", [CHAT, CREDITS, UNITS], ids=lambda one: str(one.key))
async def test_calls_that_have_not_ended_settle_nothing_for_their_tenant_and_organization(
    backend: Backend, service: Service
) -> None:
    world = await busy(backend)
    account_closing = AccountCloser(backend.counters, Accounts(backend.engine), reconciler_of(backend))
    organization, tenant = world.caller.organization_id, world.caller.tenant_id
    other = await backend.made("tenants", name="quiet", organization_id=organization)
    await backend.push()
    await backend.flush()
    call = world.reserve(service=service, need=10, credits_=3)
    for realm in (Realm(organization), Realm(organization, tenant)):
        with pytest.raises(CallsOpen):
            await account_closing.settle(realm)
    await account_closing.settle(Realm(organization, other))
    await account_closing.close(organization)  # an invoice bills what is settled
    call.settle(tokens=10, credits=3)
    await backend.flush()
    for realm in (Realm(organization), Realm(organization, tenant)):
        await account_closing.settle(realm)


async def test_an_organization_with_a_sale_that_is_not_stored_yet_is_not_deleted(backend: Backend) -> None:
    organization = await backend.made("organizations", name="buyer", currency="USD")
    await backend.verify()
    await backend.made(
        "credit-additions", organization_id=organization, credits_added=1_000, category="paid",
        unit_cost=Decimal("0.10"),
    )  # fmt: skip
    for move in (backend.push, backend.flush):
        with pytest.raises(NotStoredYet):
            await backend.write("organizations", "delete", organization)
        await move()
    with pytest.raises(Conflict, match="USD 100 of credits_purchased"):
        await backend.write("organizations", "delete", organization)


async def test_counters_that_are_away_settle_nothing(backend: Backend) -> None:
    world = await busy(backend)
    with backend.client() as client:
        client.delete(keys.marker(world.p))
    account_closing = AccountCloser(backend.counters, Accounts(backend.engine), reconciler_of(backend))
    with pytest.raises(NotStoredYet):
        await account_closing.settle(Realm(world.caller.organization_id))


async def test_an_entry_that_could_not_be_stored_blocks_its_own_account_only(backend: Backend) -> None:
    world, other = await busy(backend), await busy(backend)
    account_closing = AccountCloser(backend.counters, Accounts(backend.engine), reconciler_of(backend))
    with connected(backend.database) as connection:
        connection.execute(
            "INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id)"
            " VALUES (1, '1-1', '', 'its numbers are out of range', %s)", (world.caller.organization_id,),
        )  # fmt: skip
    with pytest.raises(Conflict, match="out of range"):
        await account_closing.close(world.caller.organization_id)
    await account_closing.close(other.caller.organization_id)


async def test_a_closed_month_that_was_changed_is_told_and_never_repaired(backend: Backend) -> None:
    world = await busy(backend)
    later = (datetime.now(UTC) + timedelta(days=31)).date().replace(day=1)
    owners = [world.caller.organization_id]
    assert await Checkpoints(backend.engine).close_months(owners, later) == 3
    reconciler = reconciler_of(backend)
    assert (await reconciler.run_now())["items"] == []
    with connected(backend.database) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE token_ledger SET amount = amount + 4 WHERE transaction_type = 'reset'")
        # One checkpoint of an owner's is proved at a time.
        connection.execute("DELETE FROM account_checkpoint WHERE NOT starts_with(account, 'tenant:')")
    row = await reconciler.run_now(repair=True)
    assert kinds(row) == [(f"tenant:{world.caller.tenant_id}", "drift", -4)]
    assert backend.rows("select count(*) as n from known_drift") == [{"n": 0}]


class Slow(Accounts):
    """Rows are not asked before somebody says so."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.engine)
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def contradictions(self, *, within_s: float) -> Sequence[Item] | None:
        self.asked.set()
        await self.may.wait()
        return await super().contradictions(within_s=within_s)


async def test_what_was_compared_is_repaired_and_kept_before_rows_are_asked(backend: Backend) -> None:
    world = await busy(backend)
    world.put_tenant(remaining=world.tenant.remaining - 7)
    slow, results = Slow(backend), ReconciliationResults(backend.engine, partition_of)
    reconciler = reconciler_of(backend, slow)
    running = asyncio.create_task(reconciler.run_now(repair=True))
    await slow.asked.wait()
    row = await results.last()
    assert row is not None
    assert [kind for _, kind, _ in kinds(row)] == ["drift", "unasked"]
    assert backend.rows("select count(*) as n from known_drift") == [{"n": 1}]
    slow.may.set()
    assert [kind for _, kind, _ in kinds(await running)] == ["drift"]
    assert kinds(await results.last() or {}) == kinds(await running)


async def test_rows_are_asked_within_the_time_that_is_left_and_over_a_connection_of_their_own(
    backend: Backend,
) -> None:
    await busy(backend)
    one = engine.create(backend.database, connections_max=1, wait_s=0.1)
    accounts = Accounts(one)
    async with one.connect():
        assert await accounts.contradictions(within_s=60) == []
    with connected(backend.database) as connection:
        connection.execute("LOCK TABLE known_drift")  # so that asking takes longer than it may
        assert await accounts.contradictions(within_s=0.2) is None
    row = await reconciler_of(backend).run_now(within_s=KEEP_S)
    assert kinds(row) == [("rows", "unasked", 0)]
    await one.dispose()


async def test_everything_is_compared_once_a_night_whichever_keeper_does_it(
    valkey: str, migrated: str
) -> None:
    def runs() -> list[dict[str, Any]]:
        return backend.rows("select started_at from reconciliation where items = '[]' order by id")

    async with backend_at(valkey, migrated) as backend:
        await busy(backend)
        now = [datetime(2026, 3, 4, 2, 59, tzinfo=UTC)]
        keepers = [reconciler_of(backend, clock=lambda: now[0]) for _ in range(2)]

        async def look() -> int:
            for keeper in keepers:
                await keeper.look_at_night()
            return len(runs())

        assert await look() == 0
        now[0] += timedelta(minutes=1)
        async with keepers[1].alone():
            await keepers[0].look_at_night()  # somebody compares: it is tried again in an hour
        now[0] += timedelta(minutes=59)
        assert await look() == 1
        now[0] += timedelta(hours=22)
        keepers += [reconciler_of(backend, clock=lambda: now[0])]
        assert await look() == 1
        now[0] += timedelta(days=4)
        # Nobody was there for some nights: one that starts makes up for the last.
        keepers = [reconciler_of(backend, clock=lambda: now[0])]
        assert (await look(), await look()) == (2, 2)
        assert [one["started_at"].day for one in runs()] == [4, 9]


async def test_one_run_at_a_time(backend: Backend) -> None:
    reconciler, other_keepers = reconciler_of(backend), reconciler_of(backend)
    for second in (reconciler, other_keepers):
        async with reconciler.alone():
            with pytest.raises(Overloaded, match="under way"):
                async with second.alone():
                    raise AssertionError
        async with second.alone():
            pass


async def test_a_drift_is_made_good_once_however_many_keepers_are_asked_to(backend: Backend) -> None:
    world = await busy(backend)
    world.put_tenant(remaining=world.tenant.remaining - 7)

    async def repaired(reconciler: Reconciler) -> bool:
        try:
            async with reconciler.alone():
                await reconciler.run_now(repair=True)
        except Overloaded:
            return False
        return True

    keepers = [reconciler_of(backend) for _ in range(3)]
    assert sorted(await asyncio.gather(*map(repaired, keepers))) == [False, False, True]
    await backend.push()
    await backend.flush()
    assert (await keepers[0].run_now())["items"] == []


async def test_a_run_whose_turn_broke_meanwhile_has_ended_all_the_same(backend: Backend) -> None:
    reconciler = reconciler_of(backend)
    async with reconciler.alone():
        [(ended,)] = broken_turns(backend.database)
        assert ended
    async with reconciler.alone():
        pass


async def test_a_turn_outlasts_what_the_server_allows_idle_transactions(valkey: str, cloned: str) -> None:
    with connected(cloned, autocommit=True) as connection:
        name = psycopg.sql.Identifier(connection.info.dbname)
        bound = psycopg.sql.SQL("ALTER DATABASE {} SET idle_in_transaction_session_timeout = '100ms'")
        connection.execute(bound.format(name))
        async with backend_at(valkey, cloned) as backend, reconciler_of(backend).alone():
            idle = psycopg.connect(cloned)  # the server ends it
            idle.execute("SELECT 1")
            there = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            await eventually(lambda: connection.execute(there, [idle.info.backend_pid]).fetchone() is None)
            idle.close()
            with pytest.raises(Overloaded):
                async with reconciler_of(backend).alone():
                    raise AssertionError


def broken_turns(url: str) -> list[tuple[bool]]:
    """End the session of who has the turn."""
    with connected(url) as connection:
        return connection.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND l.classid = 7813 AND d.datname = current_database()"
        ).fetchall()


@pytest.mark.parametrize(
    ("damage", "differing"),
    [
        (lambda terms: None, {"pool": -2, "each": -2}),
        (lambda terms: replace(terms, groups=GroupTerms(terms.groups.kinds)), {"pool": -2, "each": -2}),
        (lambda terms: replace(terms, groups=replace(terms.groups, table=terms.groups.table[ROW_BYTES:])),
         {"pool": -1, "each": -1}),
        (lambda terms: replace(terms, budgets=tuple(replace(each, overrides={}) for each in terms.budgets)), {"each": 0}),
        (lambda terms: replace(terms, budgets=tuple(replace(each, group_id=0) for each in terms.budgets)), {"pool": 0}),
        (lambda terms: terms, {}),
    ],
)  # fmt: skip
async def test_members_of_a_pool_and_overrides_that_redis_has_otherwise_are_drift(
    backend: Backend,
    damage: Callable[[OrganizationTerms], OrganizationTerms | None],
    differing: dict[str, int],
) -> None:
    world = await busy(backend)
    of = {"organization_id": world.caller.organization_id, "unit": "requests", "interval": "day", "amount": 9}
    group = await backend.made(
        "groups", organization_id=of["organization_id"], name="lab", kind="user", members=["ann", "bob"]
    )
    budgets = {
        "pool": await backend.made("budgets", **of, name="pool", group_id=group),
        "each": await backend.made("budgets", **of, name="each", each="user"),
        "plain": await backend.made("budgets", **of, name="plain"),
    }
    backend.rows(
        "INSERT INTO budget_override (budget_id, value, name, amount) VALUES (%s, %s, 'lab', 7) RETURNING value",
        budgets["each"], f"group:{group}",
    )  # fmt: skip
    reconciler = reconciler_of(backend)
    await reconciler.sample()
    assert reconciler.latest.items == ()  # a write waits that tells Redis
    await backend.push()
    name = keys.organization_terms(world.caller.organization_id)
    raw = world.get(name)
    assert raw is not None
    damaged = damage(decode_terms(raw))
    if damaged is None:
        world.client.delete(name)
    else:
        world.client.set(name, encode_terms(2**40, damaged))
    await reconciler.sample()
    items = {item.account: (item.kind, item.difference) for item in reconciler.latest.items}
    assert items == {
        f"budget:{budgets[budget]}": (DifferenceKind.DRIFT, difference)
        for budget, difference in differing.items()
    }
