"""Looks at jobs with the upstream's own credential, and charges what they did.

Part of the composition root: it introduces upstreams to the stored jobs. A worker looks when a caller asks
for a job, and all look now and then at those that nobody asks for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec

from gateway.core.accounts.jobs import (
    OPENING,
    RESULT_BYTES_MAX,
    RUNNING,
    UNANSWERED_S_MAX,
    BatchState,
    Job,
    read_list,
    read_state,
    results,
)
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.family import BatchPaths
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Caller, Settlement
from gateway.core.wait import Wait, run_in_task
from gateway.counters.admission.jobs import StoredJobs
from gateway.errors import CountersUnavailable, InvalidRequest, Refusal, UpstreamUnreachable
from gateway.files import https_with
from gateway.http.jobs import line_charges, release_of, service_of, unread_charge
from gateway.http.ports import Ports
from gateway.http.server.server import DataPlane
from gateway.settings.settings import Settings

CONNECT_S: Final = 10.0
WITHIN_S: Final = 300.0
# Lines that are charged in one turn of the loop, and jobs that are looked at once.
_AT_ONCE: Final = 50
# Statuses of things that are gone, or too long to be read.
_GONE: Final = frozenset({404, 410, 413})


class Jobs:
    """The jobs of callers, of one worker. It is told the plane it serves once that is there."""

    def __init__(self, stored: StoredJobs, settings: Settings, log: Callable[..., None]) -> None:
        self._stored, self._settings, self._log = stored, settings, log
        self._plane: DataPlane | None = None
        self._ports: Ports | None = None
        self._looking: dict[str, asyncio.Task[None]] = {}

    def serve(self, plane: DataPlane, ports: Ports) -> None:
        """Look by the upstreams of this plane."""
        self._plane, self._ports = plane, ports

    def keep(self, job: Job) -> Wait[None]:
        return self._stored.keep(job)

    def drop(self, job: Job) -> Wait[None]:
        return self._stored.drop(job)

    def find(self, caller: Caller, id_: str) -> Wait[Job | None]:
        return self._stored.find(caller, id_)

    def fetch(self, upstream: str, path: str) -> asyncio.Task[bytes]:
        """What an upstream has there, as it is. Fails with the `Refusal` it earns."""
        return asyncio.create_task(self._fetched(upstream, path))

    def ask(
        self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]
    ) -> asyncio.Task[tuple[int, bytes]]:
        """What an upstream answers there."""
        return asyncio.create_task(self._ask(upstream, path, headers))

    def look(self, job: Job) -> asyncio.Future[None]:
        """Ask what became of a job, and charge it where it is over; who asks together waits for one look."""
        task = self._looking.get(job.hold_id)
        if task is None:
            task = self._looking[job.hold_id] = asyncio.create_task(self._look(job))
            task.add_done_callback(lambda _: self._looking.pop(job.hold_id, None))
        return asyncio.shield(task)

    async def keep_looking(self) -> None:
        """Look at all jobs now and then, until cancelled."""
        while True:
            interval_s = self._settings.jobs_interval_s
            await asyncio.sleep(interval_s)
            for job in await self._stored.open():
                if await self._stored.claim(job, max(1, int(interval_s))):
                    try:
                        await self.look(job)
                    except Refusal as error:
                        self._log("job not looked at", job=job.id, why=error.reason, level="warning")

    async def _fetched(self, upstream: str, path: str) -> bytes:
        status, content = await self._ask(upstream, path)
        if status in _GONE:
            raise InvalidRequest(
                "The upstream has no such file, or it is too long.", param="input_file_id"
            )
        if status != 200:
            raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a file.")
        return content

    async def _ask(
        self, upstream: str, path: str, more: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """A status and its body; 413 in place of one that is longer than is read."""
        from gateway.outbound.client import TooLarge, ask  # noqa: PLC0415  # heavy: few workers need it

        target = self._target(upstream)
        headers = dict(more) | dict(target.headers) | dict(target.keys[0] if target.keys else ())
        proxies = self._settings.proxies if target.proxies is None else target.proxies
        try:
            return await ask(
                "GET", target.base_url + path, headers, None, proxies=lambda: proxies,
                context=self._context(target), connect_s=CONNECT_S, within_s=WITHIN_S,
                bytes_max=RESULT_BYTES_MAX,
            )  # fmt: skip
        except TooLarge:
            return 413, b""
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachable from error

    def _context(self, target: UpstreamTarget) -> ssl.SSLContext | None:
        if not target.base_url.startswith("https"):
            return None
        context = https_with(target.ca_file)
        if target.cert_file is not None:
            context.load_cert_chain(target.cert_file, target.key_file)
        return context

    def _target(self, upstream: str) -> UpstreamTarget:
        assert self._plane is not None
        target = self._plane.target_of(upstream)
        if target is None:
            raise UpstreamUnreachable(f"No upstream {upstream} is configured.")
        return target

    # A look at one job.

    async def _look(self, job: Job) -> None:
        assert self._plane is not None
        route = self._plane.route_of("POST", job.endpoint)
        paths = None if route is None else FAMILIES[route.family].batches
        if paths is None:
            raise CountersUnavailable
        if not job.id and not await self._was_made(job, paths):
            return
        id_ = quote(job.id, safe="")
        status, said = await self._ask(job.upstream, f"{paths.batches}/{id_}", paths.headers)
        if status in _GONE:
            await self._settle(job, "failed", None)
            return
        if status != 200:
            raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a batch.")
        state = self._read(said)
        ended, path = state.ended_as, paths.results.replace("{id}", id_)
        if not ended:
            return
        if not paths.results:
            if not state.output_file_id:
                await self._settle(job, ended, b"")
                return
            path = f"{paths.files}/{quote(state.output_file_id, safe='')}/content"
        status, content = await self._ask(job.upstream, path, paths.headers)
        if status not in _GONE and status != 200:
            raise UpstreamUnreachable(f"The upstream answers {status} where it was asked for a result.")
        await self._settle(job, ended, None if status in _GONE else content)

    def _read(self, said: bytes) -> BatchState:
        try:
            return read_state(said)
        except msgspec.MsgspecError as error:
            raise UpstreamUnreachable("The upstream tells of a batch in a way nobody can read.") from error

    async def _was_made(self, job: Job, paths: BatchPaths) -> bool:
        """Whether the upstream made a batch whose answer nobody has read; it has its id then."""
        assert self._ports is not None
        age_s = (self._ports.refusals.now_ms() - job.created_ms) / 1000
        status, said = await self._ask(job.upstream, f"{paths.batches}?limit=100", paths.headers)
        if status == 200:
            try:
                found = read_list(said).data
            except msgspec.MsgspecError:
                found = []
            for one in found:
                if one.is_of(job) and not await self._known(job, one.id):
                    job.id, job.status = one.id, RUNNING
                    await run_in_task(self._kept(job))
                    return True
        if age_s > UNANSWERED_S_MAX:
            await self._settle(job, "failed", b"")
        return False

    async def _known(self, job: Job, id_: str) -> bool:
        async def found() -> Job | None:
            return await self._stored.find(job.caller, id_)

        return await run_in_task(found()) is not None

    async def _kept(self, job: Job) -> None:
        await self._stored.keep(job)

    async def _settle(self, job: Job, status: str, content: bytes | None) -> None:
        """Charge the lines of a result, or all that was held where nobody can read it; then end the hold."""
        ports, plane = self._ports, self._plane
        assert ports is not None
        assert plane is not None
        service, route = service_of(ports, job), plane.route_of("POST", job.endpoint)
        if service is None or route is None:
            raise CountersUnavailable
        cost = 0
        if content is None:
            settlement, cost = unread_charge(job, service, route)
            await run_in_task(_settled(ports, settlement))
        else:
            found = line_charges(ports, job, service, route, results(content), plane.bounds)
            for number, (settlement, each) in enumerate(found):
                await run_in_task(_settled(ports, settlement))
                cost += each
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await run_in_task(_settled(ports, release_of(job, service)))
        job.status = "failed" if job.status == OPENING else status
        job.cost, job.settled_ms = cost, ports.refusals.now_ms()
        await run_in_task(self._kept(job))
        self._log("job settled", job=job.id, status=job.status, lines=job.lines, level="info")


async def _settled(ports: Ports, settlement: Settlement) -> None:
    await ports.counters.settle(settlement)
