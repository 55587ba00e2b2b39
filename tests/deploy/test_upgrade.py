"""Upgraded, taken back and upgraded again under traffic: no call fails, and each is charged once.

The program before is one that was: `older.py`. Both have the same layout of what Redis holds, without which
there is no way back (`deploy/README.md`, Upgrade).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import psycopg

from persistence.schema.version import NEEDED
from tests.conftest import ValkeyServer, free_port
from tests.deploy import older
from tests.deploy.deployment import ADMIN_TOKEN, Deployment, answers
from tests.deploy.processes import READY_S_MAX, Admin, Process
from tests.deploy.rolling import USED, Charged, Gateways, Load, Outcome, loaded, streaming
from tests.tree import ROOT
from tests.waiting import wait_until

OLDER_SCHEMA = "0070"
LOAD = Load(rate=25, clients=8, streams=3, pieces=6)


class Rollout:
    """An installation of two gateways and a keeper, whose programs are replaced one at a time."""

    def __init__(self, folder: Path, redis_url: str, database: str) -> None:
        self.older = older.unpack(folder / "older")
        self.deployment = Deployment(folder, redis_url, database, PYTHONPATH=str(self.older))
        self.gateways = Gateways(self.deployment, 2)
        self.keeper, self.admin = self.deployment.keeper, self.deployment.admin

    async def begin_keeper(self, tree: Path) -> Process:
        """Another keeper, of this program, beside the one that is there and is answered."""
        self.deployment.environ["PYTHONPATH"] = str(tree)
        port, before = free_port(), self.keeper
        self.keeper = await asyncio.to_thread(self.deployment.start, "keeper", "--admin-port", str(port))
        await asyncio.to_thread(wait_until, lambda: answers(port), READY_S_MAX)
        self.admin = Admin(port, ADMIN_TOKEN)
        return before

    async def replace_keeper(self, tree: Path) -> None:
        """Both are there for a moment."""
        before = await self.begin_keeper(tree)
        assert await asyncio.to_thread(before.stop) == 0

    async def replace_gateways(self, tree: Path) -> None:
        self.deployment.environ["PYTHONPATH"] = str(tree)
        for index in range(len(self.gateways.ports)):
            await self.gateways.replace(index)

    async def migrate(self, tree: Path) -> None:
        self.deployment.environ["PYTHONPATH"] = str(tree)
        made = await asyncio.to_thread(self.deployment.start, "migrate")
        assert await asyncio.to_thread(made.ended) == 0, made.said


async def test_an_upgrade_and_the_way_back_fail_no_call_and_charge_each_once(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    rollout = Rollout(tmp_path, own_valkey("--appendonly", "yes").url, database)
    try:
        assert schema_of(database) == OLDER_SCHEMA < NEEDED
        (tenant, key), (streaming_tenant, streaming_key) = (rollout.admin.customer(None) for _ in range(2))
        outcome = Outcome()
        async with rollout.gateways.balancer.listening(), asyncio.TaskGroup() as going:
            going.create_task(loaded(rollout.gateways, key, LOAD, outcome))
            for _ in range(LOAD.streams):
                going.create_task(streaming(rollout.gateways, streaming_key, LOAD, outcome))
            try:
                await upgraded(rollout, tenant)
                assert schema_of(database) == NEEDED
                await taken_back(rollout)
                assert schema_of(database) == NEEDED
                await rollout.replace_keeper(ROOT)
                await rollout.replace_gateways(ROOT)
            finally:
                outcome.over = True
        assert (outcome.failures, outcome.cut) == ({}, {})
        assert outcome.statuses.keys() == {200}
        calls, streams = outcome.statuses[200], outcome.streams
        wait_until(lambda: who_runs(rollout.admin) == ["gateway", "gateway", "keeper"])
        for process in rollout.gateways.processes:
            assert process.stop() == 0
        for of, count in ((tenant, calls), (streaming_tenant, streams)):
            assert count > 0
            wait_until(lambda of=of, count=count: Charged.of(database, of).rows >= count)
            assert Charged.of(database, of) == Charged(rows=count, calls=count, tokens=count * USED)
        assert put_aside(database) == [0, 0, 0]
        outgrow(database)
        assert rollout.keeper.ended() == 1
        assert (
            f"schema version 9999, this program knows {NEEDED} at most: run a newer one"
            in rollout.keeper.said
        )
    finally:
        rollout.deployment.stop()


async def upgraded(rollout: Rollout, tenant: int) -> None:
    """As the runbook has it; while there are both keepers, people ask the older one too."""
    await rollout.migrate(ROOT)
    older_admin = rollout.admin
    older_keeper = await rollout.begin_keeper(ROOT)
    await asyncio.to_thread(delete_with_an_older_keeper, older_admin, rollout.admin, tenant)
    assert await asyncio.to_thread(older_keeper.stop) == 0
    await rollout.replace_gateways(ROOT)


async def taken_back(rollout: Rollout) -> None:
    """The same in turn, on the newer schema."""
    await rollout.replace_gateways(rollout.older)
    await rollout.migrate(rollout.older)
    await rollout.replace_keeper(rollout.older)


def delete_with_an_older_keeper(older_admin: Admin, admin: Admin, tenant: int) -> None:
    """A key that stands in another's place, of which only the newer program knows."""
    old = admin.ask("POST", "/api-keys", tenant_id=tenant)
    new = admin.ask("POST", f"/api-keys/{old['id']}/rotate")
    older_admin.ask("POST", f"/api-keys/{new['id']}/revoke")
    wait_until(partial(deleted, older_admin, f"/api-keys/{new['id']}"))
    assert admin.ask("GET", f"/api-keys/{old['id']}")["replaced_by_id"] is None


def deleted(admin: Admin, path: str) -> bool:
    """Whether it is; not before its revocation has reached the counters."""
    try:
        admin.ask("DELETE", path)
    except HTTPError as error:
        said = error.read().decode()
        assert "has not reached the counters yet" in said, said
        return False
    return True


def who_runs(admin: Admin) -> list[str]:
    """Programs that say that they are there, and serve."""
    return sorted(one["role"] for one in admin.ask("GET", "/programs")["items"] if not one["refused"])


def outgrow(database: str) -> None:
    """What a migration leaves that serves no older program."""
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("COMMENT ON TABLE alembic_version IS 'runs from 9999'")


def schema_of(database: str) -> str:
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert found is not None
    return str(found[0])


def put_aside(database: str) -> list[int]:
    """Letters, quarantines and movements that are counted as lost."""
    counts = ", ".join(f"(SELECT count(*) FROM {one})" for one in ("dead_letter", "quarantine", "lost_event"))
    with psycopg.connect(database) as connection:
        found = connection.execute(f"SELECT {counts}").fetchone()
    assert found is not None
    return [int(one) for one in found]
