"""The door to PostgreSQL: pooled SQLAlchemy engines, over psycopg 3.

Server-side prepared statements are off, so that it works through a transaction pooler. Never take a
second connection from a pool while holding one; long-held work uses a dedicated connection (`apart`).

A streaming replica answers reads that it can. This process notes the place of its own writes in the
write-ahead log. A read goes to the replica once that place is replayed there; else, and while the replica is
away, too far behind or does not say how far, to the primary. So nobody misses what they just wrote. An export
that began at the replica fails with it; no other read does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg
from sqlalchemy import AsyncAdaptedQueuePool, Connection, ExceptionContext, event, make_url, text
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.core.accounts.administration import count_rows
from gateway.errors import StoreUnavailable
from gateway.files import UrlFile, is_readable
from persistence.address import CONNECT, dialect_url, plain_url
from persistence.error_mapping import QUERY_CANCELED, complaint, quiet, sqlstate, translated

# The connections to PostgreSQL, counted: how many are busy, who waits for one, and what fails.

# A connection that broke or was not had; a statement that PostgreSQL ended; nothing free in time.
CONNECTION, STATEMENT, EXHAUSTED = "connection", "statement", "exhausted"
CAUSES = (CONNECTION, STATEMENT, EXHAUSTED)
# A replica that is further behind is not read.
LAG_S_MAX = 30.0
# How long it may take to say how far it is, and for how long one that did not is left alone.
SAYS_S_MAX = 1.0
AWAY_S = 5.0

# Who does not say where it is.
_SILENT = (SQLAlchemyError, OSError, TimeoutError)
# What a commit left in the log is flushed when it is acknowledged, unless that is turned off.
_WAL_PLACE = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS cluster, pg_is_in_recovery() AS follows,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            WHEN current_setting('synchronous_commit') = 'off'
                            THEN pg_current_wal_insert_lsn()
                            ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint AS place,
       extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 AS age_s,
       extract(epoch FROM pg_postmaster_start_time())::text AS began"""


class CountedPool(AsyncAdaptedQueuePool):
    """A pool that knows who waits for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting = 0
        self.failures = dict.fromkeys(CAUSES, 0)

    def _do_get(self) -> Any:
        self.waiting += 1
        try:
            return super()._do_get()
        except NoneInTime:
            self.failures[EXHAUSTED] += 1
            raise
        finally:
            self.waiting -= 1


def count_failures(engine: AsyncEngine) -> None:
    """Count what fails through an engine; what a statement says of its values is no failure."""

    def failed(context: ExceptionContext) -> None:
        pool, error = engine.pool, context.original_exception
        if not isinstance(pool, CountedPool) or not isinstance(error, psycopg.OperationalError | OSError):
            return
        lost = context.is_disconnect or getattr(error, "sqlstate", None) is None
        pool.failures[CONNECTION if lost else STATEMENT] += 1

    event.listen(engine.sync_engine, "handle_error", failed)


def pool_figures(engine: AsyncEngine) -> dict[str, object]:
    pool = engine.pool
    if not isinstance(pool, CountedPool):
        return {}
    return {
        "postgresql_connections": [["busy", pool.checkedout()], ["idle", pool.checkedin()]],
        "postgresql_connections_max": pool.size(),
        "postgresql_waiting": pool.waiting,
        "postgresql_failures": [[cause, count] for cause, count in pool.failures.items()],
    }


POOL_CONNECTIONS_MAX = 10
# Of a keeper. Its loops have one at a time each, for a moment.
LOOPS_CONNECTIONS_MAX = 8
# Loops that bill, whose transactions take seconds: one each. Batches of invoices come on top.
BILLING_CONNECTIONS_MAX = 6
# What says that a keeper is there waits for nobody.
SHARE_CONNECTIONS_MAX = 1
# Of its process for people. Requests have one each. What plans, applies or exports a configuration has its
# own for minutes, pushes have some of staff's, and some are left. No organization's request has one of these.
STAFF_CONNECTIONS_MAX = 8
ORGANIZATIONS_CONNECTIONS_MAX = 4
# PostgreSQL's answer is asked for beside all waits for others.
PROBE_CONNECTIONS_MAX = 1
# No statement of an organization's request takes longer: it is over by then.
STATEMENT_S_MAX = 30
POOL_WAIT_S = 10


# Under which an engine has what its address is read from.
_FILE = "tollkeeper_url"
# For code that hands one on and asks it nothing.
Engine = AsyncEngine
__all__ = ["Connection", "Engine"]


def create(
    url: str | UrlFile, *, connections_max: int = POOL_CONNECTIONS_MAX, wait_s: float = POOL_WAIT_S,
    statement_s_max: int | None = None,
) -> AsyncEngine:  # fmt: skip
    """Return an engine for `postgresql://…`; nothing is connected until it is used.

    A transaction may let its statements take more or less than `statement_s_max`, which is where each begins.
    """
    url = url_file(url)
    engine = create_async_engine(
        dialect_url(url.url()),
        execution_options={_FILE: url},
        poolclass=CountedPool,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=wait_s,
        hide_parameters=True,  # values must not reach a log through an error's text
        connect_args=CONNECT,
    )
    _log_in(engine, url)
    quiet(engine)
    count_failures(engine)
    event.listen(engine.sync_engine, "checkout", _check_open)
    if statement_s_max is not None:
        _bound(engine, statement_s_max)
    return engine


@dataclass(frozen=True, slots=True)
class Pools:
    """The connections of a keeper's loops, by what they are for: who waits for one keeps no other waiting."""

    loops: AsyncEngine
    billing: AsyncEngine
    share: AsyncEngine

    @classmethod
    def create(cls, url: str | UrlFile, batches: int) -> Pools:
        """Return all of them; so many `batches` of invoices are made at once."""
        return cls(
            create(url, connections_max=LOOPS_CONNECTIONS_MAX),
            create(url, connections_max=BILLING_CONNECTIONS_MAX + batches),
            create(url, connections_max=SHARE_CONNECTIONS_MAX),
        )

    async def dispose(self) -> None:
        for engine in (self.loops, self.billing, self.share):
            await engine.dispose()


@dataclass(frozen=True, slots=True)
class PeoplePools:
    staff: AsyncEngine
    organizations: AsyncEngine
    probe: AsyncEngine

    @classmethod
    def create(cls, url: str | UrlFile) -> PeoplePools:
        return cls(
            create(url, connections_max=STAFF_CONNECTIONS_MAX),
            create(url, connections_max=ORGANIZATIONS_CONNECTIONS_MAX, statement_s_max=STATEMENT_S_MAX),
            create(url, connections_max=PROBE_CONNECTIONS_MAX),
        )

    async def dispose(self) -> None:
        for engine in (self.staff, self.organizations, self.probe):
            await engine.dispose()


def _check_open(connection: Any, *_: object) -> None:
    """Replace a pooled connection that the server ended: its socket is readable at EOF, without an answer.

    A test query instead would cost a round trip more for each transaction.
    """
    driver = connection.driver_connection
    if driver.closed or is_readable(driver.fileno()):
        raise InvalidatePoolError


@asynccontextmanager
async def looking(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection in autocommit: each statement is a transaction without BEGIN and COMMIT."""
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def apart(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a transaction over a separate connection, for work that lasts as long as a slow client."""
    own = create_async_engine(engine.url, poolclass=NullPool, hide_parameters=True, connect_args=CONNECT)
    _log_in(own, engine.get_execution_options()[_FILE])
    quiet(own)
    async with own.begin() as connection:
        yield connection


# What nobody can write to: a standby, as after a failover behind an address of several hosts.
READS_ONLY = "it reads only: it is a standby, or default_transaction_read_only is on"


async def write_trouble(engine: AsyncEngine) -> str:
    """Return why PostgreSQL accepts no write now, or ""; `READS_ONLY` if the server still answers reads."""
    return await trouble(engine) or (READS_ONLY if await reads_only(engine) else "")


async def reads_only(engine: AsyncEngine) -> bool:
    """Return whether PostgreSQL says that it takes no write; False where it says nothing."""
    try:
        async with engine.connect() as connection:
            return bool(await connection.scalar(text("SHOW transaction_read_only")) == "on")
    except (SQLAlchemyError, OSError):
        return False


async def trouble(engine: AsyncEngine) -> str:
    """Return why PostgreSQL does not answer a query now; empty where it does."""
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        return complaint(error)
    return ""


async def alive(engine: AsyncEngine) -> bool:
    """Return whether PostgreSQL takes a new connection and answers on it, whatever the pool waits for."""
    url = plain_url(engine.get_execution_options()[_FILE].url())
    async with await psycopg.AsyncConnection.connect(url, **CONNECT) as connection:
        await connection.execute("SELECT 1")
    return True


def _bound(engine: AsyncEngine, statement_s_max: int) -> None:
    """Limit each statement's time by every transaction, since the next may be in another session;
    and count the rows of each result.
    """

    @event.listens_for(engine.sync_engine, "begin")
    def bound(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{statement_s_max:d}s'")

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def counted(_: Connection, cursor: Any, *__: object) -> None:
        count_rows(cursor.rowcount)


def url_file(url: str | UrlFile) -> UrlFile:
    """Return an address that no file says is one too."""
    return url if isinstance(url, UrlFile) else UrlFile(url)


def _log_in(engine: AsyncEngine, url: UrlFile) -> None:
    """Connect each new connection as the user that the address names by then."""

    @event.listens_for(engine.sync_engine, "do_connect")
    def login(_: object, __: object, ___: object, parameters: dict[str, Any]) -> None:
        now = make_url(dialect_url(url.url()))
        said = {"user": now.username, "password": now.password}
        parameters.update({name: value for name, value in said.items() if value is not None})


# Whether a pooler between here and PostgreSQL gives a session to several clients, a transaction at a time.
#
# A keeper keeps nothing in a session, so it may. A backup and an archive cannot do without one: pg_dump sets
# its snapshot for its whole session, and would leave that to the next user of the session.

# A pooler hands out first what it got back last. Where others are quicker, it is asked again.
TRIES = 20
ASK_OWNER = (
    "PostgreSQL is behind a pooler in transaction mode, which has no session for this:"
    " let TOLLKEEPER_DATABASE_OWNER_URL name the server itself"
)


def shares_sessions(url: str) -> bool:
    """Return whether two clients that are there at once were seen in one session; psycopg's own errors."""
    with _connected(url) as one:
        # The server's own process, where nobody is between.
        if one.info.backend_pid == _pid(one):
            return False
        with _connected(url) as other:
            return any(_pid(one) == _pid(other) for _ in range(TRIES))


def is_seen_to_share(url: str) -> bool | None:
    """Return the same; None where that could not be asked."""
    try:
        return shares_sessions(url)
    except psycopg.Error:
        return None


def _connected(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(plain_url(url), autocommit=True, **CONNECT)


def _pid(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


# Work on PostgreSQL that is never waited for longer than PostgreSQL answers.
#
# A server that is frozen, or a network that swallows, answers nothing and refuses nothing; even a
# cancelled query waits for its word. So the caller stops waiting and the work is left behind.

T = TypeVar("T")

# How long work may be silent before PostgreSQL is asked whether it is there, and how long that may take:
# together the longest wait on one that is not.
SILENT_S_MAX = 4.0
PROBE_S_MAX = 3.0


async def answered(
    work: Coroutine[Any, Any, T],
    alive: Callable[[], Awaitable[bool]],
    *,
    silent_s_max: float = SILENT_S_MAX,
    probe_s_max: float = PROBE_S_MAX,
) -> T:
    """Return what the work answers, however long it takes, as long as PostgreSQL answers others meanwhile.

    `StoreUnavailable` where it does not; a write may have been done all the same.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=silent_s_max))[0]:
            if not await _answers(alive, probe_s_max):
                break
    finally:
        if not task.done():
            _leave(task)
    if not task.done():
        raise StoreUnavailable("PostgreSQL does not answer; a write may have been done.")
    return task.result()


async def within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what the work answers so soon; `TimeoutError` where it does not, and is left behind."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            _leave(task)
    if not task.done():
        raise TimeoutError
    return task.result()


async def _answers(alive: Callable[[], Awaitable[bool]], probe_s_max: float) -> bool:
    asking = asyncio.ensure_future(alive())
    done, _ = await asyncio.wait({asking}, timeout=probe_s_max)
    if not done:
        _leave(asking)
        return False
    return asking.exception() is None and asking.result()


def _leave(task: asyncio.Future[Any]) -> None:
    """Cancel, wait for nothing, and let whatever comes of it be nobody's."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    task.cancel()


class ServerState(NamedTuple):
    """Where a server is in the log of a cluster; of a replica how old its last transaction is.

    `began` tells servers of one cluster apart, whatever their addresses: since when it runs, in microseconds.
    """

    cluster: str
    follows: bool
    place: int
    age_s: float | None
    began: str


@dataclass(slots=True, eq=False)
class Replica:
    engine: AsyncEngine
    primary: AsyncEngine
    clock: Callable[[], float] = time.monotonic
    _: KW_ONLY
    lag_s_max: float = LAG_S_MAX
    says_s_max: float = SAYS_S_MAX
    _cluster: str = field(default="", init=False)
    # How often was written here, up to which of these the place is known, and that place.
    _writes: int = field(default=0, init=False)
    _noted: int = field(default=0, init=False)
    _place: int = field(default=0, init=False)
    _away_until: float = field(default=0.0, init=False)
    _lag_s: float | None = field(default=None, init=False)

    @classmethod
    def of(cls, url: UrlFile, primary: AsyncEngine) -> Replica | None:
        """Return the replica at this address; None where there is no address."""
        return cls(create(url), primary) if url else None

    async def wrote(self) -> None:
        """Note that something was written here, which reads see from now on.

        It was written, so nothing is raised: until its place is known, nothing is read at the replica.
        """
        self._writes += 1
        with suppress(*_SILENT):
            await self._note()

    async def serves(self) -> bool:
        """Return whether the replica is there, is one of this primary, and has what was written here."""
        if self.clock() < self._away_until or self._lag_s is None or self._lag_s > self.lag_s_max:
            return False
        try:
            if not self._cluster or self._noted < self._writes:
                await self._note()
            here = await within(server_state(self.engine), self.says_s_max)
            if not here.follows and not is_read(await self._primary_state(), here):
                return False
        except _SILENT:
            self._leave()
            return False
        # Nobody knows yet of notes made while this was asked.
        return here.cluster == self._cluster and self._noted == self._writes and here.place >= self._place

    async def read(self, work: Callable[[Connection], T], otherwise: Callable[[], Awaitable[T]]) -> T:
        """Return the work's result, read here if this replica serves; else, or if it fails, `otherwise`."""
        if await self.serves():
            try:
                return await answered(self._tried(work), partial(alive, self.engine))
            except StoreUnavailable:
                self._leave()
            except (SQLAlchemyError, OSError) as error:
                told = translated(error)
                # What took too long here would elsewhere as well.
                if sqlstate(error) == QUERY_CANCELED or not isinstance(told, StoreUnavailable):
                    raise told from error
                # Its rows were needed for what the primary changed meanwhile, or it is gone.
                if sqlstate(error) not in {"40001", "40P01"}:
                    self._leave()
        return await otherwise()

    async def lag(self) -> float | None:
        """Return the seconds this replica is behind the primary; None if unknown: then no read goes here."""
        found = None
        try:
            primary = await self._primary_state()
            here = await within(server_state(self.engine), self.says_s_max)
            found = behind(primary, here) if is_read(primary, here) else None
        except _SILENT:
            self._leave()
        self._lag_s = found
        return found

    async def figures(self) -> dict[str, object]:
        lag_s = await self.lag()
        return {} if lag_s is None else {"replica_lag_seconds": lag_s}

    async def _note(self) -> None:
        writes = self._writes
        primary = await self._primary_state()
        self._cluster = self._cluster or primary.cluster
        self._noted, self._place = max(self._noted, writes), max(self._place, primary.place)

    async def _primary_state(self) -> ServerState:
        return await within(server_state(self.primary), self.says_s_max)

    async def _tried(self, work: Callable[[Connection], T]) -> T:
        async with self.engine.connect() as connection:
            return await connection.run_sync(work)

    def _leave(self) -> None:
        self._away_until = self.clock() + AWAY_S


async def server_state(engine: AsyncEngine) -> ServerState:
    async with engine.connect() as connection:
        row: Any = (await connection.execute(text(_WAL_PLACE))).one()
    return ServerState(row.cluster, row.follows, row.place or 0, row.age_s, row.began)


def is_read(primary: ServerState, other: ServerState) -> bool:
    """Return whether a server follows in the log of another, or is that very one.

    A replica that was promoted is neither: what it has since is a history of its own.
    """
    return other.cluster == primary.cluster and (other.follows or other.began == primary.began)


def behind(primary: ServerState, replica: ServerState) -> float | None:
    """Return by how many seconds a replica is behind the primary's state just before.

    None if the replica has replayed no transaction that tells its age.
    """
    if replica.place >= primary.place:
        return 0.0
    return None if replica.age_s is None else max(0.0, replica.age_s)


async def examine(primary_url: str, replica_url: str, lag_s_max: float = LAG_S_MAX) -> tuple[bool, str]:
    """Return whether a server is a replica of another that can be read, and how far it is, in words."""
    primary, replica = create(primary_url), create(replica_url)
    try:
        first, second = await server_state(primary), await server_state(replica)
    except (SQLAlchemyError, OSError) as error:
        return False, complaint(error)
    finally:
        await primary.dispose()
        await replica.dispose()
    if first.cluster != second.cluster:
        return False, "is no streaming replica of TOLLKEEPER_DATABASE_URL: it is never read"
    if not is_read(first, second):
        return False, "was promoted: it is no replica of this one any more, and never read"
    if not second.follows:
        return True, "is the primary itself: reads are spared it no load"
    lag_s = behind(first, second)
    if lag_s is None:
        return False, "is behind, and has not replayed anything since it began: look at its replication"
    if lag_s > lag_s_max:
        return (
            False,
            f"is {lag_s:.0f} s behind, and not read beyond {lag_s_max:.0f}: look at its replication",
        )
    return True, f"is {lag_s:.1f} s behind"
