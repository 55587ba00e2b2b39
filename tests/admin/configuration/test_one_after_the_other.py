"""Nobody keeps others waiting who apply: not for ever, not by trials, not by many rows of one name, and not
by applying for another organization.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import psycopg
import pytest
from sqlalchemy import text

from gateway.admin.api import views
from gateway.admin.configuration import planning
from gateway.admin.configuration.objects import Reference, WantedObject, Which
from gateway.admin.configuration.references import NameIndex
from gateway.admin.resources.people import ApiKeyCreate
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Mark, NewRowId, Row
from gateway.counters.redis.keys import partition_of
from gateway.errors import Overloaded
from persistence import apply_transaction
from persistence import engine as engines
from persistence.apply_transaction import ApplyTransaction
from persistence.engine import plain_url
from persistence.store import Store
from tests.admin.configuration.world import WORLD, Objects, apply, exported, plan
from tests.admin.conftest import Api
from tests.waiting import eventually

PRO: Objects = {"token-plans": [{"name": "Pro"}]}
SOME = 300
WAIT = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


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

    async def waits_as_ever(session: ApplyTransaction) -> object:
        await session.hold(wait_s=1)
        return await session._connection.scalar(text("SHOW lock_timeout"))

    assert await store.applying(waits_as_ever, keep=True) == "0"
    await pool.dispose()
    assert (await apply(api, PRO))["applied"]


async def test_a_trial_keeps_nobody_waiting_for_what_it_holds(api: Api, admin_database: str) -> None:
    """It has changed an organization and waits for a tenant, which somebody else has as long as we like."""
    await apply(
        api, {"organizations": [{"name": "Acme"}], "tenants": [{"organization": "Acme", "name": "Web"}]}
    )
    wanted: Objects = {
        "organizations": [{"name": "Acme", "due_days": 7}],
        "tenants": [{"organization": "Acme", "name": "Web", "limits": {"concurrency": 7}}],
    }
    url = plain_url(admin_database)
    async with await psycopg.AsyncConnection.connect(url) as third:
        other = psycopg.connect(url)
        other.execute("SELECT FROM tenant WHERE name = 'Web' FOR UPDATE")
        trial = asyncio.create_task(plan(api, wanted, trial=True))
        await eventually(lambda: other.execute(WAIT).fetchone() == (1,))
        await asyncio.wait_for(third.execute("SELECT FROM organization WHERE name = 'Acme' FOR UPDATE"), 30)
        told = await trial
        other.close()
    assert (len(told["changes"]), told["tried"]) == (2, False)
    assert (await plan(api, wanted, trial=True))["tried"]


async def operator_of(api: Api, name: str) -> tuple[int, Api]:
    """An organization, and who applies for it alone."""
    made = await api.make("organizations", name=name)
    token = await api.make("admin-tokens", name="t", role="operator", organization_id=made["id"])
    return made["id"], api.acting_as(token["token"])


async def test_staff_wait_for_no_organization_that_they_touch_nothing_of(
    api: Api, admin_database: str
) -> None:
    """One whose people apply takes as long as the test likes here: their turn is somebody's."""
    busy, theirs = await operator_of(api, "Busy")
    _, others = await operator_of(api, "Quiet")
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7809, %s)", (apply_transaction.of(busy),))
        slow = asyncio.create_task(apply(theirs, {"tenants": [{"name": "Theirs"}]}))
        await eventually(lambda: waiting_for_a_turn(other) == 1)
        assert (await apply(api, {**PRO, "organizations": [{"name": "New"}]}))["applied"]
        assert (await apply(api, {"tenants": [{"organization": "Quiet", "name": "Web"}]}))["applied"]
        assert (await apply(others, {"tenants": [{"name": "Ours"}]}, name="ours"))["applied"]
        assert not slow.done()
        other.rollback()
    assert (await slow)["applied"]


@pytest.mark.parametrize("is_changed", [False, True])
async def test_staff_who_touch_something_of_an_organization_wait_their_turn_and_plan_again(
    api: Api, admin_database: str, is_changed: bool
) -> None:
    organization_id, _ = await operator_of(api, "Acme")
    await apply(api, {"tenants": [{"organization": "Acme", "name": "Web"}]})
    wanted: Objects = {"api-keys": [{"tenant": {"organization": "Acme", "name": "Web"}, "name": "CI"}]}
    planned = await plan(api, wanted)
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7809, %s)", (apply_transaction.of(organization_id),))
        done = {"objects": wanted, "digest": planned["digest"]}
        asked = asyncio.create_task(api.post("configuration", done))
        await eventually(lambda: waiting_for_a_turn(other) == 1)
        if is_changed:
            other.execute("UPDATE tenant SET name = 'Another' WHERE organization_id = %s", (organization_id,))
        other.commit()
    answer = await asked
    assert answer.status == (409 if is_changed else 200), answer.json
    if is_changed:
        assert "plan again" in str(answer.json)


async def test_one_turn_of_an_organization_is_as_long_as_staff_wait(api: Api, admin_database: str) -> None:
    organization_id, _ = await operator_of(api, "Acme")
    assert views.ORGANIZATION.work_s_max < apply_transaction.LOCK_WAIT_S
    pool = engines.create(admin_database, connections_max=1)
    staff, touched = Store(pool, partition_of), [("organizations", organization_id, {})]
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7809, %s)", (apply_transaction.of(organization_id),))
        with pytest.raises(Overloaded, match="Somebody else is applying"):
            await staff.applying(lambda session: session.hold_touched(touched, wait_s=1), keep=True)
        within = staff.within(organization_id + 1)
        assert not await within.applying(lambda session: session.hold_touched(touched), keep=True)
        many = [("organizations", number, {}) for number in range(1, apply_transaction.ORGANIZATIONS_MAX + 2)]
        assert not await staff.applying(lambda session: session.hold_touched(many), keep=True)
    assert not await staff.applying(lambda session: session.hold_touched(touched), keep=True)
    await pool.dispose()


def test_an_object_that_is_planned_again_keeps_nobody_of_the_first_time() -> None:
    tenants = RESOURCES["tenants"]
    row = ApiKeyCreate(tenant_id=1, name="CI")
    to = {"tenant_id": Reference(tenants, {"name": "Web"})}
    wanted = WantedObject(RESOURCES["api-keys"], 0, 0, {}, row, {"name": "CI"}, to)
    first, second = NameIndex(None, [], {}), NameIndex(None, [], {})
    first.know(tenants, {"organization_id": 1, "name": "Web"}, 7)
    assert (first.resolve(wanted), wanted.ids) == (True, {"tenant_id": 7})
    assert (second.resolve(wanted), wanted.ids) == (False, {})


async def test_whose_what_is_written_is_is_known_by_its_row_and_by_what_it_names(
    api: Api, admin_database: str
) -> None:
    await apply(api, WORLD)
    pool = engines.create(admin_database, connections_max=1)

    def row(statement: str) -> int:
        with psycopg.connect(plain_url(admin_database)) as other:
            return int(other.execute(statement).fetchone()[0])  # type: ignore[index]  # there is one

    owner = "(SELECT id FROM organization WHERE name = 'Acme')"
    acme = row("SELECT id FROM organization WHERE name = 'Acme'")
    tenant = row(f"SELECT id FROM tenant WHERE organization_id = {owner} LIMIT 1")
    key = row(
        f"SELECT k.id FROM api_key k JOIN tenant t ON t.id = k.tenant_id WHERE t.organization_id = {owner}"
    )
    plan_id = row("SELECT id FROM token_plan LIMIT 1")
    hook = row("SELECT id FROM webhook WHERE organization_id IS NULL")
    for touched, found in (
        (("tenants", tenant, {}), {acme}),
        (("tenants", None, {"organization_id": acme, "token_plan_id": plan_id}), {acme}),
        (("tenants", None, {"organization_id": NewRowId(1)}), set()),
        (("api-keys", key, {}), {acme}),
        (("api-keys", None, {"tenant_id": tenant, "name": "x"}), {acme}),
        (("token-plans", plan_id, {}), set()),
        (("webhooks", hook, {}), set()),
    ):
        async with pool.connect() as connection:
            assert await apply_transaction._owners(connection, [touched]) == found, touched
    await pool.dispose()


def waiting_for_a_turn(connection: psycopg.Connection[object]) -> int:
    """How many of this database wait for somebody's turn to apply."""
    [count] = connection.execute(  # type: ignore[misc]  # one row
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7809 AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    return int(count)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of which kinds, and among how many rows of one name, the one that is meant was looked for."""
    found: list[tuple[str, int]] = []
    meant, among = planning.meant, NameIndex._among

    def counted(kind: str, rows: Sequence[Row], marks: Mapping[Which, Mark]) -> Sequence[Row]:
        if len(rows) > 1:
            found.append((kind, len(rows)))
        return meant(kind, rows, marks)

    def counted_too(names: NameIndex, kind: str, name: object, rows: Sequence[object]) -> Sequence[object]:
        found.append((kind, len(rows)))
        return among(names, kind, name, rows)

    monkeypatch.setattr(planning, "meant", counted)
    monkeypatch.setattr(NameIndex, "_among", counted_too)
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
    tenant = await api.make("tenants", name="Web")
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute(
            "INSERT INTO api_key (tenant_id, name, digest, prefix)"
            " SELECT %s, CASE n WHEN 0 THEN 'Own' ELSE 'Same' END, lpad(n::text, 64, '0'), 'tk'"
            "   FROM generate_series(0, %s) AS n",
            (tenant["id"], SOME),
        )
    told = await exported(api)
    assert [one["name"] for one in told["objects"]["api-keys"]] == ["Own"]
    assert len(told["left_out"]) == planning.LEFT_OUT_MAX + 1
    assert ("api-keys", SOME) in looked
