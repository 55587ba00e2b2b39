"""The counters as a gateway worker uses them: reserve, settle, extend, one method for each script.

The bytes of a script call are the same for all calls of a caller, except for a few fields. So they are
encoded once for each caller and cached (`Frame`, bounded). A settlement that Redis did not acknowledge is
stored in the worker's log and sent again from there: settling twice charges once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from gateway.core.accounts.weights import Weights
from gateway.core.joined import packed
from gateway.core.layout import LAYOUT
from gateway.core.model import Admitted, HoldRequest, Refused, Settlement, SettleResult, Verdict
from gateway.core.wait import Wait
from gateway.counters.admission.account_limit import AccountLimit
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.catalogue import unheard
from gateway.counters.admission.live_holds import LiveHolds
from gateway.counters.admission.releases import Releases
from gateway.counters.layouts import packing
from gateway.counters.layouts.accounts import FLAG_RAISES
from gateway.counters.layouts.packing import BYTES, SETTLED, pack_run_id, replaced
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.calls import (
    KEPT_AT,
    NO_BUDGETS,
    RESERVE_HEAD,
    SETTLE_HEAD,
    Frame,
    Frames,
    Reply,
    bulk_head,
)
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.counters.settlement_log.log import RELEASE, SettlementLog
from gateway.errors import CountersRefused, CountersUnavailable

# Each is reported once: a newer catalogue, another plan of the tenant, accounts that cannot be made.
RESERVE_TRIES = 4
_AGAIN = frozenset({Verdict.STALE, Verdict.OTHER_PLAN, Verdict.OTHER_ACCOUNT})
_DONE, _UNVERIFIED = SettleResult.DONE, SettleResult.UNVERIFIED
_DONE_CODE = struct.pack("<d", _DONE)


class Counters(LiveHolds):
    """The limits and accounts in Redis, for one worker. `took` gets each script's seconds, by verb.

    `log` stores settlements, acknowledged or not; `say` logs for people. In a cluster there is one object for
    each primary: `of_new_primary` returns the present one of a partition, `wait_for_handover` waits while a
    partition moves, and all share `releases`.
    """

    def __init__(
        self,
        wire: RedisConnection,
        directory: Directory,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Mapping[str, Callable[[float], None]],
        *,
        log: SettlementLog,
        allowances: Allowances | None = None,
        say: Callable[..., None] = unheard,
        frames: Frames | None = None,
    ) -> None:
        held = allowances if allowances is not None else Allowances(clock)
        super().__init__(wire, held, hold_ttl_ms, clock, took["extend"])
        self._wire = wire
        self.of_new_primary: Callable[[int], Counters] | None = None
        self.wait_for_handover: Callable[[int], Wait[None]] | None = None
        self._log = log
        self.crowded = AccountLimit(clock, say)
        self._directory = directory
        self._frames = frames if frames is not None else Frames()
        self.releases = Releases(wire, self.send_release, hold_ttl_ms / 1000, clock)
        self._reserve_took, self._settle_took = took["reserve"], took["settle"]

    async def reserve(self, request: HoldRequest) -> Admitted | Refused:
        """Reserve on all limits or on none; CountersUnavailable if the outcome cannot be known.

        While Redis is away, unverified or closed to admission, this worker's lease decides.
        """
        service, wire = request.service, self._wire
        request_id = request.request_id.encode()
        self.releases.forget(request)
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
                        needed, ceiling, least = request.weigh(weights)
                if request.whole:
                    least = -1
                arguments = packed(  # the fields of `RESERVE`
                    RESERVE_HEAD, wire.batch, pack_run_id(wire.run_id), self._directory.version, request.need,
                    needed, ceiling, least, request.credits_least, request.credits, request.units,
                    request.ttl_ms or self._ttl_ms, service.id, plan_id, BYTES[flags], request_id,
                    frame.end_of(request),
                )  # fmt: skip
                wait = wire.send_call(frame.reserve, request_id, arguments)
                sent = None if wait.done else wait
                asked_at = wire.asked_at
                answer = await wait
                self._reserve_took(wire.answered_at - asked_at)
                decision = packing.decision(cast("bytes", answer), service)
                if isinstance(decision, Admitted):
                    self._allowances.admitted_there(request, decision)
                    decision.weights, decision.frame = weights, frame
                    return decision
                verdict = decision.verdict
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
            if wire.available or request.ttl_ms:  # Redis answers, and refuses: that it is full is no outage
                raise
            return self._allowances.admit(request, weighing.by_plan)
        if verdict is Verdict.UNVERIFIED or verdict in _AGAIN:
            return await self._decide_by_lease(request, weighing.by_plan)
        self._allowances.refused(request.caller, verdict)
        return decision

    async def settle(self, settlement: Settlement) -> SettleResult:
        """Replace a call's hold by its actual use, once; return only when that is sure to happen.

        SPOOLED means that Redis did not acknowledge the settlement, and the worker's disk has it.
        CountersUnavailable means that it is stored nowhere, or that it is a release, which is sent again.
        Sets `settlement.credits` to the charge: for a One-Time service 0 except the first time, and less if
        prepaid money covers a price below one credit.
        """
        service, frame = settlement.service, settlement.frame
        if not isinstance(frame, Frame):
            frame = self._frames.frame_of(settlement.caller, settlement.user, service, settlement.budgets)
        calls = self._allowances.calls
        local = len(calls) > 0 and settlement.request_id in calls
        if local and not settlement.charge:
            alone = calls[settlement.request_id].alone
            self._allowances.over(settlement, SettleResult.UNKNOWN)
            if alone and not self._wire.available:
                return SettleResult.UNKNOWN
        arguments = self._settle_arguments(frame, settlement)
        wire, settled = self._wire, _UNVERIFIED
        try:
            wait = wire.send_call(frame.settle, settlement.request_id.encode(), arguments)
            asked_at = wire.asked_at
            answer = cast("bytes", await wait)
            settled = (
                _DONE if answer[:8] == _DONE_CODE else SETTLE_RESULTS.read(answer, settlement.request_id)
            )
            self._settle_took(wire.answered_at - asked_at)
        except CountersUnavailable:
            answer = b""
        if settled is not _UNVERIFIED:
            if settlement.charge:
                self._log.note(arguments[KEPT_AT:], answer)
            if service.one_time or settlement.over:  # only Redis knows the charge
                settlement.credits = SETTLED.read(answer)["credits"] if settled is _DONE else 0
            if local:
                self._allowances.over(settlement, settled)
            return settled
        if not settlement.charge:
            self._keep_release(settlement)
            self.releases.owe(settlement)
            raise CountersUnavailable
        return await self._spool(settlement, arguments[KEPT_AT:])

    # --- one method a script ------------------------------------------------------------

    def _learn(self, request: HoldRequest, decision: Refused) -> None:
        """Change a request to be sent again: note its tenant's plan, or use the budgets' shared account."""
        if decision.verdict is Verdict.OTHER_PLAN:
            self._directory.weighing.learn(request.caller.tenant_id, decision.limit)
        else:
            request.budgets = replaced(request.budgets, decision.used)
            request.names = tuple([budget.name for budget in request.budgets])
            self.crowded.met(request.caller.organization_id, request.budgets)

    def _give_up(self, wait: Wait[Reply], request: HoldRequest) -> None:
        """Release the hold of a request that got no answer in time, in case Redis admits it after all."""
        if not request.raises:  # otherwise its caller may repeat it under the same id
            self._keep_release(_release_of(request))
        if self._wire.connected:
            wait.give_up(partial(self._came_late, request))
        else:
            self._came_late(request, None)

    def _came_late(self, request: HoldRequest, answer: Reply) -> None:
        """Release the hold of a request that was given up, if the late `answer` admits it or is None (lost).

        A call that runs on a lease meanwhile keeps its hold.
        """
        if request.request_id in self._allowances.calls:
            return
        known = isinstance(answer, bytes)
        if known and not packing.is_admitted(cast("bytes", answer)):
            return
        self.releases.owe(_release_of(request), at_once=known)

    def _keep_release(self, release: Settlement) -> None:
        """Store the release of a long hold in the log, to outlive this worker; short holds expire soon."""
        if release.hold_ttl_ms > self._ttl_ms and not self.releases.owes(release):
            frame = self._frames.frame_of(release.caller, release.user, release.service, release.budgets)
            self._log.spool(self._settle_arguments(frame, release)[KEPT_AT:], RELEASE)

    def _find_new_primary(self, partition: int) -> Counters | None:
        """Return the counters of a partition's present primary; None if this object is for that primary."""
        other = self.of_new_primary(partition) if self.of_new_primary is not None else self
        return None if other is self else other

    async def _decide_by_lease(
        self, request: HoldRequest, by_plan: Mapping[int, Weights]
    ) -> Admitted | Refused:
        """Decide a request of an unverified partition: by the partition's new primary, or by the lease."""
        partition = request.caller.partition
        if self.wait_for_handover is not None:
            await self.wait_for_handover(partition)
        other = self._find_new_primary(partition)
        if other is not None:
            return await other.reserve(request)
        if request.ttl_ms:
            raise CountersUnavailable
        return self._allowances.admit(request, by_plan)

    def send_release(self, release: Settlement) -> Wait[Reply]:
        """Send a release: the end of a hold without a charge."""
        other = self._find_new_primary(release.caller.partition)
        if other is not None:
            return other.send_release(release)
        frame = self._frames.frame_of(release.caller, release.user, release.service, release.budgets)
        arguments = self._settle_arguments(frame, release)
        return self._wire.send_call(frame.settle, release.request_id.encode(), arguments, at_once=True)

    def _settle_arguments(self, frame: Frame, settlement: Settlement) -> bytes:
        """Return the encoded arguments of `settle`."""
        attribution, metadata = settlement.attribution.encode(), settlement.metadata
        wire, counted, names = self._wire, b"", frame.names
        if names:
            counted = packed(settlement.money, settlement.budget_tokens, 1 if settlement.charge else 0)
        return packed(  # the fields of `SETTLEMENT` and `PAID`
            SETTLE_HEAD, wire.batch, BYTES[LAYOUT], pack_run_id(wire.run_id),
            BYTES[packing.MODE_CHARGE if settlement.charge else packing.MODE_RELEASE],
            settlement.tokens, settlement.of_quota, settlement.credits, settlement.units, settlement.over,
            frame.who, settlement.request_id, frame.settle_user, bulk_head(len(attribution)), attribution,
            b"\r\n", bulk_head(len(metadata)), metadata, frame.settle_end, counted, names,
        )  # fmt: skip

    async def _spool(self, settlement: Settlement, arguments: bytes) -> SettleResult:
        """Store a settlement in the log and return SPOOLED; CountersUnavailable if the log cannot store it.

        Either way, the use of the call counts against the worker's lease.
        """
        try:
            await self._log.spool(arguments)
        except CountersUnavailable:
            self._allowances.over(settlement, _DONE)
            raise
        self._allowances.over(settlement, SettleResult.SPOOLED)
        return SettleResult.SPOOLED


def _release_of(request: HoldRequest) -> Settlement:
    return Settlement(
        request.caller, request.request_id, request.user, request.service, charge=False,
        budgets=_names(request), hold_ttl_ms=request.ttl_ms,
    )  # fmt: skip


def _names(request: HoldRequest) -> tuple[str, ...]:
    """Return the names of a call's budget accounts."""
    return request.names or (
        tuple([budget.name for budget in request.budgets]) if request.budgets else NO_BUDGETS
    )
