"""Interfaces that the HTTP side needs from other packages; `gateway/app.py` provides the implementations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.calls.ports import CallPorts
from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldEnd
from gateway.core.accounts.upstream_jobs import Job
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.routes import Route
from gateway.core.circuit_breaker import CircuitBreaker
from gateway.core.empty_accounts import EmptyAccounts
from gateway.core.failures import Failures
from gateway.core.http_limits import HttpLimits
from gateway.core.lru import CachePool
from gateway.core.model import (
    Attribution,
    Caller,
)
from gateway.core.traces import Parent, Span, Trace
from gateway.core.unreported_failures import UnreportedFailures
from gateway.errors import InvalidRequest
from gateway.http.protocol.answer import AnswerHead
from gateway.http.tally import Tally
from gateway.http.upstream.dialing import LookUp, by_system

# Logs an event and its facts as one line. Gets no credential, body or metadata of a caller.
Log = Callable[..., None]
# Answers one request of an `Exchange` itself.
Answerer = Callable[[Any], Coroutine[Any, Any, None]]


async def refuse_later(*_: object) -> None:
    """Refuse a call that its upstream would complete in the background, if no feature follows such calls."""
    raise InvalidRequest("Nobody looks at its result here.", param="background")


class Tokens(Protocol):
    """Callers with a signed token of one of `issuers`; `accepts` is False without issuers."""

    accepts: bool
    issuers: tuple[str, ...]

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a verified token's digest from the cache; None if that is too old."""

    def identify(self, digest: str, token: bytes) -> Awaitable[Caller]:
        """Verify a token and return its caller.

        Fails with `InvalidApiKey`, `IssuerUnavailable` or `CountersUnavailable`.
        """


class HoldsPort(Protocol):
    """Holds that callers create and settle through the API, stored so that any worker finds them."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds."""

    def begin(self, caller: Caller, key: str, body: bytes, id_: str) -> Awaitable[tuple[str, bytes]]:
        """Return the id of the hold that belongs to an `Idempotency-Key`, and the stored answer or b"".

        `id_` is the id to use if the key is new. Fails with `IdempotencyConflict` or `CountersUnavailable`.
        """

    def forget(self, caller: Caller, key: str) -> Awaitable[None]:
        """Delete the `Idempotency-Key` of a refused request, so that the next request is a new one."""

    def enter(self, caller: Caller, id_: str) -> Awaitable[None]:
        """Count a hold that is about to be created among the caller's open holds.

        Fails with `TooManyHolds` if the caller has too many open, or with `CountersUnavailable`.
        """

    def leave(self, caller: Caller, id_: str) -> None:
        """Stop counting a hold as open, because its creation was refused.

        Does nothing if the hold was not counted, or is stored.
        """

    def keep(
        self, hold: CallerHold, key: str = "", body: bytes = b"", answer: bytes = b""
    ) -> Awaitable[None]:
        """Store a hold, and the `answer` to the request that created it.

        `key` is the request's `Idempotency-Key`, and `body` its body.
        """

    def find(self, caller: Caller, id_: str) -> Awaitable[CallerHold]:
        """Return the hold with this id of the caller's tenant.

        Fails with `HoldNotFound` or `CountersUnavailable`.
        """

    def end_of(self, hold: CallerHold) -> Awaitable[HoldEnd | None]:
        """Return the end of a hold as its caller decided it; None if no caller has ended the hold."""

    def decide(self, hold: CallerHold, end: HoldEnd) -> Awaitable[HoldEnd]:
        """Store `end` as the end of a hold unless another is stored already; return the stored end."""

    def ended(self, hold: CallerHold, end: HoldEnd) -> Awaitable[None]:
        """Store a hold with its end, which Redis has applied, for a limited time."""

    def is_gone(self, hold: CallerHold) -> Awaitable[bool]:
        """Return whether a hold reserves nothing any more: it has ended, or was charged when it expired."""

    def undecide(self, hold: CallerHold) -> Awaitable[None]:
        """Delete the stored end of a hold, because the hold's deadline passed before the end was applied."""

    def delete_later(self, caller: Caller, id_: str, route: str) -> Awaitable[None]:
        """Schedule the release of a hold for when Redis answers; finish once the schedule is on disk.

        Fails with `CountersUnavailable`.
        """

    def extend(
        self, hold: CallerHold, ttl_ms: int, wanted: HeldAmounts, definitions: tuple[bytes, ...] = ()
    ) -> Awaitable[HeldAmounts]:
        """Extend a hold to `ttl_ms` milliseconds from now, and enlarge it by up to `wanted`, as limits allow.

        `definitions` are those of its budget accounts now, empty for the stored one. Return the amounts that are
        held now. Fails with `HoldEnded` or `CountersUnavailable`.
        """


class JobsPort(Protocol):
    """Jobs of callers that an upstream runs later, such as batches."""

    def fetch(
        self, upstream: str, path: str, bytes_max: int, arrive: Callable[[int], None]
    ) -> Awaitable[bytes]:
        """Return a file of an upstream; `arrive` counts the bytes as they come, and may raise a `Refusal`.

        Fails with a `Refusal` that states the reason.
        """

    def ask(
        self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]
    ) -> Awaitable[tuple[int, bytes]]:
        """Send a GET request to an upstream; return the status and body. Fails with `UpstreamUnreachable`."""

    def open(self, job: Job) -> Awaitable[None]:
        """Store a job before its request is forwarded. Fails with `TooManyJobs` and `CountersUnavailable`."""

    def keep(self, job: Job) -> Awaitable[None]:
        """Store the present state of a job. Fails with `CountersUnavailable`."""

    def drop(self, job: Job) -> Awaitable[object]:
        """Delete a stored job, because the upstream did not create it."""

    def begun(self, job: Job) -> Awaitable[bool]:
        """Store a job with the id that its upstream gave it; return False if another job has this id.

        Fails with `CountersUnavailable` if the job could not be stored.
        """

    def find(self, caller: Caller, id_: str) -> Awaitable[Job | None]:
        """Return the job of the caller's organization with this upstream's id, or None."""

    def restore(self, partitions: Collection[int]) -> Awaitable[None]:
        """Store the jobs that this worker remembers again in partitions whose data Redis has lost."""

    def look(self, job: Job) -> Awaitable[bool]:
        """Check a job at its upstream, and charge it if it has ended.

        Return whether it has ended. Fails with a `Refusal`.
        """


class UpstreamLimiter(Protocol):
    """Calls wait at it for the stated capacity of their upstream; one serves all upstreams of a worker."""

    def renew(self, limits: HttpLimits) -> None:
        """Apply these limits from the next call on."""

    def take(self, admitted: Any, upstream: Any, waits: bool) -> Awaitable[None]:
        """Acquire the capacity of an upstream that an `AdmittedCall` needs, or wait for room.

        Raise `UpstreamFull` if the wait is too long, or at once if there is no room and `waits` is False.
        """

    def learn(self, upstream: Any, model: str, key: int, answer: AnswerHead) -> None:
        """Store the limits that an answer's head states for a model; `key` is the index of the credential."""

    def snapshot(self) -> dict[str, object]:
        """Return the metrics of waiting and refused calls as values for JSON."""

    def finish(self) -> Awaitable[None]:
        """Wait a moment until the last ended calls are reported."""


class Tracer(Protocol):
    """Records traces of requests for a collector. Never waits, never fails."""

    def begin(self, parent: Parent | None) -> Trace:
        """Start the trace of a request; decide now whether the trace is recorded."""

    def end(self, trace: Trace, spans: list[Span]) -> None:
        """Record the spans of an ended request's trace."""


@dataclass(frozen=True, slots=True)
class Ports(CallPorts):
    """Everything that the handling of a request uses, apart from the client's and the upstream's connection.

    `usage` answers `GET /.tollkeeper/usage` with a JSON body. `failing` limits how often upstream failures
    are logged. `seconds` is a monotonic clock. `access_log` turns on one line a request. `tracer` is None
    unless requests are traced (`TracedPlane`).
    `look_up` resolves an upstream's host name. Keys digested under `earlier_peppers` are accepted. `answers`
    are routes of features, `handlers` answer paths that already have a route, `open_socket` continues a call
    as a WebSocket, and `run_later` starts a call that its upstream completes later. `limiter` makes an
    `UpstreamLimiter` from these ports, the event loop and limits.
    """

    tokens: Tokens
    estimator: Estimator
    tally: Tally
    usage: Callable[[Caller, Attribution], Awaitable[bytes]]
    log: Log
    failures: Failures
    circuit_breaker: CircuitBreaker
    seconds: Callable[[], float]
    holds: HoldsPort
    jobs: JobsPort | None = None
    access_log: bool = False
    limiter: Callable[..., UpstreamLimiter] | None = None
    failing: UnreportedFailures = field(default_factory=UnreportedFailures)
    tracer: Tracer | None = None
    look_up: LookUp = by_system
    earlier_peppers: tuple[bytes, ...] = ()
    answers: Mapping[Route, Answerer] = field(default_factory=dict)
    handlers: Mapping[str, Answerer] = field(default_factory=dict)
    open_socket: Answerer | None = None
    run_later: Callable[[Any, Any], Coroutine[Any, Any, None]] = refuse_later
    caches: CachePool = field(default_factory=CachePool)
    empty: EmptyAccounts = field(default_factory=EmptyAccounts)
