"""The counters as a gateway worker uses them: reserve, settle, extend, one method for each script.

The bytes of a script call are the same for all calls of a caller, except for a few fields. So they are
encoded once for each caller and cached (`Frame`, bounded). A settlement that Redis did not acknowledge is
stored in the worker's log and sent again from there: settling twice charges once.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Generic, TypeVar, cast

from gateway.core.accounts.budgets import DEFINED_WINDOW, OTHERS
from gateway.core.accounts.plans import Weights
from gateway.core.calls.tariff import extended
from gateway.core.joined import packed
from gateway.core.layout import LAYOUT
from gateway.core.model import (
    BudgetAccount,
    Decision,
    HoldExtension,
    HoldRequest,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.catalogue import unheard
from gateway.counters.layouts import packing
from gateway.counters.layouts.accounts import FLAG_RAISES
from gateway.counters.layouts.packing import BYTES, SETTLED, code_of, pack_run_id, replaced
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
from gateway.counters.redis.cluster import RedisConnections, Shards
from gateway.counters.redis.connection import RedisConnection, encode_script
from gateway.counters.settlement_log.log import RELEASE, SettlementLog
from gateway.errors import CountersRefused, CountersUnavailable

# The holds of running calls: renewed while a call runs, and raised if a stream has used up its hold.
#
# One call of `extend` renews many, by partition. Each granted amount is stored in its `HoldExtension`.

EXTEND_BATCH_MAX = 64
EXTEND_MARGIN_TOKENS = 256
OUTGROWN_S = 0.02
MISSED_S = 0.5
CUT, REFUSED = 2, 3


class LiveHolds:
    """The holds of one worker's running calls. `took` gets the seconds that each `extend` took."""

    def __init__(
        self,
        wires: RedisConnections,
        allowances: Allowances,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Callable[[float], None],
    ) -> None:
        self._wires, self._allowances = wires, allowances
        self._ttl_ms, self._clock, self._extend_took = hold_ttl_ms, clock, took
        self._live: dict[str, HoldExtension] = {}
        self._outgrown: dict[str, HoldExtension] = {}
        self._missed = False
        self._extending: asyncio.Task[None] | None = None

    @property
    def live(self) -> int:
        """The number of watched calls."""
        return len(self._live)

    def watch(self, observed: HoldExtension) -> None:
        """Renew the hold of this running call until `unwatch`."""
        self._live[observed.request_id] = observed

    def unwatch(self, observed: HoldExtension) -> None:
        """Stop renewing the hold of a call that ended and settles now."""
        self._live.pop(observed.request_id, None)
        self._outgrown.pop(observed.request_id, None)

    def outgrown(self, observed: HoldExtension) -> None:
        """Raise the hold of a watched call that has used all of it, together with other such calls."""
        if self._allowances.outgrown(observed, EXTEND_MARGIN_TOKENS):
            observed.end_request()
            return
        self._outgrown[observed.request_id] = observed
        if self._extending is None or self._extending.done():
            self._extending = asyncio.get_running_loop().create_task(self._extend_outgrown())

    async def keep_extending(self) -> None:
        """Renew the holds of all running calls three times in `ttl_ms`, or soon after a failure."""
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

    async def _extend_each(self, observations: list[HoldExtension]) -> None:
        by_partition: dict[int, list[HoldExtension]] = {}
        for observed in observations:
            by_partition.setdefault(observed.caller.partition, []).append(observed)
        for partition, live in by_partition.items():
            for start in range(0, len(live), EXTEND_BATCH_MAX):
                await self._extend(partition, live[start : start + EXTEND_BATCH_MAX])

    async def _extend(self, partition: int, live: list[HoldExtension]) -> None:
        calls = [(one, EXTEND_MARGIN_TOKENS) for one in live]
        wire = self._wires.of(partition)
        keys, arguments = packing.extend(wire.run_id, self._ttl_ms, partition, calls)
        started = self._clock()
        try:
            answer = await in_task(wire.send(encode_script("extend", keys, arguments)))
        except CountersUnavailable:
            self._missed = True
            return
        self._extend_took(self._clock() - started)
        self._missed = self._missed or packing.code_of(cast("bytes", answer)) == Verdict.UNVERIFIED
        answers = packing.extended(cast("bytes", answer))
        for one, (tokens, credits_, exhausted, money, raw_tokens) in zip(live, answers, strict=False):
            if tokens >= 0:
                refused = exhausted == REFUSED
                extended(one, tokens, credits_, money, raw_tokens, refused=refused)
                if not refused:
                    one.exhausted, one.cut = exhausted > 0, exhausted == CUT
            one.end_request()


# Holds that no caller waits for any more: they are released as soon as Redis answers.
#
# A `reserve` may be admitted after its caller gave up, and a release may get no answer. Pending releases are
# remembered here until their holds expire, up to a maximum. Beyond it, or if this worker dies, a call's hold
# ends at its deadline. The release of a hold with a longer life is also in the log.

RELEASES_MAX = 10_000
BATCH_MAX = 500
AGAIN_S, AGAIN_S_MAX = 0.1, 1.0
# A broken connection's last commands may run after the first release on the next one.
ASKED_MAX = 5


@dataclass(slots=True)
class _PendingRelease:
    """A hold to release before its deadline; `asked` counts answers that the hold is unknown."""

    settlement: Settlement
    until: float
    sent: Wait[Reply] | None = None
    asked: int = 0


class Releases:
    """The releases that this worker has yet to send. `send` sends one, under the current run id."""

    def __init__(
        self,
        wires: RedisConnections,
        send: Callable[[Settlement], Wait[Reply]],
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._wires, self._send, self._clock = wires, send, clock
        self._ttl_s, self._owed_max = hold_ttl_s, RELEASES_MAX
        self._owed: dict[str, _PendingRelease] = {}
        self._releasing: asyncio.Task[None] | None = None

    def owes(self, settlement: Settlement) -> bool:
        """Return whether the release of this hold is pending."""
        return settlement.request_id in self._owed

    def forget(self, request: HoldRequest) -> None:
        """Cancel the pending release of a hold, because its request is sent again to raise it."""
        if request.raises:
            self._owed.pop(request.request_id, None)

    def owe(self, settlement: Settlement, *, at_once: bool = False) -> None:
        """Release the settlement's hold when Redis is reachable; with `at_once`, before any other command."""
        before = self._owed.get(settlement.request_id)
        if before is not None and not settlement.service.id:
            return  # a pending release ends the hold whatever it was raised to; that of its head does not
        one = _PendingRelease(settlement, self._clock() + max(self._ttl_s, settlement.hold_ttl_ms / 1000))
        if at_once:
            one.sent = self._send(settlement)
        if len(self._owed) < self._owed_max:
            self._owed[settlement.request_id] = one
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        pause = AGAIN_S
        while before := len(self._owed):
            there = ((name, one) for name, one in self._owed.items() if self._is_there(one))
            await self._release_some(dict(islice(there, BATCH_MAX)))
            now = self._clock()
            for request_id in [name for name, one in self._owed.items() if one.until <= now]:
                del self._owed[request_id]
            if self._owed:
                await asyncio.sleep(pause)
                pause = AGAIN_S if len(self._owed) < before else min(2 * pause, AGAIN_S_MAX)

    def _is_there(self, one: _PendingRelease) -> bool:
        """Return whether the primary that has the partition of the release `one` is connected."""
        return self._wires.of(one.settlement.caller.partition).connected

    async def _release_some(self, some: dict[str, _PendingRelease]) -> None:
        waits = [one.sent or self._send(one.settlement) for one in some.values()]
        for (request_id, one), wait in zip(some.items(), waits, strict=True):
            one.sent = None
            try:
                code = code_of(cast("bytes", await in_task(wait)))
            except CountersUnavailable:
                continue
            one.asked += code == SettleResult.UNKNOWN
            if code not in {SettleResult.UNVERIFIED, SettleResult.UNKNOWN} or one.asked >= ASKED_MAX:
                self._owed.pop(request_id, None)


# Budgets with an account for each user, whose maximum of accounts is reached: counted and logged.
#
# Callers name their users, so a caller that makes up names uses up the accounts. The log names the budget and
# its organization, once a minute at most.

TELL_INTERVAL_S: Final = 60.0


class AccountLimit:
    """Counts, as `calls`, this worker's calls that share an account because a budget has its maximum."""

    __slots__ = ("_clock", "_log", "_told", "calls")

    def __init__(self, clock: Callable[[], float], log: Callable[..., None]) -> None:
        self.calls = 0
        self._clock, self._log = clock, log
        self._told = -TELL_INTERVAL_S

    def met(self, organization_id: int, accounts: Iterable[BudgetAccount]) -> None:
        """Count a call that takes from a shared account, because its budget has the maximum of separate ones.

        Log these budgets once a minute at most.
        """
        self.calls += 1
        now = self._clock()
        if now - self._told < TELL_INTERVAL_S:
            return
        self._told = now
        budgets = [
            int(DEFINED_WINDOW.struct.unpack_from(one.defined)[0])
            for one in accounts
            if one.name.endswith(f":{OTHERS}") and one.defined
        ]
        self._log(
            "no place is left for another account of a budget with each: newcomers share one",
            organization_id=organization_id, budget_ids=budgets, calls_until_now=self.calls, level="warning",
        )  # fmt: skip


# Each is reported once: a newer catalogue, another plan of the tenant, accounts that cannot be made.
RESERVE_TRIES = 4
_AGAIN = frozenset({Verdict.STALE, Verdict.OTHER_PLAN, Verdict.OTHER_ACCOUNT})
_ADMITTED, _DONE, _UNVERIFIED = Verdict.ADMITTED, SettleResult.DONE, SettleResult.UNVERIFIED
_SETTLED = {struct.pack("<d", settled): settled for settled in SettleResult}


class Counters(LiveHolds):
    """The limits and accounts in Redis, for one worker. `took` gets each script's seconds, by verb.

    `log` stores settlements, acknowledged or not; `say` logs for people. In a cluster there is one object for
    each primary: `elsewhere` returns the present one of a partition, `handed_over` waits while a partition
    moves, and all share `releases`.
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
        self.elsewhere: Callable[[int], Counters] | None = None
        self.handed_over: Callable[[int], Wait[None]] | None = None
        self._log = log
        self.crowded = AccountLimit(clock, say)
        self._directory = directory
        self._frames = frames if frames is not None else Frames()
        self.releases = Releases(wire, self.send_release, hold_ttl_ms / 1000, clock)
        self._reserve_took, self._settle_took = took["reserve"], took["settle"]

    async def reserve(self, request: HoldRequest) -> Decision:
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
                        needed, ceiling, least = request.weighed(weights)
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
                verdict = decision.verdict
                if verdict is _ADMITTED:
                    self._allowances.admitted_there(request, decision)
                    decision.weights, decision.frame = weights, frame
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
            if wire.available or request.ttl_ms:  # Redis answers, and refuses: that it is full is no outage
                raise
            return self._allowances.admit(request, weighing.by_plan)
        if verdict is Verdict.UNVERIFIED or verdict in _AGAIN:
            return await self._unserved(request, weighing.by_plan)
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
            settled = _SETTLED[answer[:8]]
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

    def _learn(self, request: HoldRequest, decision: Decision) -> None:
        """Change a request to be sent again: note its tenant's plan, or use the budgets' shared account."""
        if decision.verdict is Verdict.OTHER_PLAN:
            self._directory.weighing.learn(request.caller.tenant_id, decision.limit)
        else:
            request.budgets = replaced(request.budgets, decision.used)
            request.names = tuple([one.name for one in request.budgets])
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

    def _elsewhere(self, partition: int) -> Counters | None:
        """Return the counters of a partition's present primary; None if this object is for that primary."""
        other = self.elsewhere(partition) if self.elsewhere is not None else self
        return None if other is self else other

    async def _unserved(self, request: HoldRequest, by_plan: Mapping[int, Weights]) -> Decision:
        """Decide a request of an unverified partition: by the partition's new primary, or by the lease."""
        partition = request.caller.partition
        if self.handed_over is not None:
            await self.handed_over(partition)
        other = self._elsewhere(partition)
        if other is not None:
            return await other.reserve(request)
        if request.ttl_ms:
            raise CountersUnavailable
        return self._allowances.admit(request, by_plan)

    def send_release(self, release: Settlement) -> Wait[Reply]:
        """Send a release: the end of a hold without a charge."""
        other = self._elsewhere(release.caller.partition)
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
            counted = packed(settlement.money, settlement.raw_tokens, 1 if settlement.charge else 0)
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
    return request.names or (tuple([one.name for one in request.budgets]) if request.budgets else NO_BUDGETS)


# The counters of a worker whose Redis is a cluster: one `Counters` for each primary, chosen by partition.
#
# A call depends only on the circuit breaker, history and queue of its own primary. Without a cluster a worker
# has one `Counters`.

T = TypeVar("T")


class _PerConnection(Generic[T]):
    """One object for each connection to a primary, made by `make` when it is first needed."""

    def __init__(self, shards: Shards, make: Callable[[RedisConnection], T]) -> None:
        self._shards, self._make = shards, make
        self._made: dict[RedisConnection, T] = {}

    def of(self, partition: int) -> T:
        """Return the object made for the primary that has a partition; make it if it is missing."""
        wire = self._shards.of(partition)
        found = self._made.get(wire)
        if found is None:
            there = set(self._shards.wires)
            self._made = {one: made for one, made in self._made.items() if one in there}
            found = self._made[wire] = self._make(wire)
        return found


class ShardedCounters:
    """The counters of all primaries. `make` makes those of one; `live` are the holds of all running calls.

    Releases pending for a primary that was replaced are sent to the partition's new one.
    """

    def __init__(
        self,
        shards: Shards,
        make: Callable[[RedisConnection], Counters],
        live: LiveHolds,
        crowded: AccountLimit,
        *,
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.crowded = crowded
        self._shards, self._make, self._live = shards, make, live
        self._of = _PerConnection(shards, self._begun).of
        self._releases = Releases(shards, self._send_release, hold_ttl_s, clock)

    def reserve(self, request: HoldRequest) -> Awaitable[Decision]:
        return self._of(request.caller.partition).reserve(request)

    def settle(self, settlement: Settlement) -> Awaitable[SettleResult]:
        return self._of(settlement.caller.partition).settle(settlement)

    def watch(self, observed: HoldExtension) -> None:
        self._live.watch(observed)

    def unwatch(self, observed: HoldExtension) -> None:
        self._live.unwatch(observed)

    def outgrown(self, observed: HoldExtension) -> None:
        self._live.outgrown(observed)

    async def keep_extending(self) -> None:
        await self._live.keep_extending()

    def _begun(self, wire: RedisConnection) -> Counters:
        counters = self._make(wire)
        counters.elsewhere, counters.handed_over = self._of, self._shards.handed_over
        counters.releases, counters.crowded = self._releases, self.crowded
        return counters

    def _send_release(self, release: Settlement) -> Wait[Reply]:
        return self._of(release.caller.partition).send_release(release)
