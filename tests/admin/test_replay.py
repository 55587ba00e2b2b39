"""`POST /budgets/replay`: whose calls it reads, what it refuses, and what it answers of real rows."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from gateway.core.billing.price_book import KINDS
from gateway.local.processes import command
from gateway.run.replay_process import NICENESS
from persistence.address import dialect_url
from persistence.replay import ReplayRequest, budget_of, render, replay
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.connections import connected
from tests.waiting import eventually

__all__ = ["run"]

# A replay in a process that may have 24 MiB of data more than it has at its beginning.
SHORT_OF_MEMORY = """
from psutil import Process
from gateway.run.replay_process import run_replay
run_replay(Process().memory_info().data + 24 * 2**20)
"""
# A replay whose first statement takes long.
LONG_STATEMENT = """
import sys
from sqlalchemy import create_engine, text
from persistence.address import dialect_url
from persistence.replay import begin_reading
with create_engine(dialect_url(sys.argv[1])).connect() as connection:
    begin_reading(connection)
    connection.execute(text("SELECT pg_sleep(600), 'of a replay'"))
"""
BEGAN = datetime(2026, 10, 5, 6, tzinfo=UTC)
PERIOD = {"from": "2026-10-05T00:00:00Z", "to": "2026-10-12T00:00:00Z"}


@dataclass
class Desk:
    """An organization of its own with two tenants, and calls of a week."""

    api: Api
    organization: int
    tenants: tuple[int, int]
    keys: tuple[int, int]

    def call(self, hours: float, cost: int, **over: Any) -> dict[str, Any]:
        """Return a row of the journal: a call so many hours after the first one, at so many nano-units."""
        return {
            "created_at": BEGAN + timedelta(hours=hours), "organization_id": self.organization,
            "tenant_id": self.tenants[0], "api_key_id": self.keys[0], "cost": cost, "currency": "USD", "model": "m",
            "tokens": 10, **dict.fromkeys(KINDS, 0), "credits": 0, "units": 0, "status": 200, "streamed": False,
            "estimated": False, "duration_ms": 1, **over,
        }  # fmt: skip

    def store(self, *calls: dict[str, Any]) -> None:
        with connected(self.api.url, autocommit=True) as connection:
            for row in calls:
                names = ", ".join(row)
                connection.execute(
                    f"INSERT INTO call (request_id, {names})"
                    f" VALUES (gen_random_uuid(), {', '.join(['%s'] * len(row))})",
                    [*row.values()],
                )

    def users(self, *names: str) -> list[int]:
        with connected(self.api.url, autocommit=True) as connection:
            return [
                connection.execute(
                    "INSERT INTO app_user (organization_id, external_id) VALUES (%s, %s) RETURNING id",
                    (self.organization, name),
                ).fetchone()[0]
                for name in names
            ]  # fmt: skip

    def budget(self, **over: Any) -> dict[str, Any]:
        return {"name": "b", "unit": "money", "amount": "1", "interval": "day", **over}

    async def replay(self, *budgets: dict[str, Any], api: Api | None = None, **over: Any) -> dict[str, Any]:
        body = {"organization_id": self.organization, "budgets": [*budgets], **PERIOD, **over}
        answer = await (api or self.api).post("budgets/replay", body)
        assert answer.status == 200, answer.json
        found: dict[str, Any] = answer.json
        return found

    async def wrong(self, *budgets: dict[str, Any], api: Api | None = None, **over: Any) -> dict[str, str]:
        body = {"organization_id": self.organization, "budgets": [*budgets], **PERIOD, **over}
        answer = await (api or self.api).post("budgets/replay", body)
        assert answer.status == 422, answer.json
        return {error["field"]: error["message"] for error in answer.json["errors"]}


@pytest.fixture
async def desk(api: Api) -> Desk:
    first = await api.make("tenants", name="acme")
    second = await api.make("tenants", name="other", organization_id=first["organization_id"])
    keys = [await api.make("api-keys", tenant_id=one["id"], name="k") for one in (first, second)]
    return Desk(api, first["organization_id"], (first["id"], second["id"]), (keys[0]["id"], keys[1]["id"]))


async def test_failed_call_without_use_is_no_request(desk: Desk) -> None:
    nothing = {"tokens": 0, "status": 500}
    desk.store(
        desk.call(0, 0, **nothing), desk.call(1, 0, **nothing) | {"cost": None}, desk.call(2, 0, tokens=1),
        desk.call(3, 1, **nothing), desk.call(4, 0, **{**nothing, "units": 1}), desk.call(5, 0, **nothing),
    )  # fmt: skip
    found = await desk.replay(desk.budget(unit="requests", amount=2))
    assert (found["calls"], found["refused"], found["items"][0]["least_amount"]) == (6, 1, 3)


async def test_replay_refuses_calls_beyond_the_amount_and_names_their_owners(desk: Desk) -> None:
    ada, bob = desk.users("ada", "bob")
    desk.store(
        desk.call(0, 600_000_000, user_id=ada), desk.call(1, 500_000_000, user_id=ada),
        desk.call(2, 400_000_000, user_id=ada), desk.call(3, 900_000_001, user_id=bob),
        desk.call(4, 10**12, user_id=bob, refused=True), desk.call(24, 300_000_000, user_id=ada),
        desk.call(25, 5_000_000_000, user_id=None),
    )  # fmt: skip
    found = await desk.replay(
        desk.budget(each="user"), desk.budget(name="all", unit="requests", amount=4, interval="week")
    )
    assert {name: found[name] for name in ("calls", "refused", "refused_cost", "substituted", "saved")} == {
        "calls": 6, "refused": 2, "refused_cost": "5.50", "substituted": 0, "saved": "0",
    }  # fmt: skip
    first, second = found["items"]
    days = [day for day in first.pop("by_day") if day["used"] != "0" or day["refused"]]
    assert days == [
        {"day": "2026-10-05", "used": "1.900000001", "refused": 1},
        {"day": "2026-10-06", "used": "0.30", "refused": 1},
    ]
    assert first == {
        "name": "b", "refused": 2, "refused_cost": "5.50", "substituted": 0, "saved": "0",
        "first_refusal_at": "2026-10-05T07:00:00Z",
        "owners": [
            {"who": "ada", "refused": 1, "first_refusal_at": "2026-10-05T07:00:00Z", "used_max": "1"},
            {"who": "", "refused": 1, "first_refusal_at": "2026-10-06T07:00:00Z", "used_max": "0"},
        ],
        "owners_more": 0, "least_amount": "5",
        "suggestions": {"50": "0.900000001", "90": "1.50", "99": "1.50"},
    }  # fmt: skip
    assert (second["refused"], second["least_amount"], second["suggestions"]) == (1, 6, None)
    assert found["assumes"] == []


async def test_replay_reads_calls_that_are_settled_and_not_yet_stored(desk: Desk) -> None:
    desk.store(desk.call(0, 600_000_000))
    desk.api.counters.flushes = ["UPDATE call SET cost = 2 * cost RETURNING id"]
    found = await desk.replay(desk.budget())
    assert (found["calls"], found["refused"], found["refused_cost"]) == (1, 1, "1.20")


async def test_replay_compares_overrides_with_the_time_of_each_call(desk: Desk) -> None:
    [ada] = desk.users("ada")
    desk.store(*[desk.call(24 * day, 2_000_000_000, user_id=ada) for day in range(4)])
    overrides = [{"who": "ada", "amount": "2", "until": said(BEGAN + timedelta(hours=47))}]
    found = await desk.replay(desk.budget(each="user", overrides=overrides))
    assert (found["refused"], found["items"][0]["first_refusal_at"]) == (2, said(BEGAN + timedelta(days=2)))
    assert (found["items"][0]["least_amount"], found["items"][0]["suggestions"]) == ("0", None)


async def test_replay_takes_the_members_of_now_and_names_its_assumptions(desk: Desk) -> None:
    ada, bob = desk.users("ada", "bob")
    group = await desk.api.make(
        "groups", organization_id=desk.organization, name="g", kind="user", members=["ada"]
    )
    answer = await desk.api.patch(f"organizations/{desk.organization}", {"tags": ["team"]})
    assert answer.status == 200
    desk.store(
        desk.call(0, 10**9, user_id=ada, tags='{"team": "x"}', groups="[999]"),
        desk.call(1, 10**9, user_id=bob, tags='{"team": "y"}'), desk.call(2, 10**9),
    )  # fmt: skip
    found = await desk.replay(
        desk.budget(name="group", group_id=group["id"], amount="0.1"),
        desk.budget(name="tag", tags={"team": "y"}, amount="0.2"),
        desk.budget(
            name="each", each="user", amount="9", overrides=[{"who": f"group:{group['id']}", "amount": "0.3"}]
        ),
        to=said(datetime.now(UTC)),
    )
    assert [item["refused"] for item in found["items"]] == [1, 1, 1]
    assert found["assumes"] == ["groups_now", f"tags_since:{datetime.now(UTC):%Y-%m-%d}"]


async def test_replay_sends_calls_as_the_substitute_of_a_step(desk: Desk) -> None:
    for model, price in (("dear", "10"), ("cheap", "1")):
        await desk.api.make(
            "prices",
            model=model,
            currency="USD",
            effective_from="2026-01-01T00:00:00Z",
            input=price,
            output=price,
        )
    trace = "0af7651916cd43dd8448eb211c80319c"
    calls = [desk.call(hour, 10**9, model="dear", input=100_000, session=trace) for hour in range(4)]
    desk.store(*calls)
    row = {**desk.budget(amount="2"), "steps": [{"at": 0.5, "models": {"de*": "cheap"}, "session": "switch"}]}
    budget = budget_of({**row, "mode": "enforce", "on_exhausted": "finish"}, 0, BEGAN)
    engine = create_engine(dialect_url(desk.api.url), poolclass=NullPool)
    request = ReplayRequest(desk.organization, None, BEGAN, BEGAN + timedelta(days=1), (budget,))
    with engine.connect() as connection:
        found = render(replay(connection, request))
    assert (found["refused"], found["substituted"], found["saved"]) == (0, 3, "2.7")
    assert found["assumes"] == ["substitutes_accept", "traces_by_form"]


async def test_call_that_a_step_substituted_is_replayed_as_the_model_of_its_caller(desk: Desk) -> None:
    """Two calls were asked for as a model at 1 and sent as another at 0.1; one of a model without a price stays."""
    for model, price in (("dear", "10"), ("cheap", "1")):
        await desk.api.make(
            "prices", model=model, currency="USD", effective_from="2026-01-01T00:00:00Z", input=price, output=price
        )  # fmt: skip
    sent = {"model": "cheap", "response_model": "cheap-1", "cost": 10**8, "input": 100_000}
    dear = [{**desk.call(hour, 0), **sent, "model_asked": "dear"} for hour in range(2)]
    desk.store(*dear)
    dearer, all_models = ([{"at": 0, "models": {pattern: "cheap"}}] for pattern in ("dear", "*"))
    for budget, expected in (
        ({"amount": "1.5"}, (1, "1", 0, "0")),
        ({"amount": "0.1", "model": "cheap"}, (0, "0", 0, "0")),
        ({"amount": "9", "steps": dearer}, (0, "0", 2, "1.80")),
        ({"amount": "9", "steps": all_models}, (0, "0", 2, "1.80")),
    ):
        found = await desk.replay(desk.budget(**budget))
        counts = (found["refused"], found["refused_cost"], found["substituted"], found["saved"])
        assert counts == expected
        assert "steps_as_sent" not in found["assumes"]
    desk.store({**desk.call(2, 0), **sent, "model_asked": "unknown"})
    found = await desk.replay(desk.budget(amount="2.05"))
    assert (found["refused"], found["refused_cost"], found["assumes"]) == (1, "0.10", ["steps_as_sent"])


async def test_replay_names_each_field_that_is_wrong(desk: Desk) -> None:
    good = desk.budget()
    assert await desk.wrong(good, good) == {
        "budgets.1.name": "is the name of another budget here: names must differ"
    }
    assert set(await desk.wrong({**good, "tool": "t"}, {**good, "name": "c", "server": "s"})) == {
        "budgets.0.tool",
        "budgets.1.server",
    }
    assert set(await desk.wrong({**good, "amount": 0}, {**good, "name": "c", "each": "nobody"})) == {
        "budgets.1.each"
    }
    assert set(await desk.wrong({**good, "unit": "tokens"}, {**good, "name": "c", "tenant_id": 999})) == {
        "budgets.0.amount",
        "budgets.1.tenant_id",
    }
    assert set(await desk.wrong({**good, "each": "key", "overrides": [{"who": "x", "amount": "1"}]})) == {
        "budgets.0.overrides.0.who"
    }
    twice = [{"who": "ada", "amount": "1"}, {"who": "ada", "amount": "2"}]
    assert set(await desk.wrong({**good, "each": "user", "overrides": twice})) == {
        "budgets.0.overrides.1.who"
    }
    assert set(await desk.wrong(*[{**good, "name": f"{number}"} for number in range(21)])) == {"budgets"}
    assert set(await desk.wrong()) == {"budgets"}
    assert set(await desk.wrong(good, **{"from": PERIOD["to"]})) == {"from"}
    assert set(await desk.wrong(good, **{"from": "2020-01-01T00:00:00Z"})) == {"from"}
    assert set(await desk.wrong(good, **{"from": "1969-12-31T23:59:59Z", "to": "3000-01-01T00:00:00Z"})) == {
        "from",
        "to",
    }
    assert set(await desk.wrong(good, **{"from": None, "to": "0001-01-01T00:00:00Z"})) == {"to"}
    short = {"from": "2026-10-05T00:00:00.0001Z", "to": "2026-10-05T00:00:00.001099Z"}
    assert set(await desk.wrong(good, **short)) == {"from"}
    ends = [{"who": "ada", "amount": "1", "until": "9999-12-31T00:00:00Z"}]
    assert set(await desk.wrong({**good, "each": "user", "overrides": ends})) == {
        "budgets.0.overrides.0.until"
    }


async def test_replay_counts_calls_up_to_a_part_of_a_millisecond(desk: Desk) -> None:
    midnight = BEGAN.replace(hour=0) + timedelta(days=1)
    desk.store(*[desk.call(0, 1, created_at=midnight + timedelta(microseconds=at)) for at in (-1, 100, 400)])
    found = await desk.replay(
        desk.budget(), **{"from": "2026-10-05T00:00:00.0007Z", "to": said(midnight, 400)}
    )
    assert (found["calls"], [day["used"] for day in found["items"][0]["by_day"]]) == (2, ["0.000000001"] * 2)
    ahead = desk.budget(time_zone="Asia/Tokyo")
    for since, to in ((None, "1970-01-01T00:00:00Z"), ("2999-12-30T00:00:00Z", "2999-12-31T23:59:59Z")):
        assert (await desk.replay(ahead, **{"from": since, "to": to}))["calls"] == 0


async def test_replay_reads_no_calls_of_others(desk: Desk) -> None:
    other = await desk.api.make("tenants", name="bravo")
    desk.store(
        desk.call(0, 10**9), desk.call(1, 10**9, tenant_id=desk.tenants[1], api_key_id=desk.keys[1]),
        desk.call(2, 10**9, organization_id=other["organization_id"], tenant_id=other["id"]),
    )  # fmt: skip
    assert (await desk.replay(desk.budget(amount="0.1")))["calls"] == 2
    own = await desk.api.make("admin-tokens", name="a", role="billing", organization_id=desk.organization)
    lead = await desk.api.make("admin-tokens", name="l", role="operator", tenant_id=desk.tenants[0])
    alpha, led = desk.api.acting_as(own["token"]), desk.api.acting_as(lead["token"])
    assert (await desk.replay(desk.budget(amount="0.1", each="tenant"), api=alpha))["refused"] == 2
    found = await desk.replay(desk.budget(amount="0.1", each="key"), api=led)
    assert [owner["who"] for owner in found["items"][0]["owners"]] == [str(desk.keys[0])]
    assert (found["calls"], found["refused"]) == (1, 1)
    # Of others there is nothing to name.
    elsewhere = other["organization_id"]
    assert set(await desk.wrong(desk.budget(), api=alpha, organization_id=elsewhere)) == {"organization_id"}
    assert set(await desk.wrong(desk.budget(organization_id=elsewhere))) == {"budgets.0.organization_id"}
    assert set(await desk.wrong(desk.budget(tenant_id=other["id"]), api=alpha)) == {"budgets.0.tenant_id"}
    assert set(await desk.wrong(desk.budget(tenant_id=desk.tenants[1]), api=led)) == {"budgets.0.tenant_id"}
    for role in ("readonly", "member"):
        token = (
            await desk.api.make("admin-tokens", name=role, role=role, organization_id=desk.organization)
        )["token"]
        answer = await desk.api.acting_as(token).post("budgets/replay", {"budgets": [desk.budget()]})
        assert answer.status == 403


async def test_cli_replays_budgets_of_a_file(desk: Desk, run: Run, tmp_path: Path) -> None:
    desk.store(desk.call(0, 2 * 10**9), desk.call(200, 10**9))
    file = tmp_path / "budgets.json"
    file.write_text(json.dumps({"organization_id": desk.organization, "budgets": [desk.budget()]}))
    within = ["--from", PERIOD["from"], "--to", PERIOD["to"]]
    found = await from_json(run, "budget", "replay", "-f", str(file), *within)
    assert (found["calls"], found["refused"]) == (1, 1)
    file.write_text("[]")
    assert "must hold a JSON object" in (await run("budget", "replay", "-f", str(file))).stderr


async def test_an_organization_runs_a_single_replay_and_a_keeper_two(desk: Desk) -> None:
    """A client that leaves ends its process."""
    desk.store(desk.call(0, 1))
    other = await desk.api.make("tenants", name="bravo")
    alpha, bravo = [
        desk.api.acting_as((await desk.api.make("admin-tokens", name="a", role="billing", **owned))["token"])
        for owned in ({"organization_id": desk.organization}, {"organization_id": other["organization_id"]})
    ]
    theirs = desk.budget(organization_id=other["organization_id"])

    async def refused(api: Api, **body: Any) -> str:
        answer = await api.post("budgets/replay", {**PERIOD, **body})
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (429, "too_many_requests")
        return str(answer.json["detail"])

    with connected(desk.api.url) as locking:
        locking.execute("LOCK TABLE call IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(desk.replay(desk.budget(), api=alpha))]
        await eventually(lambda: len(replaying()) == 1)
        assert "One of your replays is" in await refused(alpha, budgets=[desk.budget()])
        waiting.append(asyncio.create_task(desk.replay(desk.budget())))
        await eventually(lambda: len(replaying()) == 2)
        assert "2 replays are" in await refused(bravo, budgets=[theirs])
        waiting[0].cancel()
        await eventually(lambda: len(replaying()) == 1)
        locking.rollback()
    assert (await waiting[1])["calls"] == 1
    assert replaying() == []


async def test_replay_without_memory_answers_its_fault_alone(desk: Desk) -> None:
    with connected(desk.api.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO app_user (organization_id, external_id) SELECT %s, 'user-' || n FROM generate_series(1, 20000) n",
            (desk.organization,),
        )
        row = desk.call(0, 1)
        connection.execute(
            f"INSERT INTO call (request_id, user_id, {', '.join(row)}) SELECT gen_random_uuid(), id,"
            f" {', '.join(['%s'] * len(row))} FROM app_user WHERE organization_id = %s",
            [*row.values(), desk.organization],
        )
    budget = desk.budget(each="user", mode="enforce", on_exhausted="finish", time_zone="UTC", anchor_day=1)
    asked = {
        "organization_id": desk.organization, "tenant_id": None, "since": PERIOD["from"], "until": PERIOD["to"],
        "time_zones": "bundled", "url": desk.api.url, "budgets": [{**budget, "name": f"{number}"} for number in range(20)],
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHORT_OF_MEMORY, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    [answer, log] = [json.loads(await process.stdout.read()), await process.stderr.read()]
    assert ([name for name, _ in answer["faults"]], log, await process.wait()) == (["budgets"], b"", 0)


async def test_replay_that_is_killed_leaves_no_statement_at_the_database(desk: Desk) -> None:
    """A statement that went on would sort for a client that is gone, and each further replay would add one."""

    def running() -> int:
        with connected(desk.api.url) as connection:
            statement = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%, ''of a replay''%' AND pid <> pg_backend_pid()"
            return int(connection.execute(statement).fetchone()[0])

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LONG_STATEMENT, desk.api.url)
    await eventually(lambda: running() == 1)
    process.kill()
    await process.wait()
    await eventually(lambda: running() == 0)


def replaying() -> list[int]:
    """Return the processes that replay budgets for this one."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-2:] == ["replay", "--worker"]
    ]


def said(moment: datetime, microseconds: int = 0) -> str:
    return (moment + timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")


async def test_replay_puts_others_first_within_its_session_and_beyond() -> None:
    """Its PostgreSQL never answers, so it lasts until it is killed."""
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = "postgresql://nobody@{}:{}/nothing".format(*silent.sockets[0].getsockname())
    process = await asyncio.create_subprocess_exec(
        *command("replay", "--worker"), stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    assert process.stdin is not None
    asked = {
        "organization_id": 1, "tenant_id": None, "since": PERIOD["from"], "until": PERIOD["to"], "url": url, "budgets": [],
    }  # fmt: skip
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    session = Path(f"/proc/{process.pid}/autogroup")
    try:
        await eventually(lambda: psutil.Process(process.pid).nice() == NICENESS)
        if session.exists():
            await eventually(lambda: session.read_text().endswith(f" nice {NICENESS}\n"))
    finally:
        process.kill()
        await process.wait()
        silent.close()
