"""The counters as a gateway worker uses them: reserve, settle, extend, one method a script.

A call's keys are the same for every request of a caller, so the wire bytes around what changes
are made once a caller and kept (`_Frame`, bounded). Settling is repeated until it is known to
have happened or its time is up: settling twice is settling once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.core.model import Caller, Decision, HoldRequest, Observed, Service, Settled, Settlement, Verdict
from gateway.core.wait import in_task
from gateway.counters import packing
from gateway.counters.directory import Directory
from gateway.counters.wire import Wire, encode_script
from gateway.errors import CountersUnavailable

FRAMES_MAX = 20_000
EXTEND_BATCH_MAX = 64
SETTLE_TRIES_MAX = 3
TOMBSTONE_MS = 3_600_000
EXTEND_MARGIN_TOKENS = 256
_NO_ID = "0" * 36


class _Frame:
    """The wire bytes of one caller's calls, cut where request id and packed arguments go."""

    __slots__ = ("reserve", "settle")

    def __init__(self, caller: Caller, user: str, service: Service) -> None:
        request = HoldRequest(caller, _NO_ID, user, service, 0, 0)
        keys, (packed, name) = packing.reserve(b"0" * 40, 0, 0, request)
        whole = encode_script("reserve", keys, (packed, name))
        head, tail = whole.split(_NO_ID.encode(), 1)
        middle, end = tail.split(packed, 1)
        self.reserve = head, middle, end
        release = Settlement(caller, _NO_ID, user, service, charge=False)
        keys, (packed, name, _, _) = packing.settle(b"0" * 40, 0, release, packing.MODE_RELEASE)
        whole = encode_script("settle", keys, (packed, name, b"", b""))
        head, tail = whole.split(_NO_ID.encode(), 1)
        middle, end = tail.split(packed, 1)
        assert end.endswith(b"$0\r\n\r\n$0\r\n\r\n")
        self.settle = head, middle, end[: -len(b"$0\r\n\r\n$0\r\n\r\n")]


class Counters:
    """Limits and accounts in Redis, for one worker."""

    def __init__(
        self,
        wire: Wire,
        directory: Directory,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Callable[[str, float], None],
    ) -> None:
        self._wire = wire
        self._directory = directory
        self._ttl_ms = hold_ttl_ms
        self._clock = clock
        self._frames: dict[tuple[Caller, str, int], _Frame] = {}
        self._live: dict[str, Observed] = {}
        self._took = took

    async def reserve(self, request: HoldRequest) -> Decision:
        """Take a hold on every limit or on none; CountersUnavailable where that cannot be known."""
        frame = self._frame(request.caller, request.user, request.service)
        decision = packing.decision(await self._reserve(frame, request), request.service)
        if decision.verdict is Verdict.STALE:
            await self._directory.refresh()
            decision = packing.decision(await self._reserve(frame, request), request.service)
        if decision.verdict is Verdict.UNVERIFIED or decision.verdict is Verdict.STALE:
            raise CountersUnavailable
        return decision

    async def settle(self, settlement: Settlement) -> Settled:
        """Replace the hold by what was used; answered only when it happened, once, whatever was lost."""
        frame = self._frame(settlement.caller, settlement.user, settlement.service)
        mode = packing.MODE_CHARGE if settlement.charge else packing.MODE_RELEASE
        for attempt in range(SETTLE_TRIES_MAX):
            try:
                answer = await self._settle(frame, settlement, mode)
            except CountersUnavailable:
                if attempt + 1 == SETTLE_TRIES_MAX:
                    raise
                continue
            settled = Settled(packing.code_of(answer))
            if settled is not Settled.UNVERIFIED:
                return settled
        raise CountersUnavailable

    @property
    def live(self) -> int:
        """How many calls are watched."""
        return len(self._live)

    def watch(self, observed: Observed) -> None:
        """Keep this live call's hold from its deadline until `unwatch`."""
        self._live[observed.request_id] = observed

    def unwatch(self, observed: Observed) -> None:
        """The call is over; it settles itself."""
        self._live.pop(observed.request_id, None)

    async def keep_extending(self) -> None:
        """Renew every live hold three times a lifetime, until cancelled."""
        while True:
            await asyncio.sleep(self._ttl_ms / 3000)
            await self.extend_all()

    async def extend_all(self) -> None:
        """Renew every live hold once, in bounded batches by partition."""
        by_partition: dict[int, list[Observed]] = {}
        for observed in self._live.values():
            by_partition.setdefault(observed.caller.partition, []).append(observed)
        for partition, live in by_partition.items():
            for start in range(0, len(live), EXTEND_BATCH_MAX):
                await self._extend(partition, live[start : start + EXTEND_BATCH_MAX])

    # --- one method a script ------------------------------------------------------------

    def _frame(self, caller: Caller, user: str, service: Service) -> _Frame:
        name = caller, user, service.id
        frame = self._frames.get(name)
        if frame is None:
            if len(self._frames) >= FRAMES_MAX:
                del self._frames[next(iter(self._frames))]
            frame = self._frames[name] = _Frame(caller, user, service)
        return frame

    async def _reserve(self, frame: _Frame, request: HoldRequest) -> bytes:
        head, middle, end = frame.reserve
        packed = packing.reserve_argument(self._wire.run_id, self._directory.version, self._ttl_ms, request)
        started = self._clock()
        answer = await self._wire.send(b"".join((head, request.request_id.encode(), middle, packed, end)))
        self._took("reserve", self._clock() - started)
        return cast("bytes", answer)

    async def _settle(self, frame: _Frame, settlement: Settlement, mode: int) -> bytes:
        head, middle, end = frame.settle
        packed = packing.settle_argument(self._wire.run_id, TOMBSTONE_MS, settlement, mode)
        attribution = settlement.attribution.encode()
        metadata = settlement.metadata
        started = self._clock()
        answer = await self._wire.send(
            b"%b%b%b%b%b$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (
                head,
                settlement.request_id.encode(),
                middle,
                packed,
                end,
                len(attribution),
                attribution,
                len(metadata),
                metadata,
            )
        )
        self._took("settle", self._clock() - started)
        return cast("bytes", answer)

    async def _extend(self, partition: int, live: list[Observed]) -> None:
        calls = [(one.request_id, one.caller.tenant_id, one.tokens, EXTEND_MARGIN_TOKENS) for one in live]
        keys, arguments = packing.extend(self._wire.run_id, self._ttl_ms, partition, calls)
        started = self._clock()
        try:
            answer = await in_task(self._wire.send(encode_script("extend", keys, arguments)))
        except CountersUnavailable:
            return
        self._took("extend", self._clock() - started)
        for one, (held, exhausted) in zip(live, packing.extended(cast("bytes", answer)), strict=False):
            if held >= 0:
                one.held, one.exhausted = held, bool(exhausted)
