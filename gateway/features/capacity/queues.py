"""Queues of one worker for calls that wait for their upstream's capacity.

An account in Redis decides which calls are next among all workers (`share.lua`). A worker sends the first
calls of each share in one request, has one request under way for each account, and repeats it after the time
in the answer. A new call is admitted at once if there is room.

While Redis is unavailable no call waits: the upstream's own limits still apply.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice, zip_longest
from typing import Final

from gateway.core.accounts.definitions import Share
from gateway.core.calls.routes import CapacityLimits
from gateway.core.families.refusal import RETRY_HELPS_S
from gateway.core.histograms import Histogram
from gateway.core.http_limits import HttpLimits
from gateway.core.shares import FairShares
from gateway.core.wait import Wait, begin
from gateway.core.wait_hints import stated_limits
from gateway.errors import CountersRefused, CountersUnavailable, UpstreamFull
from gateway.features.capacity.accounts import CapacityAsk, CapacityEnd, CapacityPort
from gateway.features.capacity.limits import LearnedLimits, ShareTable, account_of
from gateway.http.admitted_call import AdmittedCall
from gateway.http.ports import Ports
from gateway.http.protocol.answer import LIMITED, AnswerHead
from gateway.http.upstream.pool import Upstream

# Maxima of one request to an account: calls, of those calls of batches, and calls of one share.
ASKS_MAX: Final = 40
BATCH_ASKS: Final = 8
SHARE_ASKS_MAX: Final = 16
# Time to the next request to an account: least, most, and if no call waits but an ended call is to be
# reported.
AGAIN_S_MIN, AGAIN_S_MAX, TOLD_S = 0.005, 0.2, 0.25
# Interval at which running calls are confirmed; those of a dead worker are not, and expire.
GOING_S: Final = 10.0
# Maximum of ended calls and of unused amounts that wait to be reported (the oldest are dropped), and of each
# in one request.
UNTOLD_MAX: Final = 10_000
TOLD_MAX: Final = 1_000
# Maximum time that a stopping worker waits until its last ended calls are reported.
LAST_TOLD_S_MAX: Final = 2.0
# The mark of a call that was admitted because the account was unavailable.
UNASKED: Final = 3


class WaitingCall:
    """One call in a queue: its share, the tokens it needs, its deadline, and the `Wait` for admission."""

    __slots__ = ("asked", "batch", "id", "let_in", "need", "organization_id", "share", "size", "until")

    def __init__(  # noqa: PLR0917  # what it is made of
        self, id_: str, share: Share, organization_id: int, batch: int, need: int, size: int, until: float
    ) -> None:
        self.id, self.share, self.organization_id = id_, share, organization_id
        self.batch, self.need, self.size, self.until = batch, need, size, until
        self.asked = 0
        self.let_in: Wait[int] = Wait()


class CapacityQueues:
    """All capacity queues of a worker, one for each upstream and model; implements `UpstreamLimiter`."""

    def __init__(
        self, accounts: CapacityPort, ports: Ports, loop: asyncio.AbstractEventLoop, limits: HttpLimits
    ) -> None:
        self.accounts, self.ports, self.loop = accounts, ports, loop
        # By upstream: seconds that calls waited, and number of calls that waited in vain.
        self.wait_seconds: dict[str, Histogram] = {}
        self.refused_calls: dict[str, int] = {}
        # Numbers of waiting calls (interactive, of batches), and the bytes of their bodies.
        self.places, self.bytes = (FairShares(), FairShares()), FairShares()
        self._queues: dict[tuple[str, str], CapacityQueue] = {}
        self._learned: dict[str, LearnedLimits] = {}
        self._table = ShareTable()
        self._wait_s = 0.0
        self.renew(limits)

    def renew(self, limits: HttpLimits) -> None:
        """Apply these limits from the next call on."""
        self._wait_s = limits.capacity_wait_s
        share, largest = limits.capacity_waiting_share, limits.body_bytes_max
        for places in self.places:
            places.bound_by_share(limits.capacity_waiting_max // 2, share)
        self.bytes.bound_by_share(max(limits.capacity_waiting_bytes_max, 2 * largest), share, largest)

    def _enter(self, call: WaitingCall) -> bool:
        """Acquire a place in the queue and memory for the body; return False if either is full."""
        if not self.places[call.batch].acquire(call.organization_id):
            return False
        if self.bytes.acquire(call.organization_id, call.size):
            return True
        self.places[call.batch].release(call.organization_id)
        return False

    def _leave(self, call: WaitingCall) -> None:
        self.places[call.batch].release(call.organization_id)
        self.bytes.release(call.organization_id, call.size)

    async def finish(self, within_s: float = LAST_TOLD_S_MAX) -> None:
        """Wait up to `within_s` seconds for the reports of ended calls; Redis lets unreported ones expire."""
        until = self.loop.time() + within_s
        while self._untold() and self.loop.time() < until:  # noqa: ASYNC110  # a round begins the next one
            await asyncio.sleep(AGAIN_S_MIN)

    def _untold(self) -> bool:
        """Start to report the ended calls of all upstreams and models; return whether some are under way."""
        return bool([queue for queue in self._queues.values() if queue.finish()])

    def snapshot(self) -> dict[str, object]:
        """Return the metrics of waiting and refused calls by upstream, as values for JSON."""
        waiting: dict[str, int] = {}
        for (upstream, _), queue in self._queues.items():
            waiting[upstream] = waiting.get(upstream, 0) + queue.length
        return {
            "capacity_waiting": list(waiting.items()),
            "capacity_wait_seconds": {name: times.snapshot() for name, times in self.wait_seconds.items()},
            "capacity_refused_calls": list(self.refused_calls.items()),
        }

    def learn(self, upstream: Upstream, model: str, key: int, answer: AnswerHead) -> None:
        """Store the upstream's limits for a model and key, if the head of an answer states them.

        `key` is the index of the upstream's key.
        """
        capacity = upstream.target.capacity
        if capacity is None or not capacity.learned:
            return
        if answer.limits and (answer.status == 200 or answer.status in LIMITED):
            requests, tokens = stated_limits(answer.limits)
            if requests or tokens:
                self._learned.setdefault(upstream.name, LearnedLimits()).note(model, key, requests, tokens)

    async def take(self, admitted: AdmittedCall, upstream: Upstream, waits: bool) -> None:
        """Acquire the capacity of an upstream that a call needs, or wait for room.

        Raise `UpstreamFull` if the wait is too long, or at once if there is no room and `waits` is False.
        """
        capacity, ports, call = upstream.target.capacity, self.ports, admitted.call
        attempt = admitted.attempt
        assert capacity is not None
        learned, keys = self._learned.get(upstream.name), len(upstream.accounts)
        model, limits = account_of(capacity, attempt.model or call.spec.model, learned, keys)
        if limits == _UNLIMITED:
            return
        queue = self._queues.get((upstream.name, model))
        if queue is None:
            queue = self._queues[upstream.name, model] = CapacityQueue(self, upstream.name, model)
        queue.limits = limits
        shares = ports.directory.shares()
        if shares is not self._table.known:
            self._table = ShareTable(shares)
        caller = admitted.caller
        share = self._table.of(upstream.name, attempt.model or call.spec.model, caller)
        batch = int(share.is_batch(caller, admitted.head.attribution.priority))
        need = ports.estimator.hold(call, caller.organization_id, admitted.service.key, binds=False).need
        began = ports.seconds()
        waiting_call = WaitingCall(
            admitted.request_id, share, caller.organization_id, batch, need,
            max(1, len(call.body.content)), began + self._wait_s if waits else began,
        )  # fmt: skip
        if not self._enter(waiting_call):
            raise queue.refusal(waiting_call)
        attempt.waits = True
        try:
            queue.enter(waiting_call)
            by = await waiting_call.let_in
        except BaseException:
            queue.leave(waiting_call)
            raise
        finally:
            attempt.waits = False
            self._leave(waiting_call)
        if waiting_call.asked > 1:
            waited = ports.seconds() - began
            attempt.waited_ms = max(1, round(waited * 1000))
            waits_there = self.wait_seconds.get(upstream.name)
            if waits_there is None:
                waits_there = self.wait_seconds[upstream.name] = Histogram()
            waits_there.observe(waited)
        admitted.room = partial(queue.end, waiting_call, by)


class CapacityQueue:
    """The queue of one account: rows of interactive calls and of calls of batches, each by share."""

    def __init__(self, queues: CapacityQueues, upstream: str, model: str) -> None:
        self.limits = CapacityLimits()
        self._queues, self._upstream, self._model = queues, upstream, model
        self._waiting: tuple[dict[str, deque[WaitingCall]], ...] = ({}, {})
        self._asking = self._asks_anew = False
        self._timer: asyncio.TimerHandle | None = None
        self._asks_at = 0.0  # a handle of no delay has no time
        self._wait_ms = 0
        self._ended: list[CapacityEnd] = []
        self._over: list[str] = []
        self._going: dict[str, None] = {}
        self._told_at = 0.0

    @property
    def length(self) -> int:
        """The number of waiting calls."""
        return sum(len(call) for calls in self._waiting for call in calls.values())

    def enter(self, call: WaitingCall) -> None:
        """Add a call to the queue; request capacity at once if it is the first call of its share."""
        calls = self._waiting[call.batch].setdefault(call.share.name, deque())
        calls.append(call)
        if len(calls) > 1:
            call.asked = 1  # counts as a request without success, like those of the calls before it
        elif self._asking:
            self._asks_anew = True
        else:
            self._begin_round()

    def leave(self, call: WaitingCall) -> None:
        """Remove a call whose client left; capacity that Redis still grants to it is released."""
        self._remove(call)
        call.until = 0.0

    def end(self, call: WaitingCall, by: int, tokens: int, forwarded: bool) -> None:
        """Note the end of an admitted call, to give back the capacity that it did not use.

        `by` says how Redis admitted the call, `tokens` were used; a call not `forwarded` used no request
        either.
        """
        if self._going.pop(call.id, _NOT_THERE) is None:
            self._over.append(call.id)
        requests, left = int(not forwarded), call.need - tokens
        if by != UNASKED and (requests or left):
            self._ended.append(CapacityEnd(call.share.name, by, call.share.weight, requests, left))
        if self._over or self._ended:
            self._again(AGAIN_S_MIN if self.length else TOLD_S)

    def finish(self) -> bool:
        """Report the ended calls to Redis at once; return whether a report is still under way."""
        if self._over or self._ended:
            self._begin_round()
        return self._asking

    def _put_back(self, ended: list[CapacityEnd], over: list[str]) -> None:
        """Queue the failed reports `ended` and `over` again, ahead of those that were added later."""
        self._ended = (ended + self._ended)[-UNTOLD_MAX:]
        self._over = (over + self._over)[-UNTOLD_MAX:]

    def refusal(self, call: WaitingCall) -> UpstreamFull:
        """Return the refusal of a call whose wait is too long, with the time when it may retry."""
        ports, limits, name = self._queues.ports, self.limits, call.share.name
        rows = [row for calls in self._waiting[: call.batch + 1] for row in calls.values()]
        before = len(self._waiting[call.batch].get(name, ()))
        others = sum(row[0].share.weight for row in rows if row[0].share.name != name)
        turns = max(1, before) * (others + call.share.weight) / call.share.weight
        minutes = max(
            turns / limits.requests_per_minute if limits.requests_per_minute else 0.0,
            turns * call.need / limits.tokens_per_minute if limits.tokens_per_minute else 0.0,
        )
        wait_s = max(1, math.ceil(minutes * 60), math.ceil(self._wait_ms / 1000))
        until = datetime.fromtimestamp(ports.refusals.now_ms() // 1000 + wait_s, UTC)
        refused, upstream = self._queues.refused_calls, self._upstream
        refused[upstream] = refused.get(upstream, 0) + 1
        return UpstreamFull(
            f"The capacity of the upstream {upstream} is used up. There is room for this call at "
            f"{until:%Y-%m-%dT%H:%M:%SZ}. Try again in {wait_s} s.",
            retry_after_s=wait_s,
            retry_helps=wait_s <= RETRY_HELPS_S,
        )

    # one request after the other

    def _begin_round(self) -> None:
        """Start to ask for the waiting calls, unless a round is in progress."""
        if not self._asking:
            self._asking = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            begin(self._round())

    def _again(self, seconds: float) -> None:
        """Schedule the next request for capacity in `seconds`, unless it is scheduled earlier already."""
        loop = self._queues.loop
        at = loop.time() + seconds
        if self._asking:
            return
        if self._timer is not None:
            if self._asks_at <= at:
                return
            self._timer.cancel()
        self._asks_at, self._timer = at, loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Refuse the calls whose deadline has passed, and request capacity for the others."""
        self._timer = None
        now = self._queues.ports.seconds()
        late = [
            call for calls in self._waiting for row in calls.values() for call in row if call.until <= now
        ]
        refused = [(call, self.refusal(call)) for call in late]
        for call in late:
            self._remove(call)
        if self.length or self._ended or self._over or self._going:
            self._begin_round()
        for call, refusal in refused:
            call.let_in.fail(refusal)

    async def _round(self) -> None:
        """Report ended calls to the shared account, and ask it for capacity for the next calls."""
        ports, accounts = self._queues.ports, self._queues.accounts
        calls = self._next()
        ended, over, now, going = self._ended[:TOLD_MAX], self._over[:TOLD_MAX], ports.seconds(), list[str]()
        self._ended, self._over = self._ended[TOLD_MAX:], self._over[TOLD_MAX:]
        if self._going and now - self._told_at >= GOING_S:
            going = list(self._going)
        try:
            answer = await accounts.ask(
                (self._upstream, self._model), self.limits, self._asks(calls), ended, over, going
            )
        except CountersUnavailable as error:
            # The end of a call may be reported twice. Its unused capacity must not: if the outcome is
            # unknown, it is not reported again.
            self._put_back(ended if isinstance(error, CountersRefused) else [], over)
            self._told_at = -GOING_S  # confirm all running calls as soon as the account answers
            answer = [0] + [UNASKED] * len(calls)
        else:
            self._told_at = now if going else self._told_at
        self._asking = False
        self._wait_ms = answer[0]
        self._take(calls, answer[1:], 0.0 if all(answer[1:]) else answer[0] / 1000)

    def _take(self, calls: list[WaitingCall], answers: list[int], again_s: float) -> None:
        """Process the answers to a capacity request: admit or refuse calls, and schedule the next request.

        `answers` are the answers to `calls`, in order. The next call may have room in `again_s` seconds.
        """
        let_in = [(call, by) for call, by in zip(calls, answers, strict=True) if by]
        for one, by in let_in:
            if self.limits.concurrency:  # an unconfirmed call may still be counted, later
                self._going[one.id] = None
            if one.until == 0.0:  # the client has left
                self.end(one, by, 0, forwarded=False)
            else:
                self._remove(one)
        now = self._queues.ports.seconds()
        late = [call for call, by in zip(calls, answers, strict=True) if not by and 0.0 < call.until <= now]
        refused = [(call, self.refusal(call)) for call in late]
        for one in late:
            self._remove(one)
        anew, self._asks_anew = self._asks_anew, False
        if self.length:
            self._again(0.0 if anew or not again_s else min(max(again_s, AGAIN_S_MIN), AGAIN_S_MAX))
        elif self._ended or self._over or (self._going and self._told_at < 0):
            self._again(TOLD_S)
        elif self._going:
            self._again(GOING_S)
        for one, by in let_in:
            if one.until:
                one.let_in.set(by)
        for one, refusal in refused:
            one.let_in.fail(refusal)

    def _next(self) -> list[WaitingCall]:
        """Return the next calls to request capacity for, from all shares in turn.

        Some of these requests are always for calls of batches.
        """
        interactive, batch = self._waiting
        calls = list(islice(_take_turns(interactive), ASKS_MAX - BATCH_ASKS))
        calls += islice(_take_turns(batch), ASKS_MAX - len(calls))
        return calls

    def _asks(self, calls: list[WaitingCall]) -> list[CapacityAsk]:
        """Return the requests for capacity of these calls, each with whether more of its share wait."""
        asked: dict[tuple[int, str], int] = {}
        for call in calls:
            call.asked += 1
            asked[call.batch, call.share.name] = asked.get((call.batch, call.share.name), 0) + 1
        capacity_asks: list[CapacityAsk] = []
        for call in calls:
            share, name = call.share, call.share.name
            more = len(self._waiting[call.batch][name]) > asked[call.batch, name]
            guaranteed = share.requests_per_minute, share.tokens_per_minute
            capacity_asks.append(
                CapacityAsk(call.id, name, share.weight, *guaranteed, call.batch, call.need, int(more))
            )
        return capacity_asks

    def _remove(self, call: WaitingCall) -> None:
        calls, name = self._waiting[call.batch], call.share.name
        row = calls.get(name)
        if row is not None and call in row:
            row.remove(call)
            if not row:
                del calls[name]


_UNLIMITED: Final = CapacityLimits()
_NOT_THERE: Final = object()


def _take_turns(calls: dict[str, deque[WaitingCall]]) -> Iterator[WaitingCall]:
    """Yield the first waiting call of each share, then the second, and so on.

    A share is an organization's part of the capacity. Of more than `ASKS_MAX` shares, some are left out, and
    come first the next time.
    """
    rows = [islice(row, SHARE_ASKS_MAX) for row in islice(calls.values(), ASKS_MAX)]
    if len(calls) > ASKS_MAX:
        for name in list(islice(calls, ASKS_MAX)):
            calls[name] = calls.pop(name)
    for turn in zip_longest(*rows):
        for call in turn:
            if call is not None:
                yield call
