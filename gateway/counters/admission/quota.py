"""The counters as a gateway worker uses them: reserve, settle, extend, one method a script.

A call's keys are the same for every request of a caller, so the wire bytes around what changes
are made once a caller and kept (`Frame`, bounded). A settlement that is not acknowledged is
spooled in the worker's log and sent again from there: settling twice is settling once.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from gateway.core.calls.tariff import extended
from gateway.core.layout import LAYOUT
from gateway.core.model import Decision, HoldRequest, Observed, Settled, Settlement, Verdict
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.directory import Directory
from gateway.counters.admission.releasing import Releases
from gateway.counters.layouts import packing
from gateway.counters.layouts.flags import FLAG_RAISES
from gateway.counters.layouts.frame import Frame, Frames
from gateway.counters.layouts.table import SETTLED
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.wire import Reply, Wire, encode_script
from gateway.counters.settlement_log.log import SettlementLog
from gateway.errors import CountersRefused, CountersUnavailable

FRAMES_MAX = 20_000
EXTEND_BATCH_MAX = 64
# A newer catalogue is told of once, the plan of the tenant where it is another one.
RESERVE_TRIES = 3
EXTEND_MARGIN_TOKENS = 256
OUTGROWN_S = 0.02
MISSED_S = 0.5
CUT = 2
_AGAIN = frozenset({Verdict.STALE, Verdict.OTHER_PLAN})
_ADMITTED, _DONE, _UNVERIFIED = Verdict.ADMITTED, Settled.DONE, Settled.UNVERIFIED
_SETTLED = {struct.pack("<d", settled): settled for settled in Settled}


class Counters:
    """Limits and accounts in Redis, for one worker. `took` is told each script's seconds by verb.

    `log` keeps what was settled, acknowledged or not.
    """

    def __init__(
        self,
        wire: Wire,
        directory: Directory,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Mapping[str, Callable[[float], None]],
        *,
        log: SettlementLog,
        allowances: Allowances | None = None,
        frames_max: int = FRAMES_MAX,
    ) -> None:
        self._wire = wire
        self._log = log
        self._allowances = allowances if allowances is not None else Allowances(clock)
        self._directory = directory
        self._ttl_ms = hold_ttl_ms
        self._clock = clock
        self._frames = Frames(frames_max)
        self._live: dict[str, Observed] = {}
        self._outgrown: dict[str, Observed] = {}
        self._missed = False
        self._extending: asyncio.Task[None] | None = None
        self._releases = Releases(wire, self._release_command, hold_ttl_ms / 1000, clock)
        self._reserve_took, self._settle_took, self._extend_took = (
            took["reserve"],
            took["settle"],
            took["extend"],
        )

    async def reserve(self, request: HoldRequest) -> Decision:
        """Take a hold on every limit or on none; CountersUnavailable where that cannot be known.

        While Redis is away, not verified or not open yet, what was leased before decides.
        """
        service, wire = request.service, self._wire
        frame = self._frames.frame_of(request.caller, request.user, service)
        head, middle, end = frame.reserve
        flags = frame.flags | FLAG_RAISES if request.raises else frame.flags
        request_id = request.request_id.encode()
        verdict, sent, weighing, refreshed = Verdict.STALE, None, self._directory.weighing, False
        try:
            for _ in range(RESERVE_TRIES):
                weights, plan_id = None, packing.ANY_PLAN
                need, ceiling, least = -1, request.ceiling, request.least
                if weighing.by_plan:
                    plan_id = weighing.plan_of(request)
                    weights = weighing.by_plan.get(plan_id)
                    if weights is not None:
                        need, ceiling, least = request.weighed(weights)
                packed = packing.reserve_packed(
                    wire.batch, wire.run_id, self._directory.version, request.need, need, ceiling, least,
                    request.credits_least, request.credits, request.units, self._ttl_ms,
                    service.id, plan_id, flags, request_id,
                )  # fmt: skip
                wait = wire.send(b"".join((head, request_id, middle, packed, end)))
                sent = None if wait.done else wait
                asked_at = wire.asked_at
                answer = await wait
                self._reserve_took(wire.answered_at - asked_at)
                decision = packing.decision(cast("bytes", answer), service)
                verdict = decision.verdict
                if verdict is _ADMITTED:
                    if request.raises:
                        self._allowances.held(request.request_id)
                    decision.weights = weights
                    return decision
                if verdict is Verdict.OTHER_PLAN:
                    weighing.learn(request.caller.tenant_id, decision.limit)
                elif verdict is Verdict.STALE and not refreshed:
                    await self._directory.refresh()
                    refreshed = True
                else:
                    break
        except CountersUnavailable as error:
            if sent is not None and not isinstance(error, CountersRefused):
                self._give_up(sent, request)
            if wire.available:  # it answers, and will not: that it is full is no outage
                raise
            return self._allowances.admit(request, weighing.by_plan)
        if verdict is Verdict.UNVERIFIED or verdict in _AGAIN:
            return self._allowances.admit(request, weighing.by_plan)
        self._allowances.refused(request.caller, verdict)
        return decision

    async def settle(self, settlement: Settlement) -> Settled:
        """Replace the hold by what was used; answered only when that is certain to happen, once.

        SPOOLED: the counters did not acknowledge it, and it waits for them on this worker's disk.
        CountersUnavailable where it is kept nowhere, or for a release, which is sent again.
        Credits are set to what was charged: of a One-Time service nothing, but for the first; of a price in
        parts of one less, where what was paid ahead covers it.
        """
        service = settlement.service
        frame = self._frames.frame_of(settlement.caller, settlement.user, service)
        calls = self._allowances.calls
        local = len(calls) > 0 and settlement.request_id in calls
        if local and not settlement.charge:
            alone = calls[settlement.request_id].alone
            self._allowances.over(settlement, Settled.UNKNOWN)
            if alone and not self._wire.available:
                return Settled.UNKNOWN
        command = self._settle_command(frame, settlement)
        wire, settled = self._wire, _UNVERIFIED
        try:
            wait = wire.send(command)
            asked_at = wire.asked_at
            answer = cast("bytes", await wait)
            settled = _SETTLED[answer[:8]]
            self._settle_took(wire.answered_at - asked_at)
        except CountersUnavailable:
            answer = b""
        if settled is not _UNVERIFIED:
            if settlement.charge:
                self._log.note(command[frame.arguments_at :], answer)
            if service.one_time or settlement.over:  # what it is charged is known only there
                settlement.credits = SETTLED.read(answer)["credits"] if settled is _DONE else 0
            if local:
                self._allowances.over(settlement, settled)
            return settled
        if not settlement.charge:
            self._releases.owe(settlement)
            raise CountersUnavailable
        return await self._spool(settlement, command[frame.arguments_at :])

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
        self._outgrown.pop(observed.request_id, None)

    def outgrown(self, observed: Observed) -> None:
        """This watched call has used up its hold: extend it shortly, together with others."""
        if self._allowances.outgrown(observed, EXTEND_MARGIN_TOKENS):
            return
        self._outgrown[observed.request_id] = observed
        if self._extending is None or self._extending.done():
            self._extending = asyncio.get_running_loop().create_task(self._extend_outgrown())

    async def keep_extending(self) -> None:
        """Renew every live hold three times a lifetime, until cancelled; what was missed, soon."""
        while True:
            await asyncio.sleep(MISSED_S if self._missed else self._ttl_ms / 3000)
            self._missed = False
            await self.extend_all()

    async def extend_all(self) -> None:
        """Renew every live hold once, in bounded batches by partition."""
        await self._extend_each(list(self._live.values()))

    async def _extend_outgrown(self) -> None:
        while self._outgrown:
            await asyncio.sleep(OUTGROWN_S)
            outgrown, self._outgrown = self._outgrown, {}
            await self._extend_each(list(outgrown.values()))

    async def _extend_each(self, observations: list[Observed]) -> None:
        by_partition: dict[int, list[Observed]] = {}
        for observed in observations:
            by_partition.setdefault(observed.caller.partition, []).append(observed)
        for partition, live in by_partition.items():
            for start in range(0, len(live), EXTEND_BATCH_MAX):
                await self._extend(partition, live[start : start + EXTEND_BATCH_MAX])

    # --- one method a script ------------------------------------------------------------

    def _give_up(self, wait: Wait[Reply], request: HoldRequest) -> None:
        """Whoever asked was told that nobody knows: should it be admitted all the same, it is released."""
        if self._wire.connected:
            wait.give_up(partial(self._came_late, request))
        else:
            self._came_late(request, None)

    def _came_late(self, request: HoldRequest, answer: Reply) -> None:
        """The answer to a call given up is here, or none will be (None). On a lease it may have gone on."""
        if request.request_id in self._allowances.calls:
            return
        known = isinstance(answer, bytes)
        if known and not packing.is_admitted(cast("bytes", answer)):
            return
        caller, service = request.caller, request.service
        release = Settlement(caller, request.request_id, request.user, service, charge=False)
        self._releases.owe(release, at_once=known)

    def _release_command(self, release: Settlement) -> bytes:
        return self._settle_command(
            self._frames.frame_of(release.caller, release.user, release.service), release
        )

    def _settle_command(self, frame: Frame, settlement: Settlement) -> bytes:
        head, middle, end, last = frame.settle
        request_id, attribution = settlement.request_id.encode(), settlement.attribution.encode()
        metadata = settlement.metadata
        used = packing.settle_used(
            self._wire.batch,
            LAYOUT,
            self._wire.run_id,
            packing.MODE_CHARGE if settlement.charge else packing.MODE_RELEASE,
            settlement.tokens,
            settlement.of_quota,
            settlement.credits,
            settlement.units,
            settlement.over,
        )
        return b"%b%b%b%b%b%b%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (
            head, request_id, middle, used, frame.who, request_id, end,
            len(attribution), attribution, len(metadata), metadata, last,
        )  # fmt: skip

    async def _spool(self, settlement: Settlement, arguments: bytes) -> Settled:
        """Keep a settlement the counters did not acknowledge; one kept nowhere is charged if they ran it."""
        try:
            await self._log.spool(arguments)
        except CountersUnavailable:
            self._allowances.over(settlement, _DONE)
            raise
        self._allowances.over(settlement, Settled.SPOOLED)
        return Settled.SPOOLED

    async def _extend(self, partition: int, live: list[Observed]) -> None:
        calls = [(one, EXTEND_MARGIN_TOKENS) for one in live]
        keys, arguments = packing.extend(self._wire.run_id, self._ttl_ms, partition, calls)
        started = self._clock()
        try:
            answer = await in_task(self._wire.send(encode_script("extend", keys, arguments)))
        except CountersUnavailable:
            self._missed = True
            return
        self._extend_took(self._clock() - started)
        self._missed = self._missed or packing.code_of(cast("bytes", answer)) == Verdict.UNVERIFIED
        answers = packing.extended(cast("bytes", answer))
        for one, (tokens, credits_, exhausted) in zip(live, answers, strict=False):
            if tokens >= 0:
                extended(one, tokens, credits_)
                one.exhausted, one.cut = exhausted > 0, exhausted == CUT
