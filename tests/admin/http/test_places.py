"""Places by organization: nobody has more than its own, whoever can go on does, and nothing stays taken."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.application import build
from gateway.admin.http import guard
from gateway.admin.http.callers import COSTLY, COSTLY_FILES, HOURS
from gateway.admin.http.work_slots import ConcurrencyLimits, Whose, WorkSlots
from gateway.core.accounts.hourly_budget import (
    HOUR_S,
    METER,
    HourlyBudget,
    HourlyUse,
    Hours,
    WorkMeter,
    count_rows,
)
from gateway.errors import HourSpent, Overloaded, TooManyRequests
from persistence import engine as engines
from tests.admin.conftest import Api, MemoryCounters, ports_over
from tests.admin.console.conftest import Person
from tests.search import cases

ROOM = ConcurrencyLimits(staff_max=2, own_max=2, others_max=3, all_max=4, waiting_max=2, wait_s=None)
WHOSE = (None, 1, 2, 3)


class Worker:
    """Somebody who has a place, or waits for one, until told to go."""

    def __init__(self, places: WorkSlots, whose: Whose, order: list[Whose]) -> None:
        self.whose, self.works = whose, False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._work(places, order))

    async def _work(self, places: WorkSlots, order: list[Whose]) -> None:
        async with places.of(self.whose):
            self.works = True
            order.append(self.whose)
            try:
                await self._leave.wait()
            finally:
                self.works = False

    async def go(self) -> None:
        self._leave.set()
        await asyncio.wait({self.task})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def may_go(workers: list[Worker], whose: Whose) -> bool:
    """The rule, by who works now."""
    working = Counter(each.whose for each in workers if each.works)
    others = working.total() - working[None]
    own = working[whose] < (ROOM.staff_max if whose is None else ROOM.own_max)
    return own and (whose is None or others < ROOM.others_max) and working.total() < (ROOM.all_max or 0)


STEP = st.tuples(st.sampled_from(("come", "come", "go", "cancel")), st.integers(0, 99))


@given(st.lists(STEP, max_size=60))
def test_request_slots_stay_within_limits_are_never_idle_while_requests_wait_and_end_free(
    steps: list[tuple[str, int]],
) -> None:
    async def run() -> None:
        places, workers, order = WorkSlots(ROOM), list[Worker](), list[Whose]()
        for step, number in steps:
            if step == "come":
                workers.append(Worker(places, WHOSE[number % len(WHOSE)], order))
            elif workers:
                one = workers[number % len(workers)]
                if step == "cancel":
                    one.task.cancel()
                elif one.works:
                    await one.go()
            if number % 3:  # else the next step comes at the same moment
                await settle()
                workers = [each for each in workers if not each.task.done()]
                check(places, workers)
        for each in workers:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in workers), return_exceptions=True)
        assert (places.taken.total(), places.waiting) == (0, 0)

    asyncio.run(run())


def check(places: WorkSlots, workers: list[Worker]) -> None:
    working = Counter(each.whose for each in workers if each.works)
    waiting = Counter(each.whose for each in workers if not each.works)
    assert places.taken == working
    assert working[None] <= ROOM.staff_max
    assert all(working[each] <= ROOM.own_max for each in WHOSE[1:])
    assert working.total() - working[None] <= ROOM.others_max
    assert working.total() <= (ROOM.all_max or 0)
    assert not [each for each in waiting if may_go(workers, each)]
    assert all(count <= ROOM.waiting_max for count in waiting.values())


async def test_free_request_slot_goes_to_staff_first_and_then_to_organizations_in_turn() -> None:
    places, order = (
        WorkSlots(ConcurrencyLimits(1, 1, 1, all_max=1, waiting_max=9, wait_s=None)),
        list[Whose](),
    )
    workers = [Worker(places, whose, order) for whose in (1, 1, 1, 1, 2, 2, None)]
    await settle()
    while working := [each for each in workers if each.works]:
        await working[0].go()
        await settle()
    assert order == [1, None, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("taken", "whose", "told"),
    [
        ((1, 1), 1, "2 of these are under way already for this organization: try again in a while."),
        ((1, 2, 3), 4, "3 of these are under way already for other organizations: try again in a while."),
        ((None, None), None, "2 of these are under way already: try again in a while."),
        ((None, 1, 1, 2), None, "4 of these are under way already: try again in a while."),
    ],
)
async def test_request_refused_for_lack_of_a_free_slot_is_answered_with_the_holders_of_the_slots(
    taken: tuple[Whose, ...], whose: Whose, told: str
) -> None:
    places = WorkSlots(ConcurrencyLimits(2, 2, 3, all_max=4, waiting_max=1, wait_s=0.001))
    workers = [Worker(places, each, []) for each in taken]
    await settle()
    for _ in range(2):
        with pytest.raises(TooManyRequests if "this organization" in told else Overloaded) as refused:
            async with places.of(whose):
                pass
        assert (refused.value.message, places.waiting) == (told, 0)
    for each in workers:
        await each.go()


# --- shared out -------------------------------------------------------------------------
# Every request of somebody takes a place, and what costs much counts for its organization's hour.


NOBODYS = ConcurrencyLimits(staff_max=8, own_max=0, others_max=8)
FIRST = {"provider": "none", "mark": "none", "name": "none", "resource": "tenants"}


@pytest.fixture
async def port(
    admin_database: str, keeper_database: str
) -> AsyncIterator[Callable[..., Awaitable[tuple[Api, web.Application]]]]:
    opened: list[TestClient[Any, Any]] = []
    engine = engines.create(keeper_database, statement_s_max=30)

    async def made(**ports: Any) -> tuple[Api, web.Application]:
        counters = MemoryCounters(admin_database)
        app = build(replace(ports_over(engine, counters), **ports))
        client = TestClient(TestServer(app), cookie_jar=DummyCookieJar())
        await client.start_server()
        opened.append(client)
        return Api(client, counters, admin_database), app

    yield made
    for each in opened:
        await each.close()
    await engine.dispose()


async def member_of(api: Api, name: str, role: str = "readonly") -> Api:
    owner = await api.make("organizations", name=name)
    token = await api.make("admin-tokens", name=name, role=role, organization_id=owner["id"])
    return api.acting_as(token["token"])


def addresses(app: web.Application) -> Iterator[tuple[str, str]]:
    """Each route, as somebody might ask for it."""
    for route in app.router.routes():
        if route.method not in {"HEAD", "*"} and route.resource is not None:
            yield route.method, re.sub(r"{(\w+)}", lambda m: FIRST.get(m[1], "1"), route.resource.canonical)


async def test_every_authenticated_route_is_429_when_the_organization_may_run_no_requests(
    port: Callable[..., Awaitable[tuple[Api, web.Application]]],
) -> None:
    """Where an organization has none, each request is 429, or its address asks nobody who they are."""
    (api, _), (full, app) = await port(), await port(room=NOBODYS)
    member = await member_of(api, "Acme")
    browser = Person(api.client)
    assert (await browser.sign_in(str(member.token))).status == 303
    nobody, program = Person(full.client), {"Authorization": f"Bearer {member.token}"}
    signed_in, wrong = Person(full.client, browser.cookie), []
    for method, path in cases([*addresses(app)]):
        statuses = {(await signed_in.send(method, path, Origin=nobody.origin)).status}
        if 429 not in statuses:
            statuses.add((await nobody.send(method, path, Origin=nobody.origin, **program)).status)
        if 429 in statuses:
            continue
        unknown = await nobody.send(method, path, Origin=nobody.origin)
        asks = unknown.status == 401 or "/sign-in" in unknown.headers.get("Location", "")
        if asks or statuses != {unknown.status}:
            wrong.append((method, path, unknown.status, statuses))
    assert not wrong


async def test_organization_without_a_free_request_slot_is_429_while_staff_are_answered(
    port: Callable[..., Awaitable[tuple[Api, web.Application]]],
) -> None:
    (api, _), (full, _) = await port(), await port(room=NOBODYS)
    member = await member_of(api, "Acme")
    refused = await replace(full, token=member.token).get("tenants")
    assert (refused.status, refused.json["type"]) == (429, "urn:tollkeeper:problem:too_many_requests")
    assert refused.headers["Retry-After"] == "1"
    assert (await full.get("tenants")).status == 200


async def test_organization_beyond_the_hourly_work_budget_is_429_only_for_reports_files_and_plans(
    port: Callable[..., Awaitable[tuple[Api, web.Application]]],
) -> None:
    api, app = await port(budget=HourlyBudget(cpu_s=300.0, rows=1, work_s=1800.0))
    member, other = await member_of(api, "Acme"), await member_of(api, "Beta")
    hours = app[HOURS]
    assert (await member.call("GET", "/admin/v1/configuration")).status == 200
    [hour] = hours._known.values()
    assert hour.rows >= 1
    assert hour.cpu_s > 0 < hour.work_s
    for path in ("usage", "usage.csv", "reports/ledger", "configuration"):
        refused = await member.get(path)
        assert refused.status == 429, path
        assert refused.json["type"] == "urn:tollkeeper:problem:hourly_budget_exceeded"
        assert "1 rows an hour" in refused.json["detail"]
        assert 0 < int(refused.headers["Retry-After"]) <= HOUR_S
    assert (await member.post("configuration", {"objects": {}})).status == 429
    assert (await member.get("tenants")).status == 200
    assert (await other.get("usage")).status == 200, "others have an hour of their own"
    assert (await api.get("usage")).status == 200, "staff are counted nowhere"


def test_every_report_and_file_route_counts_toward_the_hourly_work_budget() -> None:
    """An address that ends with a file's name, or is of reports, is among those that cost much."""
    app = build(ports_over(engines.create("postgresql://nobody@127.0.0.1/none"), MemoryCounters("")))
    told = {
        route.resource.canonical.removeprefix("/admin/v1")
        for route in app.router.routes()
        if route.resource is not None and route.method == "GET"
    }
    # What says nothing of what is there is made once.
    files = {each for each in told if "." in each.rpartition("/")[2]} - {
        "/openapi.json",
        "/configuration/schema.json",
    }
    assert [each for each in files if not each.endswith(COSTLY_FILES)] == []
    assert {"usage", "reports", "configuration", "receivables"} <= COSTLY
    assert all(any(each.split("/")[1] == name for each in told) for name in COSTLY)


@pytest.mark.parametrize("spent", [{"cpu_s": 10.0}, {"rows": 10}, {"work_s": 10.0}])
def test_hourly_work_budget_starts_again_an_hour_after_the_first_use(spent: dict[str, Any]) -> None:
    now = [1000.0]
    hours = Hours(HourlyBudget(10.0, 10, 10.0), lambda: now[0], known_max=2)
    hour = hours.of(1)
    for name, value in spent.items():
        setattr(hour, name, value)
    now[0] += 600
    with pytest.raises(HourSpent, match=r"1970-01-01T01:16:40Z") as refused:
        hours.of(1)
    assert refused.value.retry_after_s == 3000
    assert hours.of(2).rows == 0
    now[0] += 3000
    assert hours.of(1) == HourlyUse(4600.0)
    hours.of(3)
    assert list(hours._known) == [1, 3], "those that began first are forgotten"


async def test_cpu_time_of_a_request_includes_the_own_tasks_and_threads_and_no_others() -> None:
    guard.count_tasks(asyncio.get_running_loop())
    meter, other = WorkMeter(HourlyUse(0.0)), WorkMeter(HourlyUse(0.0))

    def work() -> None:
        sum(number * number for number in range(200_000))

    async def alone() -> None:
        work()

    async def asks() -> int:
        METER.set(meter)
        await asyncio.gather(asyncio.create_task(alone()), guard.in_thread(work))
        count_rows(3)
        return 7

    async def waits() -> None:
        METER.set(other)
        await asyncio.sleep(0)

    found, _ = await asyncio.gather(asyncio.create_task(asks()), asyncio.create_task(waits()))
    assert meter.hour is not None
    assert other.hour is not None
    assert (found, meter.hour.rows) == (7, 3)
    assert meter.hour.cpu_s > 5 * other.hour.cpu_s
    with pytest.raises(ZeroDivisionError):
        await guard.MeteredCoroutine(_fails(), meter)


async def _fails() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError
