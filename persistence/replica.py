"""A streaming replica of PostgreSQL: reads are answered from it where it has what they must see.

What this process wrote is noted by its place in the write-ahead log. A read goes to the replica once that has
been replayed there; else, and while the replica is away or too far behind, to the primary. So nobody misses
what they just wrote, and whoever reads does not notice that a replica fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StoreUnavailable
from persistence import engine as engines
from persistence.bounded import answered
from persistence.complaint import complaint
from persistence.refusals import sqlstate, translated

T = TypeVar("T")

# A replica that is further behind is not read.
LAG_S_MAX = 30.0
# How long it may take to say how far it is, and for how long one that did not is left alone.
SAYS_S_MAX = 1.0
AWAY_S = 5.0
# PostgreSQL took too long over a query: another server would as well.
TOO_LONG = "57014"

# What a commit left in the log is flushed when it is acknowledged, unless that is turned off.
_PLACE = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS cluster, pg_is_in_recovery() AS follows,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            WHEN current_setting('synchronous_commit') = 'off'
                            THEN pg_current_wal_insert_lsn()
                            ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint AS place,
       extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 AS age_s"""


class Standing(NamedTuple):
    """Where a server is in the log of a cluster; of a replica how old its last transaction is."""

    cluster: str
    follows: bool
    place: int
    age_s: float | None


class Replica:
    """Answers reads, or says that the primary has to."""

    def __init__(
        self,
        engine: AsyncEngine,
        primary: AsyncEngine,
        clock: Callable[[], float] = time.monotonic,
        *,
        lag_s_max: float = LAG_S_MAX,
    ) -> None:
        self.engine = engine
        self._primary = primary
        self._clock = clock
        self._lag_s_max = lag_s_max
        self._cluster = ""
        self._wrote = 0
        self._away_until = 0.0
        self._lag_s: float | None = None

    @classmethod
    def of(cls, url: str, primary: AsyncEngine) -> Replica | None:
        """The replica at this address; None where there is no address."""
        return cls(engines.create(url), primary) if url else None

    async def wrote(self) -> None:
        """Note that this process wrote something up to now, which its reads see from here on."""
        self._wrote = max(self._wrote, (await standing(self._primary)).place)

    async def serves(self) -> bool:
        """Whether the replica is there, is one of this primary, and has what was written here."""
        if self._clock() < self._away_until or (self._lag_s or 0) > self._lag_s_max:
            return False
        try:
            async with asyncio.timeout(SAYS_S_MAX):
                if not self._cluster:
                    self._cluster = (await standing(self._primary)).cluster
                here = await standing(self.engine)
        except (SQLAlchemyError, OSError, TimeoutError):
            self._leave()
            return False
        return here.cluster == self._cluster and here.place >= self._wrote

    async def read(self, work: Callable[[Connection], T], otherwise: Callable[[], Awaitable[T]]) -> T:
        """What the work answers, read here if this serves; `otherwise` where it does not, or goes away."""
        if await self.serves():
            try:
                return await answered(self._tried(work), partial(engines.alive, self.engine))
            except StoreUnavailable:
                self._leave()
            except (SQLAlchemyError, OSError) as error:
                told = translated(error)
                if sqlstate(error) == TOO_LONG or not isinstance(told, StoreUnavailable):
                    raise told from error
                # Its rows were needed for what the primary changed meanwhile, or it is gone.
                if sqlstate(error) not in {"40001", "40P01"}:
                    self._leave()
        return await otherwise()

    async def lag(self) -> float | None:
        """By how many seconds it is behind the primary; None where one of them does not say."""
        self._lag_s = None
        try:
            async with asyncio.timeout(SAYS_S_MAX):
                self._lag_s = behind(await standing(self._primary), await standing(self.engine))
        except (SQLAlchemyError, OSError, TimeoutError):
            self._leave()
        return self._lag_s

    async def _tried(self, work: Callable[[Connection], T]) -> T:
        async with self.engine.connect() as connection:
            return await connection.run_sync(work)

    def _leave(self) -> None:
        self._away_until = self._clock() + AWAY_S


async def standing(engine: AsyncEngine) -> Standing:
    """Where a server is."""
    async with engine.connect() as connection:
        row: Any = (await connection.execute(text(_PLACE))).one()
    return Standing(row.cluster, row.follows, row.place or 0, row.age_s)


def behind(primary: Standing, replica: Standing) -> float:
    """By how many seconds a replica is behind what the primary had just before."""
    return 0.0 if replica.place >= primary.place else max(0.0, replica.age_s or 0.0)


async def examine(primary_url: str, replica_url: str, lag_s_max: float = LAG_S_MAX) -> tuple[bool, str]:
    """Whether a server is a replica of another that can be read, and how far it is, in words."""
    primary, replica = engines.create(primary_url), engines.create(replica_url)
    try:
        first, second = await standing(primary), await standing(replica)
    except (SQLAlchemyError, OSError) as error:
        return False, complaint(error)
    finally:
        await primary.dispose()
        await replica.dispose()
    if first.cluster != second.cluster:
        return False, "is no streaming replica of TOLLKEEPER_DATABASE_URL: it is never read"
    if not second.follows:
        return True, "is the primary itself: reads are spared it no load"
    lag_s = behind(first, second)
    if lag_s > lag_s_max:
        return (
            False,
            f"is {lag_s:.0f} s behind, and not read beyond {lag_s_max:.0f}: look at its replication",
        )
    return True, f"is {lag_s:.1f} s behind"
