"""A plan takes as much work as its body is long, counted in calls: of a body, and of one twice as long."""

from __future__ import annotations

import asyncio
import json
import random
import string
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import text

from gateway.admin.api import configuration, uploads
from gateway.admin.api.uploads import (
    ORGANIZATION,
    ORGANIZATIONS_AT_ONCE_MAX,
    ORGANIZATIONS_THERE_MAX,
    READER,
    STAFF,
    UploadSlots,
)
from gateway.admin.configuration import objects, planning
from gateway.admin.configuration.objects import ERRORS_MAX, Reference, WantedObject, Which, read
from gateway.admin.configuration.planning import Planner
from gateway.admin.configuration.references import NameIndex
from gateway.admin.configuration.suggestions import CHARS_MAX, SUGGESTED_MAX
from gateway.admin.configuration.words import KINDS
from gateway.admin.http import bodies
from gateway.admin.resources.people import ApiKeyCreate
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Actor, Mark, NewRowId, Row
from gateway.counters.redis.keys import partition_of
from gateway.errors import Overloaded, TooManyRequests, Unprocessable
from persistence import apply_transaction
from persistence import engine as engines
from persistence.apply_transaction import ApplyTransaction
from persistence.engine import ORGANIZATIONS_CONNECTIONS_MAX, STAFF_CONNECTIONS_MAX, plain_url
from persistence.keeper.definitions import PUSHES_AT_ONCE_MAX
from persistence.store import Store
from tests.admin.configuration.test_many import person
from tests.admin.configuration.world import WORLD, Objects, apply, exported, plan, refused
from tests.admin.conftest import Api
from tests.connections import connected
from tests.waiting import eventually

FEW = 120
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Empty:
    """An installation in which nothing is."""

    async def find(
        self, resource: str, wanted: Mapping[str, Collection[object]], rows_max: int, *, folded: bool = False
    ) -> Sequence[Row]:
        """Nothing."""
        return []


def named(number: int, seed: int, chars: int = 100) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices(string.ascii_lowercase, k=chars)) for _ in range(number)]


def wrong(number: int) -> Objects:
    """Keys of tenants that are not there, beside as many that are."""
    return {
        "tenants": [{"name": name, "organization": "Acme"} for name in named(number, 1)],
        "organizations": [{"name": "Acme"}],
        "api-keys": [{"name": "k", "tenant": name} for name in named(number, 2)],
    }


def right(number: int) -> Objects:
    return {
        "organizations": [{"name": "Acme"}],
        "tenants": [{"name": name, "organization": "Acme"} for name in named(number, 1)],
        "api-keys": [{"name": name, "tenant": name} for name in named(number, 1)],
    }


def one_name(number: int) -> Objects:
    """Many objects of one name, each of its own organization or time."""
    names = named(number, 3)
    return {
        "organizations": [{"name": name} for name in names],
        "tenants": [{"name": "Web", "organization": name} for name in names],
        "prices": [
            {"model": "m", "currency": "USD", "input": "1", "effective_from": f"{2000 + at}-01-01T00:00:00Z"}
            for at in range(number)
        ],
        "api-keys": [{"name": "k", "tenant": {"organization": name, "name": "Web"}} for name in names],
    }


def twice(number: int) -> Objects:
    """One object again and again."""
    return {"token-plans": [{"name": "Pro"}] * number}


async def planned(objects: Objects) -> None:
    found = read(objects, NOW)
    planner = Planner(cast("ApplyTransaction", Empty()), found, Actor("t", "admin"), [], datetime.now(UTC))
    with suppress(Unprocessable):
        await planner.plan(prune=False)


def calls_of(objects: Objects) -> int:
    """How many functions are called to plan objects, those of Python's own with them, in all threads."""
    calls = [0]

    def count(_: FrameType, event: str, __: Any) -> None:
        calls[0] += event in {"call", "c_call"}

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        asyncio.run(planned(objects))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # what ends it, as its documentation says
    return calls[0]


@pytest.mark.parametrize("made", [wrong, right, one_name, twice])
def test_plan_of_twice_as_many_objects_makes_about_twice_as_many_function_calls(made: Any) -> None:
    calls_of(made(FEW))  # what is made once
    few, many = calls_of(made(FEW)), calls_of(made(2 * FEW))
    assert many < 2.2 * few, (few, many)


async def test_plan_lists_a_limited_number_of_errors_and_suggests_names_for_the_first_few(api: Api) -> None:
    errors = await refused(api, wrong(FEW))
    assert len(errors) == ERRORS_MAX
    near = {
        "organizations": [{"name": "Acme"}],
        "tenants": [{"name": "Webshop", "organization": "Acme"}],
        "api-keys": [{"name": f"k{at}", "tenant": "Webshap"} for at in range(SUGGESTED_MAX + 1)],
    }
    told = [*(await refused(api, near)).values()]
    assert told == [
        *["there is no tenant named 'Webshap'; did you mean 'Webshop'?"] * SUGGESTED_MAX,
        "there is no tenant named 'Webshap'; no object here makes one",
    ]
    long = {"tenants": [{"name": "Web", "organization": "a" * (CHARS_MAX + 1)}]}
    assert "no object here makes one" in str(await refused(api, long))


async def test_apply_by_a_role_without_write_rights_is_403_before_the_objects_are_checked(api: Api) -> None:
    await api.make("organizations", name="Acme")
    reader, _ = await person(api, "readonly", "Acme")
    asked = {"objects": {"tenants": [{"name": 5}], "api-keys": "wrong"}, "digest": "0" * 64}
    for more in ({}, {"prune": True}):
        answer = await reader.post("configuration", {**asked, **more})
        assert (answer.status, "readonly" in answer.json["detail"]) == (403, True)
    operator, _ = await person(api, "operator", "Acme")
    assert (await operator.post("configuration", asked)).status == 422
    billed = {"objects": {"prices": []}, "digest": "0" * 64}
    assert (await operator.post("configuration", billed)).status == 403


# --- one after the other ----------------------------------------------------------------
# Nobody keeps others waiting who apply: not for ever, not by trials, not by many rows of one name, and not
# by applying for another organization.


PRO: Objects = {"token-plans": [{"name": "Pro"}]}
SOME = 300
WAIT = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_running_apply_lets_trial_runs_pass_and_makes_other_applies_time_out(
    api: Api, admin_database: str
) -> None:
    pool = engines.create(admin_database, connections_max=1)
    store = Store(pool, partition_of)
    with connected(plain_url(admin_database)) as other:
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


async def test_trial_run_waiting_for_a_locked_row_releases_the_locks_already_taken(
    api: Api, admin_database: str
) -> None:
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
        other = psycopg.connect(url)  # it ends in the midst of its transaction
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


async def test_apply_by_staff_does_not_wait_for_an_apply_by_an_organization_the_files_do_not_change(
    api: Api, admin_database: str
) -> None:
    """One whose people apply takes as long as the test likes here: their turn is somebody's."""
    busy, theirs = await operator_of(api, "Busy")
    _, others = await operator_of(api, "Quiet")
    with connected(plain_url(admin_database)) as other:
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
async def test_apply_by_staff_waits_for_the_organization_being_changed_and_is_409_after_a_change(
    api: Api, admin_database: str, is_changed: bool
) -> None:
    organization_id, _ = await operator_of(api, "Acme")
    await apply(api, {"tenants": [{"organization": "Acme", "name": "Web"}]})
    wanted: Objects = {"api-keys": [{"tenant": {"organization": "Acme", "name": "Web"}, "name": "CI"}]}
    planned = await plan(api, wanted)
    with connected(plain_url(admin_database)) as other:
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


async def test_apply_by_staff_times_out_while_an_apply_of_the_changed_organization_is_running(
    api: Api, admin_database: str
) -> None:
    organization_id, _ = await operator_of(api, "Acme")
    assert uploads.ORGANIZATION.work_s_max < apply_transaction.LOCK_WAIT_S
    pool = engines.create(admin_database, connections_max=1)
    staff, touched = Store(pool, partition_of), [("organizations", organization_id, {})]
    with connected(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7809, %s)", (apply_transaction.of(organization_id),))
        with pytest.raises(Overloaded, match="Somebody else is applying"):
            await staff.applying(lambda session: session.hold_touched(touched, wait_s=1), keep=True)
        within = staff.within(organization_id + 1)
        assert not await within.applying(lambda session: session.hold_touched(touched), keep=True)
        many = [("organizations", number, {}) for number in range(1, apply_transaction.ORGANIZATIONS_MAX + 2)]
        assert not await staff.applying(lambda session: session.hold_touched(many), keep=True)
    assert not await staff.applying(lambda session: session.hold_touched(touched), keep=True)
    await pool.dispose()


def test_replanned_object_drops_the_row_ids_found_by_the_first_plan() -> None:
    tenants = RESOURCES["tenants"]
    row = ApiKeyCreate(tenant_id=1, name="CI")
    to = {"tenant_id": Reference(tenants, {"name": "Web"})}
    wanted = WantedObject(RESOURCES["api-keys"], 0, 0, {}, row, {"name": "CI"}, to)
    first, second = NameIndex(None, [], {}), NameIndex(None, [], {})
    first.know(tenants, {"organization_id": 1, "name": "Web"}, 7)
    assert (first.resolve(wanted), wanted.ids) == (True, {"tenant_id": 7})
    assert (second.resolve(wanted), wanted.ids) == (False, {})


async def test_organization_affected_by_a_write_is_found_from_the_row_and_from_referenced_rows(
    api: Api, admin_database: str
) -> None:
    await apply(api, WORLD)
    pool = engines.create(admin_database, connections_max=1)

    def row(statement: str) -> int:
        with connected(plain_url(admin_database)) as other:
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
    meant, narrow_ids = planning.meant, NameIndex._narrow_ids

    def counted(kind: str, rows: Sequence[Row], marks: Mapping[Which, Mark]) -> Sequence[Row]:
        if len(rows) > 1:
            found.append((kind, len(rows)))
        return meant(kind, rows, marks)

    def counted_too(names: NameIndex, kind: str, name: object, rows: Sequence[object]) -> Sequence[object]:
        found.append((kind, len(rows)))
        return narrow_ids(names, kind, name, rows)

    monkeypatch.setattr(planning, "meant", counted)
    monkeypatch.setattr(NameIndex, "_narrow_ids", counted_too)
    return found


async def test_plan_of_many_objects_that_name_the_same_tenant_looks_the_name_up_once(
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


async def test_export_looks_a_name_shared_by_many_rows_up_once_and_leaves_the_rows_out(
    api: Api, admin_database: str, looked: list[tuple[str, int]]
) -> None:
    tenant = await api.make("tenants", name="Web")
    with connected(plain_url(admin_database)) as other:
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


# --- shares -----------------------------------------------------------------------------
# A plan takes its caller's share of turns, memory and time, and no more.


BUSY = "under way already"


def somebody(organization: int | None) -> Actor:
    return Actor("somebody", "readonly", organization_id=organization)


async def test_configuration_uploads_by_organizations_never_take_the_upload_slots_of_staff() -> None:
    free = UploadSlots()
    async with AsyncExitStack() as held:
        for number in range(1, 1 + ORGANIZATIONS_THERE_MAX):
            assert await held.enter_async_context(free.acquire(somebody(number))) is READER
        for number in range(1, 1 + ORGANIZATIONS_AT_ONCE_MAX):
            await held.enter_async_context(free.working(somebody(number)))
        for full, one, whose in (
            (free.acquire, 1, "for this organization"),
            (free.acquire, 99, "for other organizations"),
            (free.working, 99, "for other organizations"),
        ):
            with pytest.raises((Overloaded, TooManyRequests), match=f"{BUSY} {whose}"):
                await full(somebody(one)).__aenter__()
        async with free.acquire(somebody(None)) as share, free.working(somebody(None)):
            assert share is STAFF


@pytest.mark.parametrize(
    ("role", "most"), [("readonly", READER.objects_max), ("admin", ORGANIZATION.objects_max)]
)
async def test_an_organization_plans_fewer_objects_at_once_than_staff(api: Api, role: str, most: int) -> None:
    owner = await api.make("organizations", name="Many")
    token = await api.make("admin-tokens", name="t", role=role, organization_id=owner["id"])
    asked = {"objects": {"tenants": [{"name": "t"}] * (most + 1)}}
    refused = await api.acting_as(token["token"]).post("configuration", asked)
    assert refused.status == 422
    assert f"at most {most} at once" in refused.json["errors"][0]["message"]


def test_maximum_of_concurrent_plans_is_below_the_number_of_database_connections() -> None:
    assert STAFF.at_once_max + PUSHES_AT_ONCE_MAX + 1 < STAFF_CONNECTIONS_MAX
    assert ORGANIZATIONS_AT_ONCE_MAX + 1 < ORGANIZATIONS_CONNECTIONS_MAX


async def sending(api: Api, token: str) -> asyncio.StreamWriter:
    """Begin a plan, and stay in the middle of its body once others of its organization are refused for it."""
    head = (
        "POST /admin/v1/configuration HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
    )
    is_refused = _answers(api.acting_as(token), 429)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
        writer.write(head.encode())
        await writer.drain()
        answer = asyncio.create_task(reader.read(1))
        while not answer.done():
            if await is_refused():
                answer.cancel()
                return writer
        writer.close()  # the one that looked was there before it, so it was refused itself


async def test_slow_configuration_uploads_by_organizations_do_not_block_another_organization(
    api: Api,
) -> None:
    tokens = []
    for number in range(ORGANIZATIONS_AT_ONCE_MAX + 1):
        owner = await api.make("organizations", name=f"Slow {number}")
        token = await api.make("admin-tokens", name="t", role="readonly", organization_id=owner["id"])
        tokens.append(token["token"])
    writers = [await sending(api, token) for token in tokens[1:]]
    assert (await api.acting_as(tokens[0]).post("configuration", {"objects": {}})).status == 200
    for writer in writers:
        writer.close()


async def test_staff_plan_is_answered_while_an_organization_is_still_uploading_a_plan(api: Api) -> None:
    """Theirs waits for its body here, so that it is under way for as long as the test likes."""
    acme = await api.make("organizations", name="Acme")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    writer = await sending(api, token["token"])
    assert (await plan(api, {"token-plans": [{"name": "Pro"}]}))["changes"]
    writer.close()
    await eventually(_answers(theirs, 200))


def _answers(api: Api, wanted: int) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return bool((await api.post("configuration", {"objects": {}})).status == wanted)

    return ask


async def test_configuration_plan_is_cancelled_when_the_caller_disconnects() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Gone:
        transport = None

    with pytest.raises(ConnectionResetError):
        await configuration.until_client_leaves(Gone(), work())  # type: ignore[arg-type]  # all that is asked of it
    await eventually(ended.is_set)


async def test_plan_by_an_organization_is_refused_beyond_the_maximum_of_bytes_or_values(api: Api) -> None:
    acme = await api.make("organizations", name="Acme")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    large = b'{"objects":{"tenants":["' + b"x" * ORGANIZATION.bytes_max + b'"]}}'
    assert (await theirs.call("POST", "configuration", data=large)).status == 413
    many = b'{"objects":{"tenants":[' + b"[]," * (ORGANIZATION.values_max // 2) + b"[]]}}"
    assert len(many) < ORGANIZATION.bytes_max
    answer = await theirs.call("POST", "configuration", data=many)
    assert answer.status == 422
    assert f"more than {ORGANIZATION.values_max} values" in answer.json["errors"][0]["message"]
    assert (await api.call("POST", "configuration", data=many)).status == 422, (
        "of staff it is read: no objects"
    )
    usual = b'{"name":[' + b"[]," * (bodies.VALUES_MAX // 2) + b"[]]}"
    with pytest.raises(Unprocessable) as refused:
        bodies.parse_body(usual)
    assert f"more than {bodies.VALUES_MAX} values" in refused.value.errors[0][1]


def errors_of(sent: Any) -> list[tuple[str, str]]:
    with pytest.raises(Unprocessable) as refused:
        objects.read(sent, NOW)
    return [*refused.value.errors]


def test_configuration_reader_stops_after_the_first_few_unknown_kinds_and_fields(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    near = objects.near
    monkeypatch.setattr(objects, "near", lambda said, known: asked.append(said) or near(said, known))
    kinds = {f"k{number}": [] for number in range(100_000)}
    assert [name for name, _ in errors_of({**kinds, "tenants": 3})] == [f"k{number}" for number in range(5)]
    assert len(asked) == objects.UNKNOWN_KINDS_MAX
    asked.clear()
    fields = {f"f{number}": 1 for number in range(1_000)}
    assert len(errors_of({"tenants": [fields, {"organization": "A", "name": "B"}]})) == objects.ERRORS_MAX
    assert len(asked) == objects.ERRORS_MAX
    asked.clear()
    assert len(errors_of({kind: [{"wrong": 1}] * 1_000 for kind in KINDS})) == objects.ERRORS_MAX
    assert len(asked) < 2 * objects.ERRORS_MAX
    [(name, message)] = errors_of({"x" * 100_000: []})
    assert max(len(name), len(message)) < 1_000


def test_configuration_object_of_more_than_5000_values_is_refused() -> None:
    deep = json.loads("[" * 50 + "1" + "]" * 50)
    for value in ([[]] * 5_001, {str(number): 1 for number in range(5_001)}, [deep] * 150):
        [(name, message)] = errors_of({"webhooks": [{"url": "https://x.example", "events": value}]})
        assert (name, message) == ("webhooks.0", "holds more than 5000 values")
