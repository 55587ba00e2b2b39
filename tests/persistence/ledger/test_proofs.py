"""What was proven is believed: the invariants read what is behind it, and the whole where somebody asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from persistence.billing.allocations import Allocations
from persistence.ledger import invariants
from persistence.ledger.checkpoints import Checkpoints
from tests.ops.archive.aging import months_made
from tests.persistence.ledger.test_checkpoints import Past, nodes
from tests.persistence.scenario import broken, rows_of

# Twenty movements of each account in each of three months that are proven, ten in the month that is open.
BEFORE, BEHIND_IT = 10, 66
CLOSED = ("y2026m01", "y2026m02", "y2026m03")
_DIALECT = PGDialect_psycopg()
_NEW, _WHOLE = (
    str(asked.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True})).encode()
    for asked in (invariants.NEW, invariants.ALL)
)
# Statements that make a row say something wrong, by the invariant that tells it.
FAULTS = {
    "chain": "UPDATE token_ledger SET total_remaining = total_remaining + 1 WHERE seq = {seq}",
    "gapless": "DELETE FROM feature_usage WHERE seq = {seq}",
    "quota": "UPDATE token_ledger SET amount = amount + 1 WHERE seq = {seq}",
    "credits": "UPDATE credit_transaction SET credits_used = credits_used + 1 WHERE seq = {seq}",
    "carried": "UPDATE credit_transaction SET carried = carried + 1 WHERE seq = {seq}",
    "request_once": (
        "UPDATE feature_usage AS f SET request_id = o.request_id FROM feature_usage AS o"
        " WHERE f.seq = {seq} AND o.seq = {seq} - 1"
    ),
    "rollup": "UPDATE feature_usage SET usage_amount = usage_amount + 1 WHERE seq = {seq}",
    "allocations": "UPDATE credit_allocation SET amount = amount + 1 WHERE seq = {seq}",
}


async def lived(url: str, months: int) -> Past:
    """A past whose partitions were made for so many months; what is later is in the default ones."""
    months_made(url, "2026-01-01Z", months)
    past = Past(url, 1_000_000)
    past.begin()
    for _ in range(3):
        for _ in range(20):
            past.use(3)
        past.on(31)
    assert await proved(past) == []
    for _ in range(10):
        past.use(3)
    past.store()
    await allocated(past)
    return past


async def proved(past: Past) -> list[tuple[str, str]]:
    """Have what is over closed and proven, as a keeper does."""
    await past.close()
    await allocated(past)
    owners, month = [past.account.organization_id], past.today.replace(day=1)
    return list(await Checkpoints(past.pool).prove(owners, month))


async def allocated(past: Past) -> None:
    while not await Allocations(past.pool).allocate(past.account.organization_id):
        pass


@pytest.fixture
async def old(cloned: str) -> AsyncIterator[Past]:
    past = await lived(cloned, 6)
    yield past
    await past.end()


def change(past: Past, statement: str) -> None:
    """What triggers and grants refuse to everybody."""
    with psycopg.connect(past.url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        assert connection.execute(statement.encode()).rowcount == 1


def told_of(past: Past, fault: str, *, whole: bool) -> set[str]:
    """What is told of a row that says something wrong, which it does not for long."""
    with psycopg.connect(past.url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        assert connection.execute(fault.encode()).rowcount == 1
        found = connection.execute(_WHOLE if whole else _NEW).fetchall()
        connection.rollback()
    return {str(name) for name, *_ in found}


async def told(past: Past, *, whole: bool) -> set[str]:
    return {each.invariant for each in await broken(past.url, whole=whole)}


def proofs(past: Past) -> dict[object, object]:
    return dict(rows_of(past.url, "SELECT split_part(account, ':', 1), last_seq FROM proof_in_force"))  # type: ignore[arg-type]  # two columns


@pytest.mark.parametrize("months", [6, 2], ids=["partitions", "the open month has none"])
async def test_a_fault_behind_the_proof_is_found(cloned: str, months: int) -> None:
    past = await lived(cloned, months)
    assert proofs(past) == {"tenant": 61, "credits": 60, "spend": 60}
    assert await told(past, whole=False) == set()
    for invariant, fault in FAULTS.items():
        assert invariant in told_of(past, fault.format(seq=BEHIND_IT), whole=False)
    await past.end()


async def test_a_fault_before_the_proof_is_found_in_the_whole(old: Past) -> None:
    for invariant, fault in FAULTS.items():
        assert told_of(old, fault.format(seq=BEFORE), whole=False) == set(), invariant
        assert invariant in told_of(old, fault.format(seq=BEFORE), whole=True)


async def test_partitions_before_the_proof_are_not_read(old: Past) -> None:
    with psycopg.connect(old.url) as connection:
        # Ids as gateways make them: what was called in April says so.
        connection.execute("SET LOCAL session_replication_role = replica")
        for ledger in ("token_ledger", "credit_transaction", "feature_usage"):
            named = "overlay(request_id::text PLACING '019d6000' FROM 1 FOR 8)::uuid"
            connection.execute(f"UPDATE {ledger} SET request_id = {named} WHERE seq > 61".encode())
        for name in invariants.BEHIND:
            asked = f"EXPLAIN (ANALYZE, FORMAT json) TABLE behind_{name}"
            row = connection.execute(asked.encode()).fetchone()
            assert row is not None
            read = {
                str(node["Relation Name"])
                for node in nodes(row[0][0]["Plan"])
                if node.get("Relation Name") and node["Actual Loops"]
            }
            assert not [each for each in read if each.endswith(CLOSED)], name
            assert name == "checkpoints" or any(each.endswith("y2026m04") for each in read)


async def test_what_comes_late_is_read_where_it_is(old: Past) -> None:
    """Its time is of a month that is proven, its place behind that."""
    old.on(-25)
    old.account.consume(3, credits_=3)
    old.on(25)
    old.store()
    await allocated(old)
    assert (await told(old, whole=False), await told(old, whole=True)) == (set(), set())
    for invariant, seq in {"chain": 72, "carried": 71}.items():
        assert invariant in told_of(old, FAULTS[invariant].format(seq=seq), whole=False)


async def test_a_request_that_is_charged_on_both_sides_is_found(old: Past) -> None:
    """Its id says that it began before the month that is open."""
    began = "019c0000-0000-7000-8000-000000000001"
    for seq in (60, 62):
        change(old, f"UPDATE token_ledger SET request_id = '{began}' WHERE seq = {seq}")
    assert "request_once" in await told(old, whole=False)


async def test_what_contradicts_itself_stays_behind(old: Past) -> None:
    tenant = f"tenant:{old.account.tenant_id}"
    change(old, FAULTS["chain"].format(seq=BEHIND_IT))
    old.on(31)
    old.use(3)
    assert await proved(old) == [(tenant, "chain")]
    assert proofs(old) == {"tenant": 61, "credits": 70, "spend": 70}
    assert await told(old, whole=False) == {"chain"}
    change(old, f"UPDATE token_ledger SET total_remaining = total_remaining - 1 WHERE seq = {BEHIND_IT}")
    assert await proved(old) == []
    assert proofs(old) == {"tenant": 71, "credits": 70, "spend": 70}
    assert await told(old, whole=False) == set()


async def test_what_is_not_allocated_yet_is_proven_later(old: Past) -> None:
    old.on(31)
    old.use(3)
    await old.close()
    rows_of(old.url, "UPDATE organization SET allocated_seq = 65 RETURNING 1")
    owners, month = [old.account.organization_id], old.today.replace(day=1)
    await Checkpoints(old.pool).prove(owners, month)
    assert proofs(old)["credits"] == 60


async def test_a_movement_that_takes_an_earlier_place_ends_the_proof(old: Past) -> None:
    change(
        old,
        "INSERT INTO account_checkpoint (account, first_seq, last_seq, version, month, movements, amount)"
        " SELECT account, first_seq, last_seq, 2, month, movements, amount FROM account_checkpoint"
        " WHERE starts_with(account, 'tenant:') ORDER BY last_seq LIMIT 1",
    )
    assert "tenant" not in proofs(old)
    # Without it the account is read from its beginning.
    change(old, FAULTS["chain"].format(seq=BEFORE))
    assert "chain" in await told(old, whole=False)


async def test_a_proof_that_was_changed_is_told(old: Past) -> None:
    for column in ("balance", "used", "epoch", "last_seq"):
        fault = f"UPDATE account_proof SET {column} = {column} + 5 WHERE starts_with(account, 'tenant:')"
        assert told_of(old, fault, whole=False), column


async def test_a_proof_and_a_checkpoint_made_by_hand_hide_nothing_from_the_whole(old: Past) -> None:
    change(old, FAULTS["chain"].format(seq=BEHIND_IT))
    change(
        old,
        "UPDATE account_proof SET last_seq = 71, balance = balance - 30, used = used + 30"
        " WHERE starts_with(account, 'tenant:')",
    )
    assert "checkpoints" in await told(old, whole=False)
    change(
        old,
        "INSERT INTO account_checkpoint (account, first_seq, last_seq, month, movements, amount)"
        " SELECT account, 61, 71, '2026-04-01', 10, -30 FROM account_proof"
        " WHERE starts_with(account, 'tenant:')",
    )
    change(old, "UPDATE account_proof SET checkpoints = 4 WHERE starts_with(account, 'tenant:')")
    assert await told(old, whole=False) == set()
    assert await told(old, whole=True) == {"chain"}


async def test_an_account_without_a_movement_is_proven_too(old: Past) -> None:
    rows_of(old.url, "INSERT INTO organization (name) VALUES ('new') RETURNING 1")
    [(made,)] = rows_of(old.url, "SELECT max(id) FROM organization")
    assert isinstance(made, int)
    assert await Checkpoints(old.pool).prove([made], old.today.replace(day=1)) == []
    asked = "SELECT account, last_seq FROM proof_in_force WHERE organization_id = %s"
    found = rows_of(old.url, asked, [made])
    assert sorted(found) == [(f"credits:{made}", 0), (f"spend:{made}", 0)]


async def test_who_was_proven_this_month_is_not_read_again(old: Past) -> None:
    """A keeper that starts again finds nobody to look at, whatever their rows say by now."""
    change(old, FAULTS["chain"].format(seq=BEHIND_IT))
    assert await proved(old) == []
    assert "chain" in await told(old, whole=False)
