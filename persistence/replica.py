"""A streaming replica of PostgreSQL: reads are answered from it where it has what they must see.

What somebody wrote in this process is noted by its place in the write-ahead log. A read goes to the replica
once that has been replayed there; else, and while the replica is away, too far behind or does not say how
far, to the primary. So nobody misses what they just wrote. What the keeper's clock does is not noted: it is
seen once it has been replayed. An export that was begun at the replica fails with it; no other read does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StoreUnavailable
from gateway.files import UrlFile
from persistence import engine as engines
from persistence.engine import answered, within
from persistence.error_mapping import QUERY_CANCELED, complaint, sqlstate, translated

T = TypeVar("T")

# A replica that is further behind is not read.
LAG_S_MAX = 30.0
# How long it may take to say how far it is, and for how long one that did not is left alone.
SAYS_S_MAX = 1.0
AWAY_S = 5.0

# Who does not say where it is.
_SILENT = (SQLAlchemyError, OSError, TimeoutError)
# What a commit left in the log is flushed when it is acknowledged, unless that is turned off.
_PLACE = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS cluster, pg_is_in_recovery() AS follows,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            WHEN current_setting('synchronous_commit') = 'off'
                            THEN pg_current_wal_insert_lsn()
                            ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint AS place,
       extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 AS age_s,
       extract(epoch FROM pg_postmaster_start_time())::text AS began"""


class ServerState(NamedTuple):
    """Where a server is in the log of a cluster; of a replica how old its last transaction is.

    `began` tells servers of one cluster apart, whatever their addresses: since when it runs, in microseconds.
    """

    cluster: str
    follows: bool
    place: int
    age_s: float | None
    began: str


class Replica:
    """Answers reads, or says that the primary has to."""

    def __init__(
        self,
        engine: AsyncEngine,
        primary: AsyncEngine,
        clock: Callable[[], float] = time.monotonic,
        *,
        lag_s_max: float = LAG_S_MAX,
        says_s_max: float = SAYS_S_MAX,
    ) -> None:
        self.engine = engine
        self._primary = primary
        self._clock = clock
        self._lag_s_max = lag_s_max
        self._says_s_max = says_s_max
        self._cluster = ""
        # How often was written here, up to which of these the place is known, and that place.
        self._writes = self._noted = self._place = 0
        self._away_until = 0.0
        self._lag_s: float | None = None

    @classmethod
    def of(cls, url: UrlFile, primary: AsyncEngine) -> Replica | None:
        """The replica at this address; None where there is no address."""
        return cls(engines.create(url), primary) if url else None

    async def wrote(self) -> None:
        """Note that something was written here, which reads see from now on.

        It was written, so nothing is raised: until its place is known, nothing is read at the replica.
        """
        self._writes += 1
        with suppress(*_SILENT):
            await self._note()

    async def serves(self) -> bool:
        """Whether the replica is there, is one of this primary, and has what was written here."""
        if self._clock() < self._away_until or self._lag_s is None or self._lag_s > self._lag_s_max:
            return False
        try:
            if not self._cluster or self._noted < self._writes:
                await self._note()
            here = await within(server_state(self.engine), self._says_s_max)
            if not here.follows and not is_read(await self._primary_state(), here):
                return False
        except _SILENT:
            self._leave()
            return False
        # Nobody knows yet of notes made while this was asked.
        return here.cluster == self._cluster and self._noted == self._writes and here.place >= self._place

    async def read(self, work: Callable[[Connection], T], otherwise: Callable[[], Awaitable[T]]) -> T:
        """What the work answers, read here if this serves; `otherwise` where it does not, or goes away."""
        if await self.serves():
            try:
                return await answered(self._tried(work), partial(engines.alive, self.engine))
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
        """By how many seconds it is behind the primary; None where that is unknown: it is not read then."""
        found = None
        try:
            primary = await self._primary_state()
            here = await within(server_state(self.engine), self._says_s_max)
            found = behind(primary, here) if is_read(primary, here) else None
        except _SILENT:
            self._leave()
        self._lag_s = found
        return found

    async def figures(self) -> dict[str, object]:
        """What metrics say of it."""
        lag_s = await self.lag()
        return {} if lag_s is None else {"replica_lag_seconds": lag_s}

    async def _note(self) -> None:
        """Know where all is that was written here by now."""
        writes = self._writes
        primary = await self._primary_state()
        self._cluster = self._cluster or primary.cluster
        self._noted, self._place = max(self._noted, writes), max(self._place, primary.place)

    async def _primary_state(self) -> ServerState:
        return await within(server_state(self._primary), self._says_s_max)

    async def _tried(self, work: Callable[[Connection], T]) -> T:
        async with self.engine.connect() as connection:
            return await connection.run_sync(work)

    def _leave(self) -> None:
        self._away_until = self._clock() + AWAY_S


async def server_state(engine: AsyncEngine) -> ServerState:
    """Where a server is."""
    async with engine.connect() as connection:
        row: Any = (await connection.execute(text(_PLACE))).one()
    return ServerState(row.cluster, row.follows, row.place or 0, row.age_s, row.began)


def is_read(primary: ServerState, other: ServerState) -> bool:
    """Whether a server follows in the log of another, or is that very one.

    A replica that was promoted is neither: what it has since is a history of its own.
    """
    return other.cluster == primary.cluster and (other.follows or other.began == primary.began)


def behind(primary: ServerState, replica: ServerState) -> float | None:
    """By how many seconds a replica is behind what the primary had just before.

    None where it has replayed no transaction by which it is known.
    """
    if replica.place >= primary.place:
        return 0.0
    return None if replica.age_s is None else max(0.0, replica.age_s)


async def examine(primary_url: str, replica_url: str, lag_s_max: float = LAG_S_MAX) -> tuple[bool, str]:
    """Whether a server is a replica of another that can be read, and how far it is, in words."""
    primary, replica = engines.create(primary_url), engines.create(replica_url)
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
