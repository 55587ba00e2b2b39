"""The counters as a gateway worker uses them: reserve, settle, extend, one method a script.

A call's keys are the same for every request of a caller, so the wire bytes around what changes
are made once a caller and kept (`Frame`, bounded). A settlement that is not acknowledged is
spooled in the worker's log and sent again from there: settling twice is settling once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from gateway.core.accounts.weights import Weights
from gateway.core.layout import LAYOUT
from gateway.core.model import Decision, HoldRequest, Settled, Settlement, Verdict
from gateway.core.wait import Wait
from gateway.counters.admission.crowded import Crowded
from gateway.counters.admission.directory import Directory
from gateway.counters.admission.live import LiveHolds
from gateway.counters.admission.prices import unheard
from gateway.counters.admission.releasing import Releases
from gateway.counters.layouts import packing
from gateway.counters.layouts.budgets import paid_packed, replaced
from gateway.counters.layouts.flags import FLAG_RAISES
from gateway.counters.layouts.frame import KEPT_AT, NO_BUDGETS, RESERVE_HEAD, SETTLE_HEAD, Frame, Frames
from gateway.counters.layouts.table import SETTLED
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire
from gateway.counters.settlement_log.log import SettlementLog
from gateway.errors import CountersRefused, CountersUnavailable

FRAMES_MAX = 20_000
# Told of once: a newer catalogue, another plan that the tenant follows, accounts that cannot be made.
RESERVE_TRIES = 4
_AGAIN = frozenset({Verdict.STALE, Verdict.OTHER_PLAN, Verdict.OTHER_ACCOUNT})
_ADMITTED, _DONE, _UNVERIFIED = Verdict.ADMITTED, Settled.DONE, Settled.UNVERIFIED
_SETTLED = {struct.pack("<d", settled): settled for settled in Settled}


class Counters(LiveHolds):
    """Limits and accounts in Redis, for one worker. `took` is told each script's seconds by verb.

    `log` keeps what was settled, acknowledged or not; `say` tells people. In a cluster these are those of one
    primary; `elsewhere` says whose a partition is by now, `handed_over` waits while it is on its way, and
    `releases` are those of all.
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
        say: Callable[..., None] = unheard,
        frames_max: int = FRAMES_MAX,
    ) -> None:
        held = allowances if allowances is not None else Allowances(clock)
        super().__init__(wire, held, hold_ttl_ms, clock, took["extend"])
        self._wire = wire
        self.elsewhere: Callable[[int], Counters] | None = None
        self.handed_over: Callable[[int], Wait[None]] | None = None
        self._log = log
        self.crowded = Crowded(clock, say)
        self._directory = directory
        self._frames = Frames(frames_max)
        self.releases = Releases(wire, self.send_release, hold_ttl_ms / 1000, clock)
        self._reserve_took, self._settle_took = took["reserve"], took["settle"]

    async def reserve(self, request: HoldRequest) -> Decision:
        """Take a hold on every limit or on none; CountersUnavailable where that cannot be known.

        While Redis is away, not verified or not open yet, what was leased before decides.
        """
        service, wire = request.service, self._wire
        request_id = request.request_id.encode()
        verdict, sent, weighing, refreshed = Verdict.STALE, None, self._directory.weighing, False
        try:
            for _ in range(RESERVE_TRIES):
                frame = self._frames.frame_of(request.caller, request.user, service, _names(request))
                flags = frame.flags | FLAG_RAISES if request.raises else frame.flags
                weights, plan_id = None, packing.ANY_PLAN
                needed, ceiling, least = -1, request.ceiling, request.least
                if weighing.by_plan:
                    plan_id = weighing.plan_of(request)
                    weights = weighing.by_plan.get(plan_id)
                    if weights is not None:
                        needed, ceiling, least = request.weighed(weights)
                packed = packing.reserve_packed(
                    wire.batch, wire.run_id, self._directory.version, request.need, needed, ceiling, least,
                    request.credits_least, request.credits, request.units, self._ttl_ms,
                    service.id, plan_id, flags, request_id,
                )  # fmt: skip
                arguments = b"%b%b%b" % (RESERVE_HEAD, packed, frame.end_of(request))
                wait = wire.send_call(frame.reserve, request_id, arguments)
                sent = None if wait.done else wait
                asked_at = wire.asked_at
                answer = await wait
                self._reserve_took(wire.answered_at - asked_at)
                decision = packing.decision(cast("bytes", answer), service)
                verdict = decision.verdict
                if verdict is _ADMITTED:
                    self._allowances.admitted_there(request, decision)
                    decision.weights = weights
                    return decision
                if verdict is Verdict.OTHER_PLAN or verdict is Verdict.OTHER_ACCOUNT:
                    self._learn(request, decision)
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
            return await self._unserved(request, weighing.by_plan)
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
        frame = self._frames.frame_of(settlement.caller, settlement.user, service, settlement.budgets)
        calls = self._allowances.calls
        local = len(calls) > 0 and settlement.request_id in calls
        if local and not settlement.charge:
            alone = calls[settlement.request_id].alone
            self._allowances.over(settlement, Settled.UNKNOWN)
            if alone and not self._wire.available:
                return Settled.UNKNOWN
        arguments = self._settle_arguments(frame, settlement)
        wire, settled = self._wire, _UNVERIFIED
        try:
            wait = wire.send_call(frame.settle, settlement.request_id.encode(), arguments)
            asked_at = wire.asked_at
            answer = cast("bytes", await wait)
            settled = _SETTLED[answer[:8]]
            self._settle_took(wire.answered_at - asked_at)
        except CountersUnavailable:
            answer = b""
        if settled is not _UNVERIFIED:
            if settlement.charge:
                self._log.note(arguments[KEPT_AT:], answer)
            if service.one_time or settlement.over:  # what it is charged is known only there
                settlement.credits = SETTLED.read(answer)["credits"] if settled is _DONE else 0
            if local:
                self._allowances.over(settlement, settled)
            return settled
        if not settlement.charge:
            self.releases.owe(settlement)
            raise CountersUnavailable
        return await self._spool(settlement, arguments[KEPT_AT:])

    # --- one method a script ------------------------------------------------------------

    def _learn(self, request: HoldRequest, decision: Decision) -> None:
        """Ask for what is there: by the plan the tenant follows, from accounts that may be made."""
        if decision.verdict is Verdict.OTHER_PLAN:
            self._directory.weighing.learn(request.caller.tenant_id, decision.limit)
        else:
            request.budgets = replaced(request.budgets, decision.used)
            request.names = tuple([one.name for one in request.budgets])
            self.crowded.met(request.caller.organization_id, request.budgets)

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
        release = Settlement(
            request.caller, request.request_id, request.user, request.service, charge=False,
            budgets=_names(request),
        )  # fmt: skip
        self.releases.owe(release, at_once=known)

    def _elsewhere(self, partition: int) -> Counters | None:
        """Whose a partition is, where it is not these counters' any more."""
        other = self.elsewhere(partition) if self.elsewhere is not None else self
        return None if other is self else other

    async def _unserved(self, request: HoldRequest, by_plan: Mapping[int, Weights]) -> Decision:
        """Redis answers, and may not decide yet: by who has the partition by now, else by what was leased."""
        partition = request.caller.partition
        if self.handed_over is not None:
            await self.handed_over(partition)
        other = self._elsewhere(partition)
        if other is not None:
            return await other.reserve(request)
        return self._allowances.admit(request, by_plan)

    def send_release(self, release: Settlement) -> Wait[Reply]:
        """Send the end of a hold without a charge."""
        other = self._elsewhere(release.caller.partition)
        if other is not None:
            return other.send_release(release)
        frame = self._frames.frame_of(release.caller, release.user, release.service, release.budgets)
        arguments = self._settle_arguments(frame, release)
        return self._wire.send_call(frame.settle, release.request_id.encode(), arguments, at_once=True)

    def _settle_arguments(self, frame: Frame, settlement: Settlement) -> bytes:
        """What `settle` is told, as it goes over the wire."""
        attribution, metadata = settlement.attribution.encode(), settlement.metadata
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
        counted = b""
        if frame.names:
            counted = paid_packed(settlement.money, settlement.raw_tokens, 1 if settlement.charge else 0)
        return b"%b%b%b%b%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b%b%b" % (
            SETTLE_HEAD, used, frame.who, settlement.request_id.encode(), frame.settle_user,
            len(attribution), attribution, len(metadata), metadata, frame.settle_end, counted, frame.names,
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


def _names(request: HoldRequest) -> tuple[str, ...]:
    """The budget accounts of a call."""
    return request.names or (tuple([one.name for one in request.budgets]) if request.budgets else NO_BUDGETS)
