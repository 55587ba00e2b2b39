"""Interfaces that the HTTP side needs from other packages; `gateway/app.py` provides the implementations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldEnd
from gateway.core.accounts.definitions import ModelLists, Share
from gateway.core.accounts.refusals import Refusals
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.accounts.upstream_jobs import Job
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.routes import ModelRule, Route
from gateway.core.circuit_breaker import CircuitBreaker, UnreportedFailures
from gateway.core.credentials import Failures
from gateway.core.empty_accounts import EmptyAccounts
from gateway.core.families.family import KEPT_OBJECTS
from gateway.core.http_limits import HttpLimits
from gateway.core.lru import CachePool
from gateway.core.model import (
    Attribution,
    Caller,
    Decision,
    HoldExtension,
    HoldRequest,
    RunRequest,
    Service,
    Settlement,
    SettleResult,
)
from gateway.core.traces import Parent, Span, Trace
from gateway.errors import InvalidRequest, RunNotFound
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


class DirectoryPort(Protocol):
    """Callers, services and prices from bounded caches that are at most a second old."""

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a credential's digest from the cache; None if unknown or too old."""

    def identify(self, digest: str) -> Awaitable[Caller]:
        """Look up the caller of a digest. Fails with `InvalidApiKey` or `CountersUnavailable`."""

    def know(self, organization_id: int) -> Awaitable[None]:
        """Load an organization's terms for a request that has no caller; fails like `identify`."""

    def service(self, key: str) -> Service | None:
        """Return the service with this key, or None if the catalogue of services lacks it."""

    def catalogue(self) -> Mapping[str, Service]:
        """Return every service by key. Fails with `CountersUnavailable`.

        The mapping is a new object after each change, so that callers can compare it by identity.
        """

    def models(self) -> tuple[ModelRule, ...]:
        """Return the configured models.

        The tuple is a new object after each change, so that callers can compare it by identity.
        """

    def shares(self) -> tuple[Share, ...]:
        """Return the configured shares of upstreams' capacity.

        The tuple is a new object after each change, so that callers can compare it by identity.
        """

    def resolve(self, caller: Caller, key: str) -> Service | None:
        """Return the service at the price of the caller's organization. Fails with `ServiceNotIncluded`."""

    def budgets(  # noqa: PLR0917  # whose call it is, and what it says
        self,
        caller: Caller,
        service_id: int,
        said: Attribution,
        call: CallRequest,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets | None:
        """Return the budgets that a call takes from, including those of its `run`; None if there are none.

        `said` is the attribution of the call. If a call is only considered, not made, `remember` is False,
        and the result is not cached. Fails with `CountersUnavailable`.
        """

    def model_lists(self, caller: Caller) -> ModelLists | None:
        """Return the model lists of the caller's organization, or None. Fails with `CountersUnavailable`."""

    def run_policies(self, caller: Caller) -> CallRunPolicies:
        """Return the rules that a caller's calls must meet about runs. Fails with `CountersUnavailable`."""

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        """Return the HTTP status and maximum wait in this caller's refusals for a used-up amount."""

    def pays_in(self, caller: Caller) -> str:
        """Return the currency that a caller's organization pays in."""

    def price(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return a model's price for the caller's organization at a time (Unix ms); None if unknown.

        With `own`, only prices in the organization's currency count. A price for calls to this `upstream` has
        precedence over a general one.
        """

    def base_rate(self, caller: Caller, at_ms: int) -> str | None:
        """Return the exchange rate of the organization's currency to the base currency at a time (Unix ms).

        Return None if the rate is unknown.
        """

    def price_as(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return the price of the model that is configured as a substitute for `model`, or None.

        The other parameters are those of `price`.
        """


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


class ObjectOwnersPort(Protocol):
    """The owners of objects that upstreams store."""

    def owned(self, caller: Caller, ids: Sequence[str]) -> Awaitable[bool]:
        """Return whether the caller's organization owns all ids. Fails with `CountersUnavailable`."""

    def refused(
        self, caller: Caller, ids: Sequence[str], unsure: Sequence[str] = ()
    ) -> Awaitable[str | None]:
        """Return one of `ids` that the caller's organization does not own, or of `unsure` that another owns.

        None if there is none. Fails with `CountersUnavailable`.
        """

    def keep(self, caller: Caller, ids: Sequence[str], kept: int = KEPT_OBJECTS) -> Awaitable[object]:
        """Store the caller's organization as the owner of these objects.

        `kept` says for how long, as one of the constants for lifetimes. The request is sent at once, whether
        or not the result is awaited.
        """

    def note(self, id_: str, payment: bytes) -> Awaitable[bytes | None]:
        """Store a payment for an object until its end, unless a later end is paid; return the one before.

        Fails with `CountersUnavailable`.
        """

    def noted(self, id_: str) -> Awaitable[bytes | None]:
        """Return the payment that is stored with an object, or None. Fails with `CountersUnavailable`."""


class RunsPort(Protocol):
    """Runs: budgets that callers create, and that their calls name."""

    def cached(self, caller: Caller, asked: RunRequest) -> Run | None:
        """Return the cached run that a call names, or None. Fails with `RunEnded` or `RunConflict`."""

    def find(self, caller: Caller, asked: RunRequest, policies: CallRunPolicies) -> Awaitable[Run]:
        """Return the run that a call names, and open it if it does not exist yet.

        A new run is soon forgotten unless a call of it is `admitted`. Fails like `cached`, or if the run
        cannot be opened.
        """

    def admitted(self, caller: Caller, run: Run) -> None:
        """Make the run of an admitted call permanent, together with the runs that contain it."""

    def tell(self, caller: Caller, id_: str) -> Awaitable[bytes]:
        """Return this run as JSON. Fails with `RunNotFound`, `RateLimited` or `CountersUnavailable`."""

    def end(self, caller: Caller, id_: str) -> Awaitable[None]:
        """End a run. Fails with `RunNotFound`, `RateLimited` or `CountersUnavailable`."""

    def restore(self, partitions: Collection[int]) -> Awaitable[None]:
        """Store the runs that this worker knows again in partitions whose data Redis has lost."""


class RefusedRuns:
    """Refuses calls that name a run, if no feature opens runs."""

    def cached(self, _: Caller, asked: RunRequest) -> Run | None:
        raise InvalidRequest(f"Runs are not installed here: leave the run {asked.id} out.")

    async def find(self, caller: Caller, asked: RunRequest, _: CallRunPolicies) -> Run:
        found = self.cached(caller, asked)
        assert found is not None
        return found

    def admitted(self, caller: Caller, run: Run) -> None:
        """Return at once: no call with a run is admitted."""

    async def tell(self, *_: object) -> bytes:
        raise RunNotFound

    async def end(self, *_: object) -> None:
        raise RunNotFound

    async def restore(self, _: Collection[int]) -> None:
        """Return at once: no run is known."""


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

    def extend(self, hold: CallerHold, ttl_ms: int, wanted: HeldAmounts) -> Awaitable[HeldAmounts]:
        """Extend a hold to `ttl_ms` milliseconds from now, and enlarge it by up to `wanted`, as limits allow.

        Return the amounts that are held now. Fails with `HoldEnded` or `CountersUnavailable`.
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


class CountersPort(Protocol):
    """The limits and the ledger in Redis."""

    def reserve(self, request: HoldRequest) -> Awaitable[Decision]:
        """Reserve a hold on every limit or on none. Fails with `CountersUnavailable`."""

    def settle(self, settlement: Settlement) -> Awaitable[SettleResult]:
        """Replace a hold by the actual use, and return the result. Fails with `CountersUnavailable`.

        The result SPOOLED means that this worker's log on disk has the settlement, which is not lost.
        """

    def watch(self, extension: HoldExtension) -> None:
        """Renew the hold of a long call until `unwatch`."""

    def unwatch(self, extension: HoldExtension) -> None:
        """Stop renewing a hold: its call is about to settle."""

    def request_extension(self, extension: HoldExtension) -> None:
        """Schedule an extension of the watched hold `extension`, which is used up."""


class Tracer(Protocol):
    """Records traces of requests for a collector. Never waits, never fails."""

    def begin(self, parent: Parent | None) -> Trace:
        """Start the trace of a request; decide now whether the trace is recorded."""

    def end(self, trace: Trace, spans: list[Span]) -> None:
        """Record the spans of an ended request's trace."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that the handling of a request uses, apart from the client's and the upstream's connection.

    `usage` answers `GET /.tollkeeper/usage` with a JSON body. `failing` limits how often upstream failures
    are logged. `seconds` is a monotonic clock. `access_log` turns on one line a request. `tracer` is None
    unless requests are traced (`TracedPlane`). With `refuse_unpriced` a model without a price is refused.
    `look_up` resolves an upstream's host name. Keys digested under `earlier_peppers` are accepted. `answers`
    are routes of features, `handlers` answer paths that already have a route, `open_socket` continues a call
    as a WebSocket, and `run_later` starts a call that its upstream completes later. `limiter` makes an
    `UpstreamLimiter` from these ports, the event loop and limits.
    """

    directory: DirectoryPort
    tokens: Tokens
    counters: CountersPort
    objects: ObjectOwnersPort
    estimator: Estimator
    tally: Tally
    usage: Callable[[Caller, Attribution], Awaitable[bytes]]
    log: Log
    failures: Failures
    refusals: Refusals
    cooling: CircuitBreaker
    seconds: Callable[[], float]
    holds: HoldsPort
    runs: RunsPort = field(default_factory=RefusedRuns)
    jobs: JobsPort | None = None
    access_log: bool = False
    limiter: Callable[..., UpstreamLimiter] | None = None
    failing: UnreportedFailures = field(default_factory=UnreportedFailures)
    refuse_unpriced: bool = False
    tracer: Tracer | None = None
    look_up: LookUp = by_system
    earlier_peppers: tuple[bytes, ...] = ()
    answers: Mapping[Route, Answerer] = field(default_factory=dict)
    handlers: Mapping[str, Answerer] = field(default_factory=dict)
    open_socket: Answerer | None = None
    run_later: Callable[[Any, Any], Coroutine[Any, Any, None]] = refuse_later
    caches: CachePool = field(default_factory=CachePool)
    empty: EmptyAccounts = field(default_factory=EmptyAccounts)
