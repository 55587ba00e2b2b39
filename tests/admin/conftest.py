"""The Admin API on a real socket over a real database, with counters that live in memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import psycopg
import pytest
import pytest_asyncio
import uvloop
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin.api.views import ResourceHandlers
from gateway.admin.application import build
from gateway.admin.http.answers import Answers
from gateway.admin.http.callers import HOURS, PLACES
from gateway.admin.http.work_slots import WorkSlots
from gateway.admin.ports import ROOM, AdminPorts, BuiltIn, Mount
from gateway.core.accounts.administration import Realm
from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.hourly_budget import HOURLY, Hours
from gateway.core.accounts.plans import LiveQuota
from gateway.core.billing.document import Letterhead
from gateway.core.capabilities import CAPABILITIES, wait_reason
from gateway.core.credentials import Peppers
from gateway.core.failures import Failures
from gateway.core.integrity.reconciliation import DifferenceKind, Item
from gateway.core.layout import LAYOUT
from gateway.core.processes import Found, Program
from gateway.counters.redis.keys import partition_of
from gateway.errors import CallsOpen, Conflict, CountersUnavailable, NotStoredYet, Overloaded
from gateway.feature import features
from gateway.issuers.sign_in import SignIns
from gateway.run.keeper_parts import AdminParts
from gateway.run.keeper_settings import KeeperSettings
from gateway.run.replays import Replays
from gateway.settings.settings import Settings
from persistence.entity import WriteRules
from persistence.resources.console_queries import ConsoleQueries
from persistence.schema import migrate, standing
from persistence.schema.standing import NEEDED
from persistence.store import Store
from tests import connections
from tests.databases import forget_ids, give_back, make_database, take_engine
from tests.letterhead import LETTERHEAD
from tests.one_loop import LASTING
from tests.persistence.emptying import clear
from tests.persistence.migrated import template_of
from tests.waiting import eventually


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The keeper runs on uvloop, so its tests do."""
    return {"uvloop": uvloop.new_event_loop}


ADMIN = "admin-token-of-the-tests"
READONLY = "readonly-token-of-the-tests"
PEPPERS = Peppers(b"pepper")
KEEPER_NOW = Program("now", "keeper", "1.1.0", LAYOUT, "db-1", 0.0, NEEDED, tuple(CAPABILITIES))
FRESH = LiveQuota(
    0,
    None,
    0,
    is_blocked=False,
    manual_block=False,
    block_cause=None,
    last_reset_ms=0,
    next_reset_ms=0,
    cycle=1,
    seq=0,
)


def rows_of(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Return what a statement finds."""
    return connections.rows_of(url, statement, values)


class MemoryCounters:
    """Counters in memory: applies control writes as the scripts would, marks them in the database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.away = False
        # Why no account may be rebuilt, and the organizations whose accounts were.
        self.no_rebuild, self.rebuilt = "", list[int]()
        self.refuses: str | None = None
        self.quotas: dict[int, LiveQuota] = {}
        self.totals: dict[int, int | None] = {}
        self.balances: dict[int, int] = {}
        self.windows: dict[str, dict[int, LiveWindow]] = {}
        # Accounts that nobody can read: tenants, organizations, names of budgets' accounts.
        self.unreadable: set[int | str] = set()
        self.unsettled: str | None = None
        self.numbers: dict[str, Any] = {}
        self.reconciled: Mapping[str, object] | None = None
        self.comparing = False
        self.closed: list[int] = []
        # Whose movements were all stored, whose calls have not ended, and whether storing takes too long now.
        self.settled: list[Realm] = []
        self.calling: set[Realm] = set()
        self.behind = False
        # Statements by which the rows of what was settled so far are stored.
        self.flushes: list[str] = []
        self.busy: list[tuple[tuple[int, str], int]] = []
        self.running: list[dict[str, object]] = []
        # Programs of earlier versions, and the layout in which all partitions are written.
        self.earlier: list[Program] = []
        self.written = LAYOUT
        self.waiting_since_ms = 0
        self.pushed: list[str] = []
        self.peeked: list[tuple[int, int]] = []

    async def push(self, accounts: Sequence[str]) -> Sequence[str]:
        if self.away:
            return accounts
        for account in accounts:
            self._push(account)
        return []

    def _push(self, account: str) -> None:
        self.pushed.append(account)
        waiting = rows_of(
            self.url,
            "select id, verb, payload from control_write"
            " where account = %s and state = 'pending' order by position",
            account,
        )
        for row_id, verb, payload in waiting:
            if self.refuses is not None:
                rows_of(
                    self.url,
                    "update control_write set state = 'refused',"
                    " result = jsonb_build_object('reason', %s::text) where id = %s",
                    self.refuses, row_id,
                )  # fmt: skip
                continue
            if account.startswith("tenant:"):
                self._move(int(account.split(":")[1]), verb, payload)
            if verb == "credits":
                organization = int(account.split(":")[1])
                self.balances[organization] = self.balances.get(organization, 0) + payload["amount"]
            rows_of(
                self.url,
                "update control_write set state = %s, applied_at = now() where id = %s",
                "done" if verb == "define" else "applied", row_id,
            )  # fmt: skip

    async def programs(self) -> dict[str, object]:
        if self.away:
            raise CountersUnavailable
        return {"layout": LAYOUT, "schema_version": NEEDED, "runs_from": "0069", "items": self.running}

    async def wait_reason(self, capability: str) -> str:
        if self.away:
            raise CountersUnavailable
        return wait_reason(capability, [KEEPER_NOW, *self.earlier], self.written)

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        if self.away:
            raise CountersUnavailable
        self.peeked += tenants
        return {one: self.quotas.get(one) for _, one in tenants if one not in self.unreadable}

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        if self.away:
            raise CountersUnavailable
        return {one: self.balances.get(one) for _, one in organizations if one not in self.unreadable}

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> Mapping[str, Mapping[int, LiveWindow] | None]:
        if self.away:
            raise CountersUnavailable
        return {name: self.windows.get(name) for _, name in accounts if name not in self.unreadable}

    async def read(self, window_s: int) -> tuple[list[tuple[tuple[int, str], int]], float]:
        if self.away:
            raise CountersUnavailable
        return self.busy, float(window_s)

    async def depth(self) -> tuple[int, int]:
        return int(self.waiting_since_ms > 0), self.waiting_since_ms

    async def close(self, organization_id: int) -> None:
        if self.unsettled is not None:
            raise Conflict(self.unsettled)
        self.closed.append(organization_id)

    async def settle(self, realm: Realm) -> None:
        if realm in self.calling:
            raise CallsOpen
        if self.behind:
            raise NotStoredYet
        rows_of(self.url, "update control_write set state = 'done' where state = 'applied'")
        self.settled.append(realm)

    async def await_stored(self, organization_id: int) -> None:
        for statement in self.flushes:
            rows_of(self.url, statement)

    async def last(self) -> Mapping[str, object] | None:
        return self.reconciled

    def alone(self) -> AbstractAsyncContextManager[None]:
        if self.comparing:
            raise Overloaded
        return nullcontext()

    async def run_now(
        self, *, repair: bool = False, whole: bool = False, within_s: float
    ) -> Mapping[str, object]:
        assert within_s == 600
        now = datetime.now(UTC)
        old = Item("tenant:1", DifferenceKind.CONTRADICTION, 0, 4, "chain: 10 then 9 by -2")
        self.reconciled = {
            "checked": 3, "drift_tokens": 0 if repair else 7, "drift_credits": 0, "pending": 0,
            "items": [asdict(old)] if whole else [],
            "started_at": now, "finished_at": now,
        }  # fmt: skip
        return self.reconciled

    async def require(self, organization_id: int) -> None:
        if self.no_rebuild:
            raise Conflict(self.no_rebuild)

    async def rebuild(self, organization_id: int) -> Mapping[str, int]:
        self.rebuilt.append(organization_id)
        return {"t": 2, "b": 3}

    async def snapshot(self) -> Mapping[str, Any]:
        return self.numbers

    def _move(self, tenant: int, verb: str, payload: dict[str, Any]) -> None:
        quota = self.quotas.get(tenant, FRESH)
        remaining = quota.tokens_remaining
        if verb == "plan":
            total = payload["total_amount"]
            self.totals[tenant] = total
            remaining = total if total is None else total - quota.tokens_used
        elif verb == "reset":
            quota = replace(quota, tokens_used=0, cycle=quota.cycle + 1)
            remaining = self.totals.get(tenant)
        elif verb in {"recharge", "adjust"} and remaining is not None:
            remaining += -payload["amount"] if payload.get("direction") == "OUT" else payload["amount"]
        elif verb in {"block", "unblock"}:
            cause = payload.get("cause", "manual") if verb == "block" else None
            quota = replace(quota, manual_block=verb == "block", block_cause=cause)
        blocked = quota.manual_block or (remaining is not None and remaining <= 0)
        moved = 0 if verb == "define" else 1
        self.quotas[tenant] = replace(
            quota, tokens_remaining=remaining, is_blocked=blocked, seq=quota.seq + moved
        )


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any = field(default=None)


@dataclass
class Api:
    """A caller of the Admin API."""

    client: TestClient[Any, Any]
    counters: MemoryCounters
    url: str
    token: str | None = ADMIN
    failures: Failures = field(default_factory=lambda: Failures(time.monotonic))

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        where = path if path.startswith("/") else f"/admin/v1/{path}"
        async with self.client.request(method, where, json=json, data=data, headers=sent) as response:
            raw = await response.read()
            kind = response.content_type
            return Answer(
                response.status,
                response.headers,
                raw,
                await response.json() if "json" in kind and raw else None,
            )

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def post(self, path: str, json: Any = None, key: str | None = None) -> Answer:
        return await self.call("POST", path, json, headers={"Idempotency-Key": key} if key else None)

    async def patch(self, path: str, json: Any) -> Answer:
        return await self.call("PATCH", path, json)

    async def delete(self, path: str) -> Answer:
        return await self.call("DELETE", path)

    async def make(self, resource: str, **fields: Any) -> Any:
        made = await self.post(resource, fields)
        assert made.status == 201, made.raw
        return made.json

    async def until_locked(self) -> None:
        """Wait until a connection of this database waits for a lock another holds."""
        waiting = (
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        await eventually(lambda: self.rows(waiting) != [(0,)])  # PostgreSQL does not tell

    def acting_as(self, token: str | None) -> Api:
        return replace(self, token=token)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return rows_of(self.url, statement, *values)


# What every migrated database holds from the start.
SEEDED = ("business_model", "service", "app_user")


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    return _migrated(postgres)


# Two folders of tests use this fixture; the database is made once a process all the same.
@cache
def _migrated(postgres: str) -> str:
    """One migrated database for the session: making partitions anew for each test takes half a second."""
    url = make_database(postgres, f"admin{os.getpid()}", template_of(postgres))
    migrate.upgrade(url)  # the roles of a database have its name
    with connections.connected(url, autocommit=True) as connection:
        connection.execute("create schema seed")
        for table in SEEDED:
            connection.execute(f"create table seed.{table} as table {table}")
    return url


@pytest.fixture(scope="session")
def keeper_login(migrated: str) -> str:
    """The same database as a keeper has it, by the writer's role: what is not granted, no test can do."""
    return standing.admit_writer(migrated, "a keeper's password")


@pytest.fixture
def keeper_database(admin_database: str, keeper_login: str) -> str:
    """The session's database as it was after the migration, as a keeper has it."""
    return keeper_login


@pytest.fixture
def admin_database(migrated: str) -> str:
    """The session's database as it was after the migration, as its owner has it."""
    empty(migrated)
    return migrated


def empty(migrated: str) -> None:
    """Have a migrated database hold what it held at first; ids begin at 1 again."""
    clear(migrated, (), _seed)


def _seed(connection: psycopg.Connection) -> None:
    connection.execute(
        "select setval(seqrelid::regclass, seqstart, false) from pg_sequence"
        " where pg_sequence_last_value(seqrelid) is not null"
    )
    for table in SEEDED:
        connection.execute(f"insert into {table} overriding system value table seed.{table}")
        connection.execute(
            f"select setval(pg_get_serial_sequence('{table}', 'id'), (select max(id) from {table}))"
        )


_SETTINGS = Settings()
_PARTS = AdminParts(settings=_SETTINGS, later=KeeperSettings(_SETTINGS, None, print, lambda _: None))
ROUTES = [routes for feature in features() if (routes := feature.routes(_PARTS)) is not None]


def ports_over(
    engine: AsyncEngine,
    counters: MemoryCounters,
    failures: Failures | None = None,
    letterhead: Letterhead = LETTERHEAD,
    store: Callable[..., Store] = Store,
) -> AdminPorts:
    """Everything the admin port is made of: a real store, counters in memory."""

    async def well() -> tuple[bool, Found]:
        return True, {"postgres": True}

    async def unwell() -> tuple[bool, Found]:
        return False, {"postgres": False, "redis": "its memory is full"}

    async def metrics(accept: str) -> tuple[bytes, str]:
        return b"tollkeeper_build_info 1\n", "text/plain; version=0.0.4"

    figures = ConsoleQueries(engine, partition_of)
    return AdminPorts(
        store=store(
            engine,
            partition_of,
            rules=WriteRules(mail_allowed=True),
            letterhead=letterhead,
            wait_reason=counters.wait_reason,
        ),
        pusher=counters,
        counters=counters,
        account_closing=counters,
        reconciler=counters,
        unreadable=counters,
        activity=counters,
        programs=counters.programs,
        routes=[routes.mount for routes in ROUTES if routes.mount is not None],
        files=[routes.files for routes in ROUTES if routes.files is not None],
        peppers=PEPPERS,
        live=well,
        ready=unwell,
        metrics=metrics,
        snapshot=counters.snapshot,
        figures=figures,
        failures=failures or Failures(time.monotonic, free_max=10_000),
        built_in=BuiltIn(ADMIN, READONLY),
        body_bytes_max=64 * 1024,
        replay=Replays(
            lambda: engine.url.render_as_string(hide_password=False), print, counters.await_stored
        ).run,
    )


@asynccontextmanager
async def api_of(
    admin_database: str,
    keeper_database: str,
    letterhead: Letterhead = LETTERHEAD,
    store: Callable[..., Store] = Store,
    *,
    sign_ins: SignIns | None = None,
    port: int | None = None,
    routes: Sequence[Mount] = (),
) -> AsyncIterator[Api]:
    """An application of a test's own: one with another letterhead, store, port, sign-in or other routes."""
    engine = take_engine(keeper_database)
    counters = MemoryCounters(admin_database)
    ports = ports_over(engine, counters, _patient(), letterhead, store)
    ports = replace(ports, sign_ins=sign_ins, routes=(*ports.routes, *routes))
    server = TestServer(build(ports), port=port)
    async with TestClient(server, cookie_jar=DummyCookieJar()) as client:
        yield Api(client, counters, admin_database, failures=ports.failures)
    await give_back(keeper_database, engine)


def _patient() -> Failures:
    """Failed authentications of a test, which may be refused often and need not wait."""
    return Failures(time.monotonic, free_max=10_000)


class SharedServer(TestServer):
    """A server that stays when a client of it is closed."""

    async def close(self) -> None:
        pass

    async def end(self) -> None:
        await super().close()


class SharedApp:
    """The application that the tests of a process have in turn, and its engine with open connections.

    What remembers something of a test is new for the next one: counters in memory, failures, answers, hours,
    work slots. Handlers of resources remember nothing; a test that asks any other handler (console, files,
    documents, plans) has the next test begin with another application.
    """

    def __init__(self, admin_database: str, keeper_database: str) -> None:
        self._urls = admin_database, keeper_database
        self._engine = take_engine(keeper_database)
        self._server: SharedServer | None = None

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Api]:
        """Lend the application to one test."""
        server = self._server or await self._begin()
        renew(self._counters, MemoryCounters(self._urls[0]))
        renew(self._failures, _patient())
        renew(self._answers, Answers())
        renew(server.app[HOURS], Hours(HOURLY, time.time))
        renew(server.app[PLACES], WorkSlots(ROOM))
        try:
            # Cookies are kept by who has them, not by the client.
            async with TestClient(server, cookie_jar=DummyCookieJar()) as client:
                yield Api(client, self._counters, self._urls[0], failures=self._failures)
        finally:
            await forget_ids(self._engine)
            if not self._is_blank:
                await self._end()

    async def close(self) -> None:
        await self._end()
        await give_back(self._urls[1], self._engine)

    async def _begin(self) -> SharedServer:
        self._counters, self._failures = MemoryCounters(self._urls[0]), _patient()
        ports = ports_over(self._engine, self._counters, self._failures)
        self._answers, self._is_blank = ports.answers, True
        app = build(ports)
        app.middlewares.append(self._note)
        self._server, others = SharedServer(app), asyncio.all_tasks()
        await self._server.start_server()
        LASTING.update(asyncio.all_tasks() - others)
        return self._server

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.end()
        self._server = None

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.match_info.handler
        owner = getattr(asked.func if isinstance(asked, partial) else asked, "__self__", None)
        self._is_blank &= isinstance(owner, ResourceHandlers)
        return await handler(request)


def renew(shared: object, fresh: object) -> None:
    """Have an object that others hold be as a fresh one."""
    vars(shared).clear()
    vars(shared).update(vars(fresh))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_app(migrated: str, keeper_login: str, one_loop: None) -> AsyncIterator[SharedApp]:
    app = SharedApp(migrated, keeper_login)
    yield app
    await app.close()


@pytest.fixture
async def api(admin_database: str, keeper_database: str, shared_app: SharedApp) -> AsyncIterator[Api]:
    async with shared_app.lend() as made:
        yield made
