"""Jobs stored in Redis, so that any worker can find, poll and charge them.

A job has one key, and a second one that leads from its upstream's id to it. Each partition has a list of jobs
that are unsettled, by the time of the next look, or whose row is not stored yet; a keeper removes those. A
look moves the job to a later time, so that other jobs never keep it waiting. Each organization has a list of
its open jobs, which bounds their number. All of these are in the partition's slot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Coroutine, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any, Final, cast

from gateway.core.accounts.upstream_jobs import (
    HOLD_S_MAX,
    OPENING,
    RESPONSE,
    Job,
    read_job,
    round_robin,
    write_job,
)
from gateway.core.due import bounds_ahead, is_due
from gateway.core.model import PARTITIONS, Caller
from gateway.core.wait import Wait, begin, in_task
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.counters.settlement_log.log import JOB, SettlementLog
from gateway.errors import CountersUnavailable, TooManyJobs

# How long a settled job is stored: a later look charges nothing. Shorter for responses, which are many.
SETTLED_S: Final = 7 * 86_400
CALL_SETTLED_S: Final = 3_600
# The stream id before all entries of a queue.
NO_PLACE: Final = "0-0"
# How long the owner of a batch is stored: while it can run, and while it is remembered.
OWNED_S: Final = HOLD_S_MAX + SETTLED_S
# The most open jobs of one organization, and of one of its API keys.
OPEN_MAX, OPEN_KEY_MAX = 10_000, 5_000
# Retry after this many seconds with too many open jobs: by default jobs are polled each minute.
AGAIN_S: Final = 60
# Jobs that one look takes from one partition, and due jobs that it chooses them from.
LOOK_MAX: Final = 1_000
LISTED_MAX: Final = 2 * OPEN_MAX
# The score of a settled job in its list: never due.
_NEVER: Final = b"+inf"

# Open jobs that one worker remembers, of about one kilobyte each.
REMEMBERED_MAX: Final = 10_000


class StoredJobs:
    """Stores jobs in Redis. While Redis is away, jobs that an upstream made or never received go to `log`.

    A job's id becomes its organization's object, by `objects`. Open jobs that this worker stored are
    remembered, in case Redis loses them.
    """

    def __init__(self, wires: RedisConnections, objects: ObjectOwners, log: SettlementLog) -> None:
        self._wires, self._objects, self._log = wires, objects, log
        self._remembered: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, job: Job) -> Wait[None]:
        return begin(self._keep(job))

    def open(self, job: Job) -> Wait[None]:
        """Store a job before its upstream receives it; raise `TooManyJobs` at the maximum of open jobs."""
        return begin(self._open(job))

    def drop(self, job: Job) -> Wait[bool]:
        """Delete a job that its upstream never made; if Redis is away, the log deletes it later."""
        return begin(self._sure(self._drop(job), job))

    def begun(self, job: Job) -> Wait[bool]:
        """Store a job with its upstream's id; return False if that id belongs to another job.

        While Redis is away, the worker's log stores it, and the result is True. `CountersUnavailable` if the
        log fails, too.
        """
        return begin(self._sure(self._begun(job), job))

    def own(self, job: Job, id_: str) -> Wait[bool]:
        """Claim an upstream's batch id for this job; return False if another job claimed it before."""
        return begin(self._claim(job, id_))

    def find(self, caller: Caller, id_: str) -> Wait[Job | None]:
        return begin(self._find(caller, id_))

    async def _sure(self, stored: Coroutine[Any, Any, bool], job: Job) -> bool:
        try:
            return await stored
        except CountersUnavailable:
            await self._log.spool(write_job(job), JOB)
            return True

    async def _begun(self, job: Job) -> bool:
        if not await self._claim(job, job.id):
            return False
        await self._keep(job)
        await self._objects.keep(job.caller, [job.id])
        return True

    async def resend(self, raw: bytes) -> None:
        """Store a job from the log, unless Redis has it already. Must run in an asyncio task."""
        job = read_job(raw)
        if job is not None:
            await in_task(begin(self._resend(job)))

    async def restore(self, partitions: Collection[int]) -> None:
        """Store the remembered jobs of partitions whose data Redis has lost. Must run in an asyncio task."""
        for raw in list(self._remembered.values()):
            job = read_job(raw)
            if job is not None and job.partition in partitions:
                await in_task(begin(self._resend(job) if job.id else self._reopen(job)))

    async def _reopen(self, job: Job) -> None:
        if await self._stored(job.partition, job.hold_id) is None:
            await self._keep(job)

    async def _resend(self, job: Job) -> None:
        """Store a job again that Redis may have lost, as far as it has no newer state of it."""
        there = await self._stored(job.partition, job.hold_id)
        if not job.id:
            if there is None or there.status == OPENING:
                await self._drop(job)
        elif there is not None and (there.settled_ms or there.id not in {"", job.id}):
            await self._objects.keep(job.caller, [job.id])  # charged already, and shown all the same
        elif there is not None and there.id:
            await self._begun(there)
        elif not await self._begun(job):
            job.id, job.status, job.ended = "", OPENING, "failed"
            await self._keep(job)

    async def _open(self, job: Job) -> None:
        """Store a new job; raise TooManyJobs if its organization or API key has too many open jobs."""
        await self._keep(job)
        wire, listed = self._wires.of(job.partition), _open_jobs(job)
        of_key = b"%d" % job.key_id
        asked = wire.send(encode(b"ZCARD", listed)), wire.send(encode(b"ZCOUNT", listed, of_key, of_key))
        of_organization, of_own_key = [cast("int", await one) for one in asked]
        if of_organization > OPEN_MAX or of_own_key > OPEN_KEY_MAX:
            await self._drop(job)
            scope, whose, most = "organization", "organization", OPEN_MAX
            if of_organization <= OPEN_MAX:
                scope, whose, most = "key", "API key", OPEN_KEY_MAX
            refusal = TooManyJobs(
                f"This {whose} has {most} open jobs: wait until some are over.",
                retry_after_s=AGAIN_S, retry_helps=False,
            )  # fmt: skip
            refusal.scope = scope
            raise refusal

    async def _keep(self, job: Job) -> None:
        """Store a job in Redis, and list it by its next look, or remove a settled one from the open jobs."""
        wire, name = self._wires.of(job.partition), keys.job(job.partition, job.hold_id).encode()
        remembered_s = CALL_SETTLED_S if job.kind == RESPONSE else SETTLED_S
        ends = (b"EX", b"%d" % remembered_s) if job.settled_ms else ()
        written = write_job(job)
        self._remembered.pop(job.hold_id, None)
        listed, member = keys.jobs(job.partition).encode(), _member(job)
        open_jobs, hold_id = _open_jobs(job), job.hold_id.encode()
        sent = [wire.send(encode(b"SET", name, written, *ends))]
        if job.settled_ms:
            sent.append(wire.send(encode(b"ZADD", listed, _NEVER, member)))
            sent.append(wire.send(encode(b"ZREM", open_jobs, hold_id)))
        else:
            self._remembered[job.hold_id] = written
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
            when = (b"%d" % job.next_look_ms,) if job.next_look_ms else (b"NX", b"%d" % job.created_ms)
            sent.append(wire.send(encode(b"ZADD", listed, *when, member)))
            sent.append(wire.send(encode(b"ZADD", open_jobs, b"%d" % job.key_id, hold_id)))
        if job.id:
            pointer = keys.job(job.partition, job.id).encode()
            sent.append(wire.send(encode(b"SET", pointer, job.hold_id.encode(), *ends)))
        for one in sent:
            await one

    async def _claim(self, job: Job, id_: str) -> bool:
        """Store the job as the owner of an upstream's id; return False if another job owns it."""
        partition, name = _owner(job.upstream, id_)
        wire, owner = self._wires.of(partition), job.hold_id.encode()
        owned_s = HOLD_S_MAX if job.kind == RESPONSE else OWNED_S
        if await wire.send(encode(b"SET", name, owner, b"NX", b"EX", b"%d" % owned_s)) is not None:
            return True
        return await wire.send(encode(b"GET", name)) == owner

    async def owner(self, job: Job, id_: str) -> str:
        """Return the id of the job that claimed an upstream's batch, or "". Must run in an asyncio task."""
        partition, name = _owner(job.upstream, id_)
        owner = await in_task(self._wires.of(partition).send(encode(b"GET", name)))
        return owner.decode() if isinstance(owner, bytes) else ""

    async def now_ms(self, job: Job) -> int:
        """Return the time, in ms, of the Redis server that stores a job. Must run in an asyncio task."""
        return _read_ms(await in_task(self._wires.of(job.partition).send(encode(b"TIME"))))

    async def _drop(self, job: Job) -> bool:
        """Delete a job, and remove it from the lists."""
        self._remembered.pop(job.hold_id, None)
        wire, hold_id = self._wires.of(job.partition), job.hold_id.encode()
        names = [keys.job(job.partition, one).encode() for one in (job.hold_id, job.id) if one]
        sent = [wire.send(encode(b"DEL", *names)), wire.send(encode(b"ZREM", _open_jobs(job), hold_id))]
        await wire.send(encode(b"ZREM", keys.jobs(job.partition).encode(), _member(job), hold_id))
        for one in sent:
            await one
        return True

    async def _find(self, caller: Caller, id_: str) -> Job | None:
        wire = self._wires.of(caller.partition)
        hold_id = await wire.send(encode(b"GET", keys.job(caller.partition, id_).encode()))
        if not isinstance(hold_id, bytes):
            return None
        job = await self._stored(caller.partition, hold_id.decode())
        return job if job is not None and job.organization_id == caller.organization_id else None

    async def _stored(self, partition: int, hold_id: str) -> Job | None:
        raw = await self._wires.of(partition).send(encode(b"GET", keys.job(partition, hold_id).encode()))
        return read_job(raw) if isinstance(raw, bytes) else None

    async def due(self, within_s: int) -> list[Job]:
        """Return the jobs that are due for a poll, in turn by organization. Must run in an asyncio task.

        Each becomes due again `within_s` seconds later, whether or not it is polled now. A job that
        stands further ahead is due by its own time, if it was not found, and now otherwise.
        """
        jobs: list[Job] = []
        for partition in range(PARTITIONS):
            jobs += await in_task(begin(self._due(partition, 1000 * within_s)))
        return jobs

    async def claim(self, job: Job, within_s: int) -> Job | None:
        """Claim a job for one poll, and return it; None if it is settled, or another worker has the claim.

        The claim ends after half of `within_s` seconds. Must run in an asyncio task.
        """
        name, half_ms = keys.job_look(job.partition, job.hold_id).encode(), b"%d" % (500 * within_s)
        asked = self._wires.of(job.partition).send(encode(b"SET", name, b"1", b"NX", b"PX", half_ms))
        if await in_task(asked) is None:
            # A claim that was made while the clock of Redis was ahead ends as any other.
            lasting = b"%d" % (within_s // 2 + 1), b"LT"
            await in_task(self._wires.of(job.partition).send(encode(b"EXPIRE", name, *lasting)))
            return None
        there = await in_task(begin(self._stored(job.partition, job.hold_id)))
        return None if there is None or there.settled_ms else there

    async def place(self, partition: int) -> str:
        """Return the id of the last entry of a partition's late queue. Must run in an asyncio task."""
        wire, name = self._wires.of(partition), keys.late(partition).encode()
        length = await in_task(wire.send(encode(b"XLEN", name)))
        if not length:
            return NO_PLACE
        said = await in_task(wire.send(encode(b"XINFO", b"STREAM", name)))
        return cast("dict[bytes, bytes]", said)[b"last-generated-id"].decode()

    async def waits(self, job: Job) -> bool:
        """Return whether the late queue still has charges of a job's lines. Must run in an asyncio task."""
        name, after = keys.late(job.partition).encode(), b"(" + job.lines_after.encode()
        asked = encode(b"XRANGE", name, after, job.lines_until.encode(), b"COUNT", b"1")
        found = await in_task(self._wires.of(job.partition).send(asked))
        return bool(found)

    async def _due(self, partition: int, again_ms: int) -> list[Job]:
        """Return a partition's jobs to look at now, organizations in turn, and postpone their next look."""
        wire, listed = self._wires.of(partition), keys.jobs(partition).encode()
        time, size = wire.send(encode(b"TIME")), wire.send(encode(b"ZCARD", listed))
        now_ms = _read_ms(await time)
        if not await size:
            return []
        within = b"BYSCORE", b"LIMIT", b"0", b"%d" % LISTED_MAX
        due = wire.send(encode(b"ZRANGE", listed, b"-inf", b"%d" % now_ms, *within))
        far = wire.send(encode(b"ZRANGE", listed, *bounds_ahead(now_ms, again_ms), *within))
        past, ahead = cast("list[bytes]", await due), cast("list[bytes]", await far)
        if ahead:
            jobs = await self._read(partition, ahead)
            ahead = [member for member, job in jobs.items() if job and is_due(job, now_ms)]
        taken = list(islice(round_robin([*past, *ahead], _organization_of), LOOK_MAX))
        if not taken:
            return []
        again = b"%d" % (now_ms + again_ms)
        for order, members in ((b"GT", set(past)), (b"LT", set(ahead))):
            if moved := [part for member in taken if member in members for part in (again, member)]:
                await wire.send(encode(b"ZADD", listed, b"XX", order, *moved))
        listed_jobs = (await self._read(partition, taken)).values()
        return [job for job in listed_jobs if job is not None and not job.settled_ms]

    async def _read(self, partition: int, members: Sequence[bytes]) -> dict[bytes, Job | None]:
        """Return the jobs of a partition's list by member; None for one that is gone or unreadable."""
        names = [keys.job(partition, keys.job_of(member)).encode() for member in members]
        raw = cast("list[bytes | None]", await self._wires.of(partition).send(encode(b"MGET", *names)))
        return {
            member: None if packed is None else read_job(packed)
            for member, packed in zip(members, raw, strict=True)
        }


def _read_ms(time: object) -> int:
    seconds, micros = (int(part) for part in cast("list[bytes]", time))
    return 1000 * seconds + micros // 1000


def _member(job: Job) -> bytes:
    return keys.listed_job(job.organization_id, job.hold_id)


def _organization_of(member: bytes) -> bytes:
    return member.partition(b":")[0]


def _open_jobs(job: Job) -> bytes:
    return keys.open_jobs(job.partition, job.organization_id).encode()


def _owner(upstream: str, id_: str) -> tuple[int, bytes]:
    """Return the partition and the key that store the owner of an upstream's batch."""
    digest = sha256(f"{upstream}\n{id_}".encode()).hexdigest()
    partition = keys.partition_of_digest(digest)
    return partition, keys.job(partition, digest).encode()
