"""Nobody keeps others waiting who apply: not for ever, not by trials, and not by many rows of one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg
import pytest
from sqlalchemy import text

from gateway.admin.configuration import exporting, matching
from gateway.admin.configuration.matching import Which
from gateway.core.accounts.administration import Row
from gateway.core.accounts.declaration import Mark
from gateway.counters.redis.keys import partition_of
from gateway.errors import Overloaded
from persistence import engine as engines
from persistence.applying import Applying
from persistence.engine import plain_url
from persistence.store import Store
from tests.admin.configuration.world import Objects, apply, exported, plan
from tests.admin.conftest import Api

PRO: Objects = {"token-plans": [{"name": "Pro"}]}
SOME = 300


async def test_while_one_applies_a_trial_is_answered_and_another_one_ends_in_time(
    api: Api, admin_database: str
) -> None:
    pool = engines.create(admin_database, connections_max=1)
    store = Store(pool, partition_of)
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7809, 0)")
        assert (await plan(api, PRO, trial=True))["tried"]
        with pytest.raises(Overloaded, match="Somebody else is applying, and takes long: try again"):
            await store.applying(lambda session: session.hold(wait_s=1), keep=True)

    async def waits_as_ever(session: Applying) -> object:
        await session.hold(wait_s=1)
        return await session._connection.scalar(text("SHOW lock_timeout"))

    assert await store.applying(waits_as_ever, keep=True) == "0"
    await pool.dispose()
    assert (await apply(api, PRO))["applied"]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of which kinds, and among how many rows of one name, the one that is meant was looked for."""
    found: list[tuple[str, int]] = []
    meant = matching.meant

    def counted(kind: str, rows: Sequence[Row], marks: Mapping[Which, Mark]) -> Sequence[Row]:
        if len(rows) > 1:
            found.append((kind, len(rows)))
        return meant(kind, rows, marks)

    for module in (matching, exporting):
        monkeypatch.setattr(module, "meant", counted)
    return found


async def test_many_objects_that_say_one_name_of_many_rows_look_for_it_once(
    api: Api, looked: list[tuple[str, int]]
) -> None:
    api.counters.away = True
    names = [f"o{number}" for number in range(SOME)]
    all_of_them: Objects = {
        "organizations": [{"name": name} for name in names],
        "tenants": [{"organization": name, "name": "Web"} for name in names],
    }
    await apply(api, all_of_them, name="others")
    await apply(api, {kind: some[:1] for kind, some in all_of_them.items()}, name="mine")
    looked.clear()
    keys = {"api-keys": [{"tenant": "Web", "name": f"k{number}"} for number in range(SOME)]}
    planned = await plan(api, keys, name="mine")
    assert [each["change"] for each in planned["changes"]] == ["create"] * SOME
    assert looked == [("tenants", SOME)]


async def test_many_rows_of_one_name_are_looked_for_once_as_they_are_left_out(
    api: Api, admin_database: str, looked: list[tuple[str, int]]
) -> None:
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute(
            "INSERT INTO organization (name)"
            " SELECT 'Same' FROM generate_series(1, %s) UNION ALL SELECT 'Own'",
            (SOME,),
        )
    told = await exported(api)
    assert [one["name"] for one in told["objects"]["organizations"]] == ["Own"]
    assert len(told["left_out"]) == exporting.LEFT_OUT_MAX + 1
    assert looked == [("organizations", SOME)]
