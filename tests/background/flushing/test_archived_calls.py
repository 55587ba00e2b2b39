"""What settles after its month was archived is charged once: by itself, or by a person who looked there."""

from __future__ import annotations

import random
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from gateway.core.accounts.administration import Actor, Command, CommittedWrite
from gateway.core.accounts.holds import LateSettlement
from gateway.core.model import Caller, Settlement, SettleResult
from gateway.core.times import DAY_MS, ms_of
from gateway.counters.redis import keys
from gateway.errors import Conflict, Unprocessable
from gateway.http.protocol.request_ids import RequestIds
from persistence import engine as engines
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.verification import LedgerReader
from persistence.ledger.writer import LedgerWriter
from tests.background.backend import Backend
from tests.background.flushing.test_late import drained
from tests.builders import CHAT, CREDITS, Call, World
from tests.connections import connected
from tests.persistence.ledger.test_budget_moves import opened
from tests.persistence.scenario import batch_of, broken, rows_of

CUT = """
INSERT INTO kept_since AS k SELECT l, %s FROM unnest(%s::text[]) AS l
ON CONFLICT (ledger) DO UPDATE SET since = excluded.since RETURNING since"""
LEDGERS = ["token_ledger", "credit_transaction", "feature_usage", "call"]
CREDIT_COLUMNS = "select credits_used, balance_after from credit_transaction order by seq"


def id_at(at_ms: int) -> str:
    """A request's id, by a gateway whose clock says this."""
    drawn = random.Random(at_ms)
    return RequestIds(drawn.randbytes, lambda: at_ms / 1000).next_id(0.0)


def now_ms() -> int:
    return int(time.time() * 1000)


def cut(url: str, at: datetime, ledgers: list[str] | None = None) -> None:
    """Say that months before are archived, as who takes them out says it."""
    rows_of(url, CUT, [at, ledgers or LEDGERS])


def settled_late(world: World, request_id: str, **used: Any) -> Call:
    """A call of which Redis has no hold any more when it settles."""
    call = world.reserve(need=10, request_id=request_id, service=used.pop("service", CHAT))
    world.client.delete(keys.hold(world.p, call.id))
    assert call.settle(**used) is SettleResult.UNKNOWN
    return call


async def decide(backend: Backend, verb: str, letter: int, **values: Any) -> Any:
    command = Command(
        "dead-letters", verb, Actor("builtin:admin", "admin"), "t", lambda row: row, letter, values
    )
    done = await backend.store.write(command)
    assert isinstance(done, CommittedWrite)
    return done.row["resolution"]


def letters(backend: Backend) -> list[dict[str, Any]]:
    return backend.rows(
        "select id, entry_id, reason, organization_id, tenant_id from dead_letter"
        " where resolved_at is null order by id"
    )


async def test_wrong_clocks_and_archived_months_never_hide_what_was_charged(
    cloned: str,
) -> None:
    """Of each request that has a row, or had one before it was archived, nobody says that it was not charged.

    Clocks of gateways are wrong by up to fifty days either way. Whose is right, and began after the archive's
    months, is in doubt only on a day that others' clocks said.
    """
    drawn, today = random.Random(7), now_ms()
    start = today - 150 * DAY_MS
    rows_of(cloned, "SELECT ensure_partitions(%s, 8)", [datetime.fromtimestamp(start / 1000, UTC)])
    account = opened(cloned)
    calls: list[tuple[int, int, str]] = []
    account.at_ms = start
    for at in sorted(drawn.sample(range(start, today), 80)):
        account.at_ms = at
        wrong = drawn.choice([0, 0, 0, drawn.randint(-50, 50) * DAY_MS, drawn.randint(-2, 2) * DAY_MS])
        request_id = id_at(at + wrong)
        account.consume(1, request_id=request_id)
        calls.append((at, wrong, request_id))
    writer, pool = LedgerWriter(cloned), engines.create(cloned)
    await writer.write(batch_of(account))
    writer.close()
    noted = {day for (day,) in rows_of(cloned, "SELECT day FROM clock_ahead")}
    assert noted == {day_of(at + wrong) for at, wrong, _ in calls if wrong > DAY_MS}
    sweeps = Sweeps(pool)
    late = [late_of(request_id) for _, _, request_id in calls]
    for days in (None, 120, 60, 31):
        if days is not None:
            bound = datetime.fromtimestamp((today - days * DAY_MS) / 1000, UTC).replace(
                day=1, hour=0, minute=0
            )
            archive(cloned, bound)
        bound_ms = 0 if days is None else ms_of(bound)
        gone = await sweeps.maybe_gone(late)
        for (at, wrong, request_id), one in zip(calls, late, strict=True):
            found = await sweeps.charged([one])  # alone: nobody's place helps another
            assert (request_id in found) == (at >= bound_ms)
            assert request_id in found or request_id in gone
            if wrong == 0 and at > bound_ms + 2 * DAY_MS and day_of(at) not in noted:
                assert request_id not in gone
        assert set(await sweeps.charged(late)) == {one for at, _, one in calls if at >= bound_ms}
    await pool.dispose()


def day_of(at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()


def late_of(request_id: str) -> LateSettlement:
    used = Settlement(Caller(1, 1, 1, 0), request_id, "", CHAT, charge=True, tokens=1)
    return LateSettlement(b"1-0", used, 0)


def archive(url: str, bound: datetime) -> None:
    """Take rows out as archiving does, and say so."""
    with connected(url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM token_ledger WHERE created_at < %s", [bound])
        connection.execute("DELETE FROM call WHERE created_at < %s", [bound])
    cut(url, bound)


async def test_what_may_be_charged_in_an_archive_is_for_a_person_who_looks_there(backend: Backend) -> None:
    world = await backend.settle_in(100)
    before, after = now_ms() - 60 * DAY_MS, now_ms() - 10 * DAY_MS
    cut(backend.database, datetime.now(UTC) - timedelta(days=40))
    old, new = settled_late(world, id_at(before), tokens=40), settled_late(world, id_at(after), tokens=7)
    await drained(backend)
    rows = "select request_id::text, amount from token_ledger where request_id is not null"
    assert backend.rows(rows) == [{"request_id": new.id, "amount": 7}]
    [letter] = letters(backend)
    assert (letter["organization_id"], letter["tenant_id"]) == (
        world.caller.organization_id,
        world.caller.tenant_id,
    )
    assert f"request {old.id} settles late" in letter["reason"]
    assert letter["entry_id"].startswith("late:")
    assert world.late() == []
    # It is no entry that could be corrected, and nobody charges it twice.
    with pytest.raises(Unprocessable) as caught:
        await decide(backend, "redrive", letter["id"], changes={"amount": 1})
    assert caught.value.errors[0][0] == "changes"
    assert await decide(backend, "redrive", letter["id"], reason="not in the archive") == "redriven"
    assert await backend.push() == 0
    await drained(backend)
    assert backend.ledger(world.caller.tenant_id)[1:] == [(2, "consume", -7, 93), (3, "consume", -40, 53)]
    assert backend.rows(f"{rows} order by seq")[-1] == {"request_id": old.id, "amount": 40}
    assert [row[1:] for row in backend.writes() if row[1] == "late"] == [("late", "done")]
    assert (world.tenant.used, world.client.hlen(keys.control(world.p))) == (47, 0)
    assert letters(backend) == []
    assert await broken(backend.database) == []
    with pytest.raises(Conflict):
        await decide(backend, "redrive", letter["id"])


@pytest.mark.parametrize("ledger", LEDGERS)
async def test_one_ledger_that_is_archived_leaves_it_to_a_person(backend: Backend, ledger: str) -> None:
    world = await backend.settle_in(100)
    cut(backend.database, datetime.now(UTC) - timedelta(days=40), [ledger])
    old = settled_late(world, id_at(now_ms() - 60 * DAY_MS), tokens=40)
    await drained(backend)
    [letter] = letters(backend)
    assert f"request {old.id} settles late" in letter["reason"]
    assert backend.rows("select amount from token_ledger where request_id is not null") == []


async def test_two_letters_of_one_request_are_one_charge(backend: Backend) -> None:
    world = await backend.settle_in(100)
    cut(backend.database, datetime.now(UTC) - timedelta(days=40))
    call = settled_late(world, id_at(now_ms() - 60 * DAY_MS), tokens=40)
    await drained(backend)
    call.settle(tokens=40)
    await drained(backend)
    one, other = letters(backend)
    await decide(backend, "redrive", one["id"])
    for _ in range(2):  # before its row is there, and after
        with pytest.raises(Conflict, match="is charged already"):
            await decide(backend, "redrive", other["id"])
        await backend.push()
        await drained(backend)
    assert await decide(backend, "resolve", other["id"], reason="the same") == "resolved"
    # A third copy is dropped: its request has a row here now.
    call.settle(tokens=40)
    await drained(backend)
    assert (letters(backend), world.late(), world.tenant.used) == ([], [], 40)


async def test_a_letter_keeps_all_that_was_settled(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await backend.made("credit-additions", organization_id=world.caller.organization_id, credits_added=100)
    await backend.push()
    cut(backend.database, datetime.now(UTC) - timedelta(days=40))
    metadata = b'{"model":"m","status":200}'
    used = {"credits": 12, "metadata": metadata, "attribution": "5\t6\tv"}
    call = settled_late(world, id_at(now_ms() - 60 * DAY_MS), service=CREDITS, **used)
    await drained(backend)
    [letter] = letters(backend)
    await decide(backend, "redrive", letter["id"])
    await backend.push()
    await drained(backend)
    assert backend.rows(CREDIT_COLUMNS) == [{"credits_used": 12, "balance_after": 88}]
    [row] = backend.rows(
        "select request_id::text, content_id, metadata->>'model' as model from credit_transaction"
    )
    assert row == {"request_id": call.id, "content_id": 5, "model": "m"}


async def test_a_hold_of_an_archived_month_is_let_go_and_no_lease_is(backend: Backend) -> None:
    """A Redis that was set back by months has it again: nobody knows here what became of its call."""
    world = await backend.settle_in(100)
    alive, old = world.reserve(need=10), world.reserve(need=20, request_id=id_at(now_ms()))
    lease = "00000000-0000-5000-8000-000000000000"
    cut(backend.database, datetime.now(UTC) - timedelta(days=40))
    world.client.zadd(keys.deadlines(world.p), {old.id: now_ms() - 50 * DAY_MS, lease: 1})
    held = await backend.counters.held(world.p)
    settled = await LedgerReader(backend.engine, keys.partition_of).settled(held)
    assert (alive.id in held, lease in held, settled) == (True, True, [old.id])
