"""Polls jobs with the upstream's own credential, and charges their results.

It connects upstreams with the stored jobs. A worker polls a job when a caller
asks for it, and all workers share in polling the others at intervals.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from gateway.calls.charge import ChargedUse, Counted
from gateway.core.accounts.batch_lines import results
from gateway.core.accounts.call_facts import OUTPUT, REASONING, CallFacts
from gateway.core.accounts.upstream_jobs import (
    AGAIN_S,
    BATCH,
    EARLY_S_MAX,
    HOLD_S_MAX,
    JOB_S_MAX,
    NO_COST,
    OPENING,
    PAGES_MAX,
    RESULT_BYTES_MAX,
    RUNNING,
    UNANSWERED_S_MAX,
    Job,
    round_robin,
)
from gateway.core.accounts.upstream_states import (
    BatchState,
    CallState,
    read_call_state,
    read_list,
    read_operation,
    read_operations,
    read_state,
)
from gateway.core.calls.routes import Route, UpstreamTarget, own_path, own_query
from gateway.core.due import is_due
from gateway.core.families.family import BatchPaths, JobList
from gateway.core.families.registry import BATCH_AT, FAMILIES, JOBS
from gateway.core.metering.reading import loose_document
from gateway.core.model import Caller, Service, SettleResult
from gateway.core.shares import FairShares
from gateway.core.wait import Wait, in_task
from gateway.errors import CountersUnavailable, InvalidRequest, Refusal, UpstreamUnreachable
from gateway.features.jobs.gateway import call_charge, line_charges, release_of, service_of, unread_charge
from gateway.features.jobs.stored import StoredJobs
from gateway.files import https_with
from gateway.http.ports import Ports
from gateway.http.server.server import DataPlane
from gateway.settings.settings import Settings

CONNECT_S: Final = 10.0
WITHIN_S: Final = 300.0
# The time to fetch the input file of a batch, for which its caller waits.
FILE_S_MAX: Final = 60.0
# The most bytes read of an answer about batches: a list of 100 has some 100 KiB.
SAID_BYTES_MAX: Final = 4 << 20
# Due jobs of one upstream that are polled at once.
LOOKS_MAX: Final = 4
# Results fetched and charged at once, of all upstreams, and of one; the others wait.
FETCHES_MAX, FETCHES_EACH_MAX = 3, 2
# Answers read for callers at once; the others wait.
ASKS_MAX: Final = 8
# The interval, and number of checks, for whether a job's lines are charged, so that its hold may end; and the
# most jobs followed, of all organizations and of one. The next poll checks the others.
FOLLOW_S, FOLLOWS_MAX, FOLLOWED_MAX, FOLLOWED_EACH_MAX = 0.5, 120, 200, 50
# Statuses of results that are gone, or too long to be read.
TOO_LONG: Final = 413
_GONE: Final = frozenset({404, 410, TOO_LONG})
# Statuses of an upstream that has no list there; other statuses may be temporary.
_NO_LIST: Final = frozenset({400, 404, 405, 410, 501})
StateT = TypeVar("StateT")


class Jobs:
    """The jobs of callers, for one worker, which are `stored`. `serve` gives it its data plane before all else."""

    _plane: DataPlane
    _ports: Ports

    def __init__(self, stored: StoredJobs, settings: Settings, log: Callable[..., None]) -> None:
        self._stored, self._settings, self._log = stored, settings, log
        self._looking: dict[str, asyncio.Task[bool]] = {}
        self._follows = set[asyncio.Task[None]]()
        self._followed = FairShares(FOLLOWED_MAX, FOLLOWED_EACH_MAX)
        self._fetches, self._asks = asyncio.Semaphore(FETCHES_MAX), asyncio.Semaphore(ASKS_MAX)
        self._fetches_each = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(FETCHES_EACH_MAX))
        self._rounds: dict[str, asyncio.Future[Any]] = {}
        self._due: dict[str, Iterator[Job]] = {}

    def serve(self, plane: DataPlane, ports: Ports) -> None:
        """Use this data plane and its ports to poll upstreams for the jobs."""
        self._plane, self._ports = plane, ports

    def keep(self, job: Job) -> Wait[None]:
        return self._stored.keep(job)

    def open(self, job: Job) -> Wait[None]:
        return self._stored.open(job)

    def drop(self, job: Job) -> Wait[bool]:
        return self._stored.drop(job)

    def begun(self, job: Job) -> Wait[bool]:
        return self._stored.begun(job)

    def find(self, caller: Caller, id_: str) -> Wait[Job | None]:
        return self._stored.find(caller, id_)

    def restore(self, partitions: Collection[int]) -> Coroutine[Any, Any, None]:
        return self._stored.restore(partitions)

    def resend(self, raw: bytes) -> Coroutine[Any, Any, None]:
        """Store a job from the settlement log, as `StoredJobs.resend` does."""
        return self._stored.resend(raw)

    def fetch(
        self, upstream: str, path: str, bytes_max: int, arrive: Callable[[int], None]
    ) -> asyncio.Task[bytes]:
        return asyncio.create_task(self._fetch_lines(upstream, path, bytes_max, arrive))

    def ask(
        self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]
    ) -> asyncio.Task[tuple[int, bytes]]:
        """Return a task for the status and body of an upstream's answer to a GET."""
        return asyncio.create_task(self._send_request(upstream, path, headers))

    def look(self, job: Job) -> asyncio.Future[bool]:
        """Poll a job, and charge it if it has ended; return whether it is charged.

        Concurrent callers share one poll.
        """
        task = self._looking.get(job.hold_id)
        if task is None:
            task = self._looking[job.hold_id] = asyncio.create_task(self._look(job))
            task.add_done_callback(lambda _: self._looking.pop(job.hold_id, None))
        return asyncio.shield(task)

    async def keep_looking(self) -> None:
        """Poll due jobs until cancelled; a slow upstream does not delay the jobs of other upstreams.

        Jobs that were not polled in their turn become due again, after the jobs that were.
        """
        try:
            while True:
                interval_s = self._settings.jobs_interval_s
                await asyncio.sleep(interval_s)
                within_s, found = max(1, int(interval_s)), defaultdict[str, list[Job]](list)
                for job in await self._stored.due(within_s):
                    found[job.upstream].append(job)
                for upstream, jobs in found.items():
                    self._due[upstream] = round_robin(jobs, lambda job: job.organization_id)
                    if upstream not in self._rounds:
                        self._begin_round(upstream, within_s)
        finally:
            for one in self._rounds.values():
                one.cancel()

    def _begin_round(self, upstream: str, within_s: int) -> None:
        """Start to poll due jobs of an upstream, several at once; each is claimed for `within_s` seconds."""

        async def look_at_each() -> None:
            while (listed := next(self._due[upstream], None)) is not None:
                with suppress(Refusal):  # a poll logs why it failed
                    job = await self._stored.claim(listed, within_s)
                    if job is not None:
                        await self.look(job)

        looking = asyncio.gather(*(look_at_each() for _ in range(LOOKS_MAX)))
        self._rounds[upstream] = looking
        looking.add_done_callback(lambda _: self._rounds.pop(upstream, None))

    async def _send_request(
        self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]
    ) -> tuple[int, bytes]:
        async with self._asks:
            return await self._ask(upstream, path, headers)

    async def _fetch_lines(
        self, upstream: str, path: str, bytes_max: int, arrive: Callable[[int], None]
    ) -> bytes:
        status, content = await self._ask(
            upstream, path, bytes_max=bytes_max, within_s=FILE_S_MAX, arrive=arrive
        )
        if status in _GONE:
            raise InvalidRequest("The upstream has no such file, or it is too long.", param="input_file_id")
        if status != 200:
            raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a file.")
        return content

    async def _ask(
        self, upstream: str, path: str, more: tuple[tuple[str, str], ...] = (),
        bytes_max: int = SAID_BYTES_MAX, *, within_s: float = WITHIN_S,
        arrive: Callable[[int], None] | None = None,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Send a GET for `path`, with the header fields `more`; return the status and body of the answer.

        A body above `bytes_max` gives status 413. `within_s` is the time-out; `arrive` is called with the
        number of bytes that arrived.
        """
        from gateway.outbound.client import TooLarge, ask  # heavy: few workers need it

        target = self._target(upstream)
        plain, mark, query = path.partition("?")
        route = self._plane.route_of("GET", plain)
        if route is not None:
            plain = own_path(target, route, plain, "")
        path = plain + own_query(target, mark + query)
        headers = dict(more) | dict(target.headers) | dict(target.keys[0] if target.keys else ())
        signer = dict(self._plane.signers()).get(upstream)
        if signer is not None:
            headers |= signer.fields(target.base_url + path)
        proxies = self._settings.proxies if target.proxies is None else target.proxies
        try:
            status, _, said = await ask(
                "GET", target.base_url + path, headers, None, proxies=lambda: proxies,
                context=self._make_context(target), connect_s=CONNECT_S, within_s=within_s,
                bytes_max=bytes_max, arrive=arrive,
            )  # fmt: skip
        except TooLarge:
            return TOO_LONG, b""
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachable from error
        return status, said

    def _make_context(self, target: UpstreamTarget) -> ssl.SSLContext | None:
        """Return the TLS context for an upstream; None for one without TLS."""
        if not target.base_url.startswith("https"):
            return None
        context = https_with(target.ca_file)
        if target.cert_file is not None:
            context.load_cert_chain(target.cert_file, target.key_file)
        return context

    def _target(self, upstream: str) -> UpstreamTarget:
        target = self._plane.target_of(upstream)
        if target is None:
            raise UpstreamUnreachable(f"No upstream {upstream} is configured.")
        return target

    # Polling one job.

    async def _look(self, job: Job) -> bool:
        """Poll a job; return whether it is charged.

        A job that has not ended within the maximum time is charged the amount that was held.
        """
        failure: Exception | None = None
        try:
            await self._look_up(job)
        except Exception as error:  # noqa: BLE001  # an error of one job ends no poll of another
            failure = error
            why = error.reason if isinstance(error, Refusal) else repr(error)
            self._log("job not looked at", job=job.id, why=why[:200], level="warning")
        if job.is_charged:
            return True
        if await self._age_s(job) > JOB_S_MAX and not job.lines_after:
            await self._charge_as_held(job, "expired")
        elif isinstance(failure, Refusal):
            raise failure
        elif failure is not None:
            raise UpstreamUnreachable("Nobody can read what the upstream tells of a batch.") from failure
        return job.is_charged

    async def _age_s(self, job: Job) -> float:
        """Return the age of a job in seconds, by Redis' clock, since clocks of gateways may differ."""
        return (await self._stored.now_ms(job) - job.created_ms) / 1000

    async def _look_up(self, job: Job) -> None:
        """Check one job: release it, settle it, or read its state at the upstream."""
        await in_task(self._ports.directory.know(job.organization_id))
        if job.lines_until:
            await self._release(job)
            return
        if job.ended and not job.lines_after:
            await self._never_made(job)
            return
        if await self._age_s(job) > HOLD_S_MAX:  # its hold was reclaimed, and may have been charged
            await self._charge_as_held(job, "expired")
            return
        await (self._look_at_batch if job.kind == BATCH else self._look_at_call)(job)

    async def _look_at_batch(self, job: Job) -> None:
        """Read the state of a batch at its upstream, and settle the job once the batch has ended."""
        route = self._route_of(job)
        paths = BATCH_AT.get(job.batches) or FAMILIES[route.family].batches[0]
        if not job.id and not await self._was_made(job, paths.listed):
            return
        id_ = quote(job.id.rpartition("/")[2], safe="")
        if paths.makers:
            await self._look_at_operation(job, paths, f"{paths.batches}/{id_}")
            return
        said = await self._fetch_result(
            job, f"{paths.batches}/{id_}", "failed", paths.headers, SAID_BYTES_MAX
        )
        state = BatchState() if said is None else self._read(said, read_state)
        if said is None or await self._is_another(job, state.id):
            return
        ended, path = state.ended_as, paths.results.replace("{id}", id_)
        if not path and state.output_file_id:
            path = paths.content(state.output_file_id)
        if ended and not path:
            await self._settle(job, ended, b"", state.answered)
        elif ended:
            async with self._fetching(job.upstream):  # a result is kept in memory until its lines are charged
                content = await self._fetch_result(job, path, ended, paths.headers)
                if content is not None:
                    await self._settle(job, ended, content, state.answered)

    async def _look_at_operation(self, job: Job, paths: BatchPaths, path: str) -> None:
        """Poll a batch job at `path`, an operation which has the results, or names the file with them."""
        async with self._fetching(job.upstream):
            said = await self._fetch_result(job, path, "failed", paths.headers)
            state = BatchState() if said is None else self._read(said, read_operation)
            if said is None or await self._is_another(job, state.id):
                return
            content: bytes | Sequence[bytes] | None = state.lines or b""
            if state.ended_as and state.output_file_id:
                path = paths.content(state.output_file_id.rpartition("/")[2])
                content = await self._fetch_result(job, path, state.ended_as, paths.headers)
            if state.ended_as and content is not None:
                await self._settle(job, state.ended_as, content, state.answered)

    async def _fetch_result(
        self, job: Job, path: str, gone: str, headers: tuple[tuple[str, str], ...] = (),
        bytes_max: int = RESULT_BYTES_MAX,
    ) -> bytes | None:  # fmt: skip
        """Return the body of a result at `path`; None if it does not exist, which counts as a miss.

        After too many misses, the job ends with the status `gone`.
        """
        status, said = await self._ask(job.upstream, path, headers, bytes_max)
        if status in _GONE:
            await self._note_miss(job, gone, is_sure=status == TOO_LONG)
            return None
        if status != 200:
            raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a job.")
        return said

    async def _is_another(self, job: Job, id_: str) -> bool:
        """Return whether `id_`, in the upstream's answer, is another job's; if so, count a miss of `job`."""
        if not id_ or id_.rpartition("/")[2] == job.id.rpartition("/")[2]:
            return False
        await self._note_miss(job, "failed")
        return True

    async def _note_miss(self, job: Job, gone: str, is_sure: bool = False) -> None:
        """Schedule another poll of a job that was not found.

        After the last poll, or now if `is_sure`, charge the held amount and end the job with the status
        `gone`.
        """
        now_ms = await self._stored.now_ms(job)
        if is_sure or (job.misses >= len(AGAIN_S) and is_due(job, now_ms)):
            await self._charge_as_held(job, gone)
        elif is_due(job, now_ms):
            job.next_look_ms = now_ms + 1000 * AGAIN_S[job.misses]
            job.misses += 1
            await in_task(self._stored.keep(job))

    async def _look_at_call(self, job: Job) -> None:
        """Poll a background call; the upstream's answer has its state, and at the end its result."""
        paths = JOBS[job.endpoint]
        if not job.id and not await self._was_made(job, paths.listed):
            return
        async with self._fetching(job.upstream):
            said = await self._fetch_result(job, paths.of(job.sent or job.model, job.id), "failed")
            state = CallState() if said is None else self._read(said, read_call_state)
            if said is None or not (ended := state.ended_as):
                return
            if await self._is_another(job, state.id or state.name):
                return
            free, age_s = ended in {"failed", "expired"}, await self._age_s(job)
            charge = call_charge(
                self._ports, job, self._service_of(job), self._route_of(job), said, free, self._plane.bounds,
                age_s, self._reports_each(job),
            )  # fmt: skip
            if charge is None:
                await self._release_hold(job)
                job.cost = 0
            else:
                await self._charge(job, charge)
                counts = CallFacts(*charge.facts).counts
                earlier = FAMILIES[self._route_of(job).family].objects.refers(loose_document(said))
                tokens = sum(counts[: OUTPUT + 1]) - counts[REASONING]
                added = counts[OUTPUT] - counts[REASONING]  # at least, beside its new input
                self._ports.objects.keep(job.caller, [job.id, *earlier], tokens=tokens, added=added)
            await self._end(job, ended)

    async def _charge(self, job: Job, charge: ChargedUse) -> None:
        """Settle a job's hold by a charge, and count that.

        If Redis does not know the hold, it was charged and counted before, and the cost is unknown here.
        """
        settled = await in_task(self._ports.counters.settle(charge.settlement))
        if settled not in {SettleResult.UNKNOWN, SettleResult.UNVERIFIED}:
            self._ports.tally.charged(charge.counted, job.upstream)
        job.cost = NO_COST if charge.cost and settled is SettleResult.UNKNOWN else charge.cost

    async def _never_made(self, job: Job) -> None:
        """Release the hold of a call that its upstream does not know, and end the job as failed."""
        await self._release_hold(job)
        await self._end(job, "failed")

    async def _release_hold(self, job: Job) -> None:
        await in_task(self._ports.counters.settle(release_of(job, self._service_of(job))))

    def _service_of(self, job: Job) -> Service:
        """Return the service of a job; raise `CountersUnavailable` if it is unknown."""
        if (service := service_of(self._ports, job)) is None:
            raise CountersUnavailable
        return service

    def _route_of(self, job: Job) -> Route:
        """Return the route of a job's calls; raise `CountersUnavailable` if it is unknown."""
        if (route := self._plane.route_of("POST", job.endpoint)) is None:
            raise CountersUnavailable
        return route

    def _reports_each(self, job: Job) -> bool:
        """Return whether the upstream of a job reports the usage of each choice of an answer separately."""
        target = self._plane.target_of(job.upstream)
        return target is not None and target.facts is not None and target.facts.choices == "each"

    @asynccontextmanager
    async def _fetching(self, upstream: str) -> AsyncIterator[None]:
        async with self._fetches_each[upstream], self._fetches:
            yield

    def _read(self, said: bytes, read: Callable[[bytes], StateT]) -> StateT:
        try:
            return read(said)
        except msgspec.MsgspecError as error:
            raise UpstreamUnreachable("The upstream tells of a job in a way nobody can read.") from error

    async def _was_made(self, job: Job, listed: JobList | None) -> bool:
        """Look in the upstream's list for a call whose answer was lost; return whether its id is known now.

        A listed job with our mark is taken at once. After the time that other jobs need to store their ids, a
        job that the list cannot contain was never made; if the list can only be used for guesses, its single
        candidate is taken. In other cases the job stays open, or is charged the held amount.
        """
        is_late, guesses = await self._age_s(job) > UNANSWERED_S_MAX, listed is None or listed.guesses
        if guesses and not is_late:
            return False
        may_be = await self._search(job, listed)
        if job.id or not is_late:
            return bool(job.id)
        if may_be == []:
            await self._never_made(job)
        elif guesses and (may_be is None or len(may_be) > 1 or not await self._take(job, may_be[0])):
            await self._charge_as_held(job, "failed")
        return bool(job.id)

    async def _search(self, job: Job, listed: JobList | None) -> list[str] | None:
        """Return the ids in the upstream's list that may be this job's and have no owner yet.

        An id that is certainly the job's is claimed at once. None if a part of the list is unreadable.
        """
        may_be, after = list[str](), ""
        for _ in range(PAGES_MAX if job.upstream else 0):
            if listed is None:
                break
            status, said = await self._ask(job.upstream, listed.path + after, listed.headers)
            if status in _NO_LIST:
                break
            if status != 200:
                raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a list.")
            page = self._read(said, read_operations if listed.operations else read_list)
            for one in page.data:
                owner = await self._stored.owner(job, one.id) if one.may_be_of(job) else None
                if (one.is_marked(job) or owner == job.hold_id) and await self._take(job, one.id):
                    return []
                if owner == "":
                    may_be.append(one.id)
            oldest_s = min((one.made_s for one in page.data), default=0)
            if not page.has_more or oldest_s < job.created_ms / 1000 - EARLY_S_MAX:
                # Another key may belong to another account, whose list is not read.
                return may_be if len(self._target(job.upstream).keys) < 2 else None
            after = f"&{listed.after}={quote(page.token or page.data[-1].id, safe='')}"
        return None

    async def _take(self, job: Job, id_: str) -> bool:
        """Claim an upstream's id for this job; return False if another job has it."""
        if not await in_task(self._stored.own(job, id_)):
            return False
        job.id, job.status = id_, RUNNING
        await in_task(self._stored.keep(job))
        return True

    async def _settle(self, job: Job, status: str, content: bytes | Sequence[bytes], answered: int) -> None:
        """Charge each line of a batch's result, with HTTP status `answered`, and end the job with `status`.

        The hold is released after the lines are stored.
        """
        ports, service, route, bounds = (
            self._ports,
            self._service_of(job),
            self._route_of(job),
            self._plane.bounds,
        )
        if not job.lines_after:
            job.lines_after = await self._stored.place(job.partition)
            await in_task(self._stored.keep(job))
        cost, counted = 0, list[Counted]()
        age_s, each = await self._age_s(job), self._reports_each(job)
        read = results(content)
        for line in line_charges(ports, job, service, route, read, answered, bounds, age_s, each):
            if line is None:
                await asyncio.sleep(0)
                continue
            cost += line.cost
            if await in_task(ports.counters.settle(line.settlement)) is SettleResult.SPOOLED:
                raise CountersUnavailable  # the next poll charges it again, and it counts once
            counted.append(line.counted)
        for one in counted:  # by the worker that submitted all of them
            ports.tally.charged(one, job.upstream)
        job.cost, job.ended = cost, "failed" if job.status == OPENING else status
        job.lines_until = await self._stored.place(job.partition)
        await in_task(self._stored.keep(job))
        if not await self._release(job) and self._followed.acquire(job.organization_id):
            follows = asyncio.create_task(self._follow(job))
            self._follows.add(follows)
            follows.add_done_callback(self._follows.discard)

    async def _follow(self, job: Job) -> None:
        """Try a few times to release the hold of a job whose lines are charged. Later polls retry too."""
        try:
            for _ in range(FOLLOWS_MAX):
                await asyncio.sleep(FOLLOW_S)
                with suppress(Refusal):
                    if await self._release(job):
                        return
        finally:
            self._followed.release(job.organization_id)

    async def _release(self, job: Job) -> bool:
        """Release a job's hold if all lines of its result are charged; return whether it is released."""
        if job.settled_ms:
            return True
        if await self._stored.waits(job):
            return False
        await self._release_hold(job)
        await self._end(job, job.ended)
        return True

    async def _charge_as_held(self, job: Job, status: str) -> None:
        """Charge the held amount and end the job with `status`.

        If lines of its result may already be charged, charge only these and release the rest.
        """
        if job.lines_after:
            job.ended, job.lines_until = status, await self._stored.place(job.partition)
            await self._release(job)
            return
        service = service_of(self._ports, job)
        if service is not None:
            await self._charge(job, unread_charge(job, service, await self._age_s(job)))
        elif await self._age_s(job) <= HOLD_S_MAX:
            raise CountersUnavailable
        await self._end(job, status)

    async def _end(self, job: Job, status: str) -> None:
        job.status, job.settled_ms = status, await self._stored.now_ms(job)
        await in_task(self._stored.keep(job))
        self._log("job settled", job=job.id, status=job.status, lines=job.lines, level="info")
