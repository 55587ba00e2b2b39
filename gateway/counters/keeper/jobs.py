"""Reads the jobs listed in Redis: those that are unsettled, or whose row is not stored yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from gateway.core.accounts.jobs import Job, read_job
from gateway.core.text import batched
from gateway.counters.keeper.client import Client, are_any_there
from gateway.counters.redis import keys

# Jobs read by one command.
_AT_ONCE = 200


class ListedJobs:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self) -> list[Job]:
        """Return the jobs in the lists of all partitions, without those that this version cannot read."""
        partitions = list(self._client.partitions)
        if not await are_any_there(self._client, [keys.jobs(one) for one in partitions]):
            return []
        listed = await self._client.ask_all(b"ZRANGE", keys.jobs, b"0", b"-1")
        found: list[Job] = []
        for partition, ids in listed.items():
            for some in batched(cast("list[bytes]", ids or []), _AT_ONCE):
                names = [keys.job(partition, keys.job_of(one)).encode() for one in some]
                (answers,) = await self._client.ask_each([(b"MGET", *names)])
                stored = cast("list[bytes | None]", answers or [])
                jobs = [read_job(raw) for raw in stored if raw is not None]
                found += [one for one in jobs if one is not None]
        return found

    async def forget(self, jobs: Sequence[Job]) -> None:
        await self._client.ask_each(_removal(one) for one in jobs)


def _removal(job: Job) -> tuple[bytes, ...]:
    """Return the command that removes a job from its list, also by the name that older versions gave it."""
    member = keys.listed_job(job.organization_id, job.hold_id)
    return b"ZREM", keys.jobs(job.partition).encode(), member, job.hold_id.encode()
