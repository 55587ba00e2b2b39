"""Control writes as they are taken to be pushed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.timed.pusher import Pusher
from gateway.core.accounts.definitions import ControlWrite, KeyDefinition
from gateway.core.accounts.plans import PlanTerms
from gateway.core.integrity.recovery import NewestWrite
from gateway.core.model import Limits
from persistence import engine as engines
from persistence.keeper.definitions import WRITES_MAX, Pushes, catalogue
from tests.connections import connected
from tests.persistence.scenario import settle_in


async def test_a_plan_is_pushed_as_it_was_committed(migrated: str, pool: AsyncEngine) -> None:
    [account] = settle_in(migrated, 1000)
    committed = {
        "plan_id": 4, "total_amount": 9, "reset_interval": "weekly", "overage_policy": "carry",
        "rollover_max": 2, "admission": "strict", "on_exhausted": "cut", "on_store_failure": "allow",
        "anchor": 5,
    }  # fmt: skip
    with connected(migrated, autocommit=True) as connection:
        connection.execute("DELETE FROM control_write")
        connection.execute(
            "INSERT INTO control_write (account, verb, payload) VALUES (%s, 'plan', %s)",
            (f"tenant:{account.tenant_id}", json.dumps(committed)),
        )
    name = f"tenant:{account.tenant_id}"
    async with Pushes(pool).waiting([name]) as waiting:
        (write,) = waiting.by_account[name]
    assert write.terms == PlanTerms(
        plan_id=4, total_amount=9, reset_interval="weekly", overage_policy="carry", rollover_max=2,
        admission="strict", on_exhausted="cut", on_store_failure="allow", anchor=5,
    )  # fmt: skip


async def test_pushes_of_no_partition_wait_for_a_keeper_of_any_partition(
    migrated: str, pool: AsyncEngine
) -> None:
    with connected(migrated, autocommit=True) as connection:
        connection.execute("DELETE FROM control_write")
        connection.execute(
            "INSERT INTO control_write (account, verb, payload, partition)"
            " VALUES ('prices', 'define', '{}', NULL), ('tenant:7', 'define', '{}', 7),"
            " ('tenant:8', 'define', '{}', 8)"
        )
    pushes = Pushes(pool)
    found = [await pushes.accounts(9, some) for some in ([7], [], None)]
    assert found == [["prices", "tenant:7"], ["prices"], ["prices", "tenant:7", "tenant:8"]]


async def test_the_catalogue_weighs_tokens_of_plans_that_are_there(migrated: str, pool: AsyncEngine) -> None:
    weights, gone = '{"input": "0.5"}', datetime.now(UTC)
    plans = [
        ("weighed", weights, None),
        ("plain", None, None),
        ("empty", "{}", None),
        ("gone", weights, gone),
    ]
    with connected(migrated, autocommit=True) as connection:
        insert = "INSERT INTO token_plan (name, weights, deleted_at) VALUES (%s, %s, %s) RETURNING id"
        weighed, *_ = [connection.execute(insert, plan).fetchone() for plan in plans]
    async with pool.connect() as connection:
        found = (await catalogue(connection)).weights
    assert weighed is not None
    assert found == {weighed[0]: {"input": 500_000}}


async def test_a_key_that_was_deleted_says_that_its_subject_is_nobodys(
    migrated: str, pool: AsyncEngine
) -> None:
    with connected(migrated, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO control_write (account, verb, payload) VALUES ('key:987654', 'define', %s),"
            " ('key:987655', 'define', '{}')",
            (json.dumps({"digest": "d" * 64, "organization_id": 5}),),
        )
    names = ["key:987654", "key:987655"]
    async with Pushes(pool).waiting(names) as waiting:
        found = [waiting.by_account[name][0].definitions for name in names]
    gone = KeyDefinition(987654, 0, 5, "d" * 64, Limits(), revoked=True, of_tokens=True, gone=True)
    assert found == [(gone,), ()]


class Applied:
    """Counters that never know one account, and have all else."""

    def __init__(self, unknown: str) -> None:
        self.unknown, self.had = unknown, list[ControlWrite]()

    async def newest_write(self) -> None:
        """None: Redis was told of nothing."""

    async def note_newest(self, write: NewestWrite) -> None:
        """Note nothing: of these, `tests/persistence/test_ids.py` tells."""

    async def apply(self, write: ControlWrite) -> bool:
        self.had += [write] if write.account != self.unknown else []
        return write.account != self.unknown


async def test_an_account_that_is_stuck_with_all_the_oldest_writes_keeps_no_other_waiting(
    migrated: str,
) -> None:
    stuck, many, one = names = ["organization:987001", "organization:987002", "organization:987003"]
    with connected(migrated, autocommit=True) as connection:
        for name, count in zip(names, (WRITES_MAX + 1, WRITES_MAX // 2, 1), strict=True):
            connection.execute(
                "INSERT INTO control_write (account, verb, payload)"
                " SELECT %s, 'budget', jsonb_build_object('n', n)"
                " FROM generate_series(1, %s) AS n ORDER BY n",
                (name, count),
            )
        engine = engines.create(migrated)
        pushes, target = Pushes(engine), Applied(stuck)
        async with pushes.waiting(names) as waiting:
            taken = {name: len(writes) for name, writes in waiting.by_account.items()}
            cut = {*waiting.cut}
        left = await Pusher(pushes, target).push(names)
        await engine.dispose()
        waits = connection.execute(
            "SELECT DISTINCT account FROM control_write WHERE state = 'pending' AND account = ANY(%s)",
            (names,),
        ).fetchall()
    assert taken == {stuck: WRITES_MAX // 3, many: WRITES_MAX // 3, one: 1}
    assert cut == {stuck, many}
    assert left == [stuck]
    assert waits == [(stuck,)]
    its = [write.payload["n"] for write in target.had if write.account == many]
    assert its == list(range(1, WRITES_MAX // 2 + 1))
    assert len(target.had) == WRITES_MAX // 2 + 1
