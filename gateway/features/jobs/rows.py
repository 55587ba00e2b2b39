"""Jobs of callers, from Redis to rows in PostgreSQL.

Redis lists jobs that are unsettled, or whose row is not stored yet. A settled job remains in its list until
its row is stored. After a crash in between it is stored again, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from gateway.background.loops import Isolation, Loop, call
from gateway.core.accounts.upstream_jobs import NO_COST, OPENING, Job, read_job
from gateway.core.text import batched
from gateway.counters.keeper.client import Client, are_any_there
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from persistence.jobs import JobRows

JOBS_S = 1.0
# A job whose hold was gone when it was charged: how long its cost is looked for in the journal.
COST_MS_MAX = 600_000
# Jobs read by one command.
_AT_ONCE = 200


class ListedJobs:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self) -> list[Job]:
        """Return the jobs in the lists of all partitions, without those that this version cannot read."""
        partitions = list(self._client.partitions)
        if not await are_any_there(self._client, [keys.jobs(partition) for partition in partitions]):
            return []
        listed = await self._client.ask_all(b"ZRANGE", keys.jobs, b"0", b"-1")
        found: list[Job] = []
        for partition, ids in listed.items():
            for some in batched(cast("list[bytes]", ids or []), _AT_ONCE):
                names = [keys.job(partition, keys.job_of(one)).encode() for one in some]
                (answers,) = await self._client.ask_each([(b"MGET", *names)])
                stored = cast("list[bytes | None]", answers or [])
                jobs = [read_job(raw) for raw in stored if raw is not None]
                found += [job for job in jobs if job is not None]
        return found

    async def now_ms(self) -> int:
        return await self._client.now_ms()

    async def forget(self, jobs: Sequence[Job]) -> None:
        await self._client.ask_each(_removal(job) for job in jobs)


def _removal(job: Job) -> tuple[bytes, ...]:
    """Return the command that removes a job from its list, also by the name that older versions gave it."""
    member = keys.listed_job(job.organization_id, job.hold_id)
    return b"ZREM", keys.jobs(job.partition).encode(), member, job.hold_id.encode()


class JobsDrain:
    """Stores jobs that changed since they were last stored; skips jobs that no upstream has received yet."""

    def __init__(self, listed: ListedJobs, rows: JobRows, isolation: Isolation) -> None:
        self._listed, self._rows, self._isolation = listed, rows, isolation
        self._stored: dict[str, Job] = {}

    async def drain(self) -> int:
        """Store the jobs that changed in Redis since the last pass in PostgreSQL; return how many."""
        listed = await self._listed.read()
        waiting = await self._charged_elsewhere(
            [job for job in listed if job.settled_ms and job.cost == NO_COST]
        )
        news = [job for job in listed if job.status != OPENING and self._stored.get(job.hold_id) != job]
        if news:
            await self._isolation.together("jobs", news, self._rows.store, name=lambda job: job.hold_id)
        settled = [job for job in listed if job.settled_ms and job.hold_id not in waiting]
        if settled:
            await self._listed.forget(settled)
        left = [job for job in listed if not job.settled_ms or job.hold_id in waiting]
        self._stored = {job.hold_id: job for job in left if job.status != OPENING}
        return len(news)

    async def _charged_elsewhere(self, jobs: Sequence[Job]) -> set[str]:
        """Set the costs of jobs that the ledger charged, since their holds were gone.

        Return the ids of holds whose call is no row yet.
        """
        if not jobs:
            return set()
        costs, since_ms = await self._rows.costs(jobs), await self._listed.now_ms() - COST_MS_MAX
        for job in jobs:
            job.cost = costs.get(job.hold_id, NO_COST)
        return {job.hold_id for job in jobs if job.cost == NO_COST and job.settled_ms > since_ms}

    def loop(self) -> Loop:
        """Return the loop that stores changed jobs once a second."""
        return Loop("jobs", JOBS_S, (call(self.drain),), quiet=(CountersUnavailable,))
