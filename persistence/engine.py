"""The door to PostgreSQL: pooled SQLAlchemy engines over psycopg 3.

Server-side prepared statements are off, so that a transaction pooler may be used. Never take a second
connection from a pool while holding one; long work uses a dedicated connection (`apart`).

A streaming replica serves reads where possible. This process stores the position of its own writes in the
write-ahead log. A read goes to the replica once the replica has replayed that position. Otherwise it goes to
the primary, also while the replica is unreachable, too far behind, or reports no position. So all read what
they just wrote. An export that began at the replica fails with it; no other read does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy import AsyncAdaptedQueuePool, Connection, ExceptionContext, event, make_url, text
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from gateway.core.accounts.hourly_budget import count_rows
from gateway.errors import StoreUnavailable
from gateway.files import UrlFile, is_readable
from persistence.address import CONNECT, dialect_url, plain_url
from persistence.error_mapping import QUERY_CANCELED, complaint, quiet, sqlstate, translate_error, translating
from persistence.queries import SlowQueries, SlowQuery, query

# Counted connections to PostgreSQL: busy ones, waiting requests, and failures.

# A connection was lost or refused; PostgreSQL ended a statement; no connection was free in time.
CONNECTION, STATEMENT, EXHAUSTED = "connection", "statement", "exhausted"
CAUSES = (CONNECTION, STATEMENT, EXHAUSTED)
# A replica that is further behind is not read.
LAG_S_MAX = 30.0
# Seconds in which it must report its position, and for which it is not used after it failed to.
SAYS_S_MAX = 1.0
AWAY_S = 5.0

# Errors of a server that does not report its position.
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
    """A pool that counts the requests that wait for a connection, and the failures by cause.

    It never hands out a connection that a cancelled request left in the middle of something: each is looked at
    when it comes back and when it is taken. New ones in their place are made one by one, so that a burst of
    deadlines does not become a burst of logins; until then requests get the other connections, or wait.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting = 0
        self.failures = dict.fromkeys(CAUSES, 0)
        self.replaced_s_min, self._replaced_at = REPLACED_S_MIN, -math.inf

    def _do_get(self) -> Any:
        self.waiting += 1
        try:
            return self._take_ready()
        except NoneInTime:
            self.failures[EXHAUSTED] += 1
            raise
        finally:
            self.waiting -= 1

    def _take_ready(self) -> Any:
        looks, until = 0, time.monotonic() + self.timeout()
        while not self._is_ready(entry := super()._do_get()):
            self._do_return_conn(entry)
            looks += 1
            if time.monotonic() > until:
                raise NoneInTime("no connection may be made yet in the place of a cancelled one")
            if looks % self.size() == 0:  # none of the others is ready either
                await_only(asyncio.sleep(LOOK_S))
        return entry

    def _do_return_conn(self, record: Any) -> None:
        _drop_unclean(record)
        super()._do_return_conn(record)

    def _is_ready(self, entry: Any) -> bool:
        """Return whether a request may have this connection now, which may first have to be made."""
        _drop_unclean(entry)
        if _LEFT in entry.info:
            if time.monotonic() < self._replaced_at + self.replaced_s_min:
                return False
            self._replaced_at = time.monotonic()
        return True


def _drop_unclean(entry: Any) -> None:
    """Close a connection that is in a transaction or a pipeline: its next answers would be another's."""
    driver = entry.driver_connection
    if driver is None or driver.closed:
        return
    now = driver.pgconn.transaction_status, driver.pgconn.pipeline_status
    if now != (TransactionStatus.IDLE, PipelineStatus.OFF):
        entry.invalidate()


def _note_left(_: object, entry: Any, error: BaseException | None) -> None:
    """Note that a connection goes because its request was cancelled, and not because the server failed."""
    if not isinstance(error, Exception):
        entry.info[_LEFT] = True


def run_each(cursor: Any, statement: str, rows: Iterable[object], _: object) -> bool:
    """Run a statement for each of some rows, in the place of psycopg's `executemany`; return True.

    A cancel that meets the ends of the pipeline of `executemany` leaves the connection in it. `insert_rows` is faster.
    """
    for row in rows:
        cursor.execute(statement, row)
    return True


def count_failures(engine: AsyncEngine) -> None:
    """Count failures of connections and statements of an engine; invalid values are not failures."""

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
# The heartbeat of a keeper waits for no other work.
SHARE_CONNECTIONS_MAX = 1
# Of its process for people. Each request takes one. Plans, applies and exports of a configuration keep one
# for minutes, and pushes use some of staff's. Requests of organizations have a pool of their own.
STAFF_CONNECTIONS_MAX = 8
ORGANIZATIONS_CONNECTIONS_MAX = 4
# The probe of PostgreSQL waits for no request.
PROBE_CONNECTIONS_MAX = 1
# No statement of an organization's request takes longer: it is over by then.
STATEMENT_S_MAX = 30
POOL_WAIT_S = 10


# Seconds between two connections that a pool makes in the place of cancelled ones, and between two looks.
REPLACED_S_MIN = 1.0
LOOK_S = 0.05
_LEFT = "tollkeeper_left"
# The execution option of an engine that holds its `UrlFile`.
_FILE = "tollkeeper_url"
# For code that hands one on and asks it nothing.
Engine = AsyncEngine
__all__ = ["Connection", "Engine"]


def create(
    url: str | UrlFile, *, connections_max: int = POOL_CONNECTIONS_MAX, wait_s: float = POOL_WAIT_S,
    statement_s_max: int | None = None,
) -> AsyncEngine:  # fmt: skip
    """Return an engine for `postgresql://…`; the first use connects.

    Transactions begin with a statement timeout of `statement_s_max` seconds, and may change it. A request for
    a connection waits `wait_s` seconds at most.
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
    event.listen(engine.sync_engine, "invalidate", _note_left)
    event.listen(engine.sync_engine, "do_executemany", run_each)
    if statement_s_max is not None:
        _bound(engine, statement_s_max)
    return engine


@dataclass(frozen=True, slots=True)
class Pools:
    """The connection pools of a keeper's loops, one for each purpose, so that none waits for another."""

    loops: AsyncEngine
    billing: AsyncEngine
    share: AsyncEngine

    @classmethod
    def create(
        cls, url: str | UrlFile, batches: int, report: Callable[[SlowQuery], None] = lambda _: None
    ) -> Pools:
        """Return the pools; `batches` is the number of batches of invoices that are made at once.

        `report` is called with slow queries.
        """
        pools = cls(
            create(url, connections_max=LOOPS_CONNECTIONS_MAX),
            create(url, connections_max=BILLING_CONNECTIONS_MAX + batches),
            create(url, connections_max=SHARE_CONNECTIONS_MAX),
        )
        slow = SlowQueries(report)
        for engine in (pools.loops, pools.billing, pools.share):
            slow.watch(engine)
        return pools

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
    """Replace a pooled connection that the server closed: its idle socket is then readable.

    A test query instead would cost each transaction a round trip.
    """
    driver = connection.driver_connection
    if driver.closed or is_readable(driver.fileno()):
        raise InvalidatePoolError


@asynccontextmanager
async def looking(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection in autocommit mode: each statement is its own transaction."""
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def apart(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a transaction over a separate connection, for work that lasts as long as a slow client reads.

    Its errors become errors of the API, also where no connection can be had.
    """
    own = create_async_engine(engine.url, poolclass=NullPool, hide_parameters=True, connect_args=CONNECT)
    _log_in(own, engine.get_execution_options()[_FILE])
    quiet(own)
    async with translating(own.begin()) as connection:
        yield connection


# The server is a standby, for example after a failover behind an address of several hosts.
_ANSWERS = query("engine.answers", "Select whether PostgreSQL answers", "SELECT 1")
_READ_ONLY = query("engine.read_only", "Select whether PostgreSQL only reads", "SHOW transaction_read_only")
READS_ONLY = "it reads only: it is a standby, or default_transaction_read_only is on"


async def write_trouble(engine: AsyncEngine) -> str:
    """Return why PostgreSQL accepts no write now, or "" if it does; `READS_ONLY` if only reads work."""
    return await trouble(engine) or (READS_ONLY if await reads_only(engine) else "")


async def reads_only(engine: AsyncEngine) -> bool:
    """Return whether PostgreSQL reports that it is read-only; False if it does not answer."""
    try:
        async with engine.connect() as connection:
            return bool(await connection.scalar(_READ_ONLY) == "on")
    except (SQLAlchemyError, OSError):
        return False


async def trouble(engine: AsyncEngine) -> str:
    """Return the error of a test query to PostgreSQL, or "" if the server answers."""
    try:
        async with engine.connect() as connection:
            await connection.execute(_ANSWERS)
    except (SQLAlchemyError, OSError) as error:
        return complaint(error)
    return ""


async def alive(engine: AsyncEngine) -> bool:
    """Return True if PostgreSQL answers over a new connection outside of the pool; raise psycopg's errors."""
    url = plain_url(engine.get_execution_options()[_FILE].url())
    async with await psycopg.AsyncConnection.connect(url, **CONNECT) as connection:
        await connection.execute("SELECT 1")
    return True


def _bound(engine: AsyncEngine, statement_s_max: int) -> None:
    """Limit each statement to `statement_s_max` seconds, and count the rows of each result.

    The limit is set in every transaction, since the next one may run in another session of a pooler.
    """

    @event.listens_for(engine.sync_engine, "begin")
    def bound(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{statement_s_max:d}s'")

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def counted(_: Connection, cursor: Any, *__: object) -> None:
        count_rows(cursor.rowcount)


def url_file(url: str | UrlFile) -> UrlFile:
    """Return the address as a `UrlFile`, also if it is a plain URL."""
    return url if isinstance(url, UrlFile) else UrlFile(url)


def _log_in(engine: AsyncEngine, url: UrlFile) -> None:
    """Read user and password from the address again for each new connection, as they may have changed."""

    @event.listens_for(engine.sync_engine, "do_connect")
    def login(_: object, __: object, ___: object, parameters: dict[str, Any]) -> None:
        now = make_url(dialect_url(url.url()))
        said = {"user": now.username, "password": now.password}
        parameters.update({name: value for name, value in said.items() if value is not None})


ASK_OWNER = (
    "PostgreSQL is behind a pooler in transaction mode, which has no session for this:"
    " let TOLLKEEPER_DATABASE_OWNER_URL name the server itself"
)


# Runs work on PostgreSQL without waiting longer than the server answers.
#
# A frozen server, or a network that drops packets, neither answers nor refuses; even a cancelled query waits
# for its reply. So the caller stops waiting and abandons the work.

T = TypeVar("T")

# Seconds of silence before PostgreSQL is probed, and the seconds that a probe may take: together the
# longest wait for a server that is gone.
SILENT_S_MAX = 4.0
PROBE_S_MAX = 3.0


async def answered(
    work: Coroutine[Any, Any, T],
    alive: Callable[[], Awaitable[bool]],
    *,
    silent_s_max: float = SILENT_S_MAX,
    probe_s_max: float = PROBE_S_MAX,
) -> T:
    """Return the result of the work, however long it takes, while PostgreSQL answers probes.

    Raise `StoreUnavailable` if a probe fails; a write may have been committed all the same.
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
    """Return the result of the work within `seconds`; else cancel the work and raise `TimeoutError`."""
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
    """Cancel a task without waiting for the end, and ignore its result or error."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    task.cancel()


class ServerState(NamedTuple):
    """The position (`place`) of a server in a cluster's log, and the age of a replica's last transaction.

    `began` is the start of the server in microseconds: it distinguishes servers of one cluster at any
    address.
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
        """Return the replica at this address; None if the address is empty."""
        return cls(create(url), primary) if url else None

    async def wrote(self) -> None:
        """Note a write of this process, which later reads must see.

        It raises nothing, as the write is committed. Until the write's log position is known, reads go to the
        primary.
        """
        self._writes += 1
        with suppress(*_SILENT):
            await self._note()

    async def serves(self) -> bool:
        """Return whether the replica answers, follows this primary, and has replayed our own writes."""
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
        """Return the work's result from the replica, or from `otherwise` if the replica fails."""
        if await self.serves():
            try:
                return await answered(self._tried(work), partial(alive, self.engine))
            except StoreUnavailable:
                self._leave()
            except (SQLAlchemyError, OSError) as error:
                told = translate_error(error)
                # A statement that is too slow here is too slow at the primary as well.
                if sqlstate(error) == QUERY_CANCELED or not isinstance(told, StoreUnavailable):
                    raise told from error
                # Its rows were needed for what the primary changed meanwhile, or it is gone.
                if sqlstate(error) not in {"40001", "40P01"}:
                    self._leave()
        return await otherwise()

    async def lag(self) -> float | None:
        """Return the seconds by which this replica is behind the primary server.

        None if it is unknown: then the replica is not read.
        """
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
    """Return whether `other` replicates from the primary, or is the primary itself.

    A promoted replica is neither: it has a history of its own.
    """
    return other.cluster == primary.cluster and (other.follows or other.began == primary.began)


def behind(primary: ServerState, replica: ServerState) -> float | None:
    """Return by how many seconds a replica is behind the given state of the primary.

    None if the replica has replayed no transaction with a time.
    """
    if replica.place >= primary.place:
        return 0.0
    return None if replica.age_s is None else max(0.0, replica.age_s)


async def examine(primary_url: str, replica_url: str, lag_s_max: float = LAG_S_MAX) -> tuple[bool, str]:
    """Return whether `replica_url` is a readable replica of the primary, and a message on its lag."""
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
