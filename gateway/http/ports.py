"""What the data plane needs from others. `gateway/app.py` hands it over; no door is imported here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldEnd
from gateway.core.accounts.definitions import ModelLists
from gateway.core.accounts.jobs import Job
from gateway.core.accounts.refusals import Refusals
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.calls.capacity import CapacityAsk, CapacityEnd, CapacityLimits, Share
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.routes import ModelRule, Route
from gateway.core.circuit_breaker import CircuitBreaker, UnreportedFailures
from gateway.core.credentials import Failures
from gateway.core.families.family import KEPT_OBJECTS
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
from gateway.http.tally import Tally
from gateway.http.upstream.dialing import LookUp, by_system

# Writes one line of an event and its facts. Never given a credential, a body or a caller's metadata.
Log = Callable[..., None]
# Answers one request of an `Exchange` itself.
Answerer = Callable[[Any], Coroutine[Any, Any, None]]


class DirectoryPort(Protocol):
    """Callers and callable services. Bounded caches; never more than a second old."""

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a credential's digest, if it is known and fresh."""

    def identify(self, digest: str) -> Awaitable[Caller]:
        """Look a digest up. Fails with `InvalidApiKey` or `CountersUnavailable`."""

    def know(self, organization_id: int) -> Awaitable[None]:
        """Load an organization's terms, even if no caller was looked up; fails as `identify` does."""

    def service(self, key: str) -> Service | None:
        """Return the service of this key, if the catalogue has it."""

    def catalogue(self) -> Mapping[str, Service]:
        """Return every service by key, as a new object after a change. Fails with `CountersUnavailable`."""

    def models(self) -> tuple[ModelRule, ...]:
        """Return the models that people configured; another object once they are others."""

    def shares(self) -> tuple[Share, ...]:
        """Return the shares of upstreams' capacity; another object once they are others."""

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
        """Return the budgets a call takes from, if any, and those of its `run`. Fails with
        `CountersUnavailable`.

        Do not `remember` what a call would take from that nobody makes.
        """

    def model_lists(self, caller: Caller) -> ModelLists | None:
        """Return the model lists of the caller's organization, if any. Fails with `CountersUnavailable`."""

    def run_policies(self, caller: Caller) -> CallRunPolicies:
        """Return the run policies of a caller, mostly none. Fails with `CountersUnavailable`."""

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        """Return the form of this caller's refusals for a spent amount."""

    def pays_in(self, caller: Caller) -> str:
        """Return the currency that a caller's organization pays in."""

    def price(
        self, caller: Caller, model: str, ago_s: float, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return a model's price for the caller's organization `ago_s` seconds ago; None if unknown.

        With `own` only prices in its own currency count. The list of `upstream` counts first.
        """

    def base_rate(self, caller: Caller, ago_s: float) -> str | None:
        """Return the organization's currency per base unit `ago_s` seconds ago; None if unknown."""

    def price_as(
        self, caller: Caller, model: str, ago_s: float, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return the same of the model that stands in for one without a price, if one does."""


class Tokens(Protocol):
    """Who calls with a signed token of one of `issuers`; `accepts` says whether there is any."""

    accepts: bool
    issuers: tuple[str, ...]

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a verified token's digest while all facts behind it are fresh, else None."""

    def identify(self, digest: str, token: bytes) -> Awaitable[Caller]:
        """Verify a token. Fails with `InvalidApiKey`, `IssuerUnavailable` or `CountersUnavailable`."""


class ObjectOwnersPort(Protocol):
    """Whose the objects are that upstreams keep."""

    def owned(self, caller: Caller, ids: Sequence[str]) -> Awaitable[bool]:
        """Return whether all are the caller's organization's. Fails with `CountersUnavailable`."""

    def keep(self, caller: Caller, ids: Sequence[str], kept: int = KEPT_OBJECTS) -> Awaitable[object]:
        """Note that they are, and for how long; asked at once, whether it is awaited or not."""


class RunsPort(Protocol):
    """Budgets that callers make, which travel with their calls."""

    def cached(self, caller: Caller, asked: RunRequest) -> Run | None:
        """Return the run of a call, where it is known here. Fails with `RunEnded` or `RunConflict`."""

    def find(self, caller: Caller, asked: RunRequest, policies: CallRunPolicies) -> Awaitable[Run]:
        """Return the run of a call, opened where there is none yet; fails likewise, or as it cannot be
        opened.

        One that was opened is soon forgotten unless a call of it is `admitted`.
        """

    def admitted(self, caller: Caller, run: Run) -> None:
        """Store the run of an admitted call, and all that it draws from."""

    def tell(self, caller: Caller, id_: str) -> Awaitable[bytes]:
        """Return a run as JSON. Fails with `RunNotFound`, `RateLimited` or `CountersUnavailable`."""

    def end(self, caller: Caller, id_: str) -> Awaitable[None]:
        """End a run; fails likewise."""


class HoldsPort(Protocol):
    """Holds that callers take and settle themselves, as they are stored: any worker finds them."""

    def now_ms(self) -> int:
        """Return the time of day."""

    def begin(self, caller: Caller, key: str, body: bytes, id_: str) -> Awaitable[tuple[str, bytes]]:
        """Return the id of the hold of a request with this `Idempotency-Key`, and the answer it had before,
        if any.

        Fails with `IdempotencyConflict` or `CountersUnavailable`.
        """

    def forget(self, caller: Caller, key: str) -> Awaitable[None]:
        """Forget a refused request: the next one with its key is a new one."""

    def enter(self, caller: Caller, id_: str) -> Awaitable[None]:
        """Acquire a place for a hold until it is stored. Fails with `TooManyHolds` where no more of this
        caller's may be open, or with `CountersUnavailable`.
        """

    def leave(self, caller: Caller, id_: str) -> None:
        """Release the place of a refused hold; do nothing if none was acquired, or the hold is stored."""

    def keep(
        self, hold: CallerHold, key: str = "", body: bytes = b"", answer: bytes = b""
    ) -> Awaitable[None]:
        """Store a hold, and what its request came to."""

    def find(self, caller: Caller, id_: str) -> Awaitable[CallerHold]:
        """Return a hold of the caller's tenant. Fails with `HoldNotFound` or `CountersUnavailable`."""

    def end_of(self, hold: CallerHold) -> Awaitable[HoldEnd | None]:
        """Return the stored end of a hold; None if no caller has ended the hold."""

    def decide(self, hold: CallerHold, end: HoldEnd) -> Awaitable[HoldEnd]:
        """Store this end of a hold unless another one is stored; return the stored end."""

    def ended(self, hold: CallerHold, end: HoldEnd) -> Awaitable[None]:
        """Store the hold and its end for a while, as applied."""

    def undecide(self, hold: CallerHold) -> Awaitable[None]:
        """Undo the decision to end a hold that had ended by its deadline before."""

    def delete_later(self, caller: Caller, id_: str, route: str) -> Awaitable[None]:
        """Schedule the release of a hold until Redis answers; return once this is certainly on disk.

        Fails with `CountersUnavailable`.
        """

    def extend(self, hold: CallerHold, ttl_ms: int, wanted: HeldAmounts) -> Awaitable[HeldAmounts]:
        """Extend a hold to `ttl_ms` from now, and add what is free of `wanted`; return the amounts then held.

        Fails with `HoldEnded` or `CountersUnavailable`.
        """


class JobsPort(Protocol):
    """Jobs of callers, which upstreams work off later."""

    def fetch(
        self, upstream: str, path: str, bytes_max: int, arrive: Callable[[int], None]
    ) -> Awaitable[bytes]:
        """Return the file of an upstream; `arrive` counts bytes as they come, and may raise a `Refusal`.

        Fails with the `Refusal` that says why.
        """

    def ask(
        self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]
    ) -> Awaitable[tuple[int, bytes]]:
        """Return a status and a body, as an upstream answers there. Fails with `UpstreamUnreachable`."""

    def open(self, job: Job) -> Awaitable[None]:
        """Store a job before its upstream hears of it. Fails with `TooManyJobs` and `CountersUnavailable`."""

    def keep(self, job: Job) -> Awaitable[None]:
        """Store a job as it is now. Fails with `CountersUnavailable`."""

    def drop(self, job: Job) -> Awaitable[object]:
        """Forget a job that was never made."""

    def begun(self, job: Job) -> Awaitable[bool]:
        """Store a job with the id that its upstream gave it. False where that is another job's id.

        Fails with `CountersUnavailable` where it is stored nowhere.
        """

    def find(self, caller: Caller, id_: str) -> Awaitable[Job | None]:
        """Return the organization's job of this upstream's id."""

    def look(self, job: Job) -> Awaitable[bool]:
        """Check on a job, and charge it if over; return whether it is over. Fails with a `Refusal`."""


class CapacityPort(Protocol):
    """The accounts of upstreams' capacity."""

    def ask(  # noqa: PLR0917  # whose account, who asks, and what changed since it was asked last
        self,
        account: tuple[str, str],
        limits: CapacityLimits,
        asks: Sequence[CapacityAsk],
        ended: Sequence[CapacityEnd],
        over: Sequence[str],
        going: Sequence[str],
    ) -> Awaitable[list[int]]:
        """Return milliseconds until the next call may have room, then for each ask 0 (waits), 1 (let in) or 2
        (let in by its share's guarantee). An account is an upstream's name and a model.

        Of concurrent calls, report those that are `over`, and now and then those that are `going` on. Fails
        with `CountersUnavailable`, by `CountersRefused` where for certain nothing was done.
        """


class CountersPort(Protocol):
    """The limits and the ledger."""

    def reserve(self, request: HoldRequest) -> Awaitable[Decision]:
        """Reserve a hold on every limit or on none. Fails with `CountersUnavailable`."""

    def settle(self, settlement: Settlement) -> Awaitable[SettleResult]:
        """Replace a hold by the actual use; SPOOLED is as certain. Fails with `CountersUnavailable`."""

    def watch(self, observed: HoldExtension) -> None:
        """Renew the hold of a long call until `unwatch`."""

    def unwatch(self, observed: HoldExtension) -> None:
        """Stop renewing a hold: its call is about to settle."""

    def outgrown(self, observed: HoldExtension) -> None:
        """Extend the hold of a watched call that has used it up, soon."""


class Tracer(Protocol):
    """Traces of requests, on their way to a collector. Never waits, never fails."""

    def begin(self, parent: Parent | None) -> Trace:
        """Return the trace of a request that has come; whether it is recorded is decided now."""

    def end(self, trace: Trace, spans: list[Span]) -> None:
        """Record the spans of an ended request's trace."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything the handling of a request talks to, apart from its two sockets.

    `usage` answers `GET /.tollkeeper/usage` for a caller and what it says of itself with a JSON body.
    `failing` bounds how often failures of upstreams are told. `seconds` is a monotonic clock. `access_log`
    turns on one line a request. `tracer` is there where requests are traced (`TracedPlane`). With
    `refuse_unpriced` a model without a price is not called. `look_up` says the addresses of an
    upstream's name. Keys are taken that were digested under `earlier_peppers`. `answers` are routes that
    features answer here, `handlers` answer paths that are routed already, and
    `open_socket` goes on with a client by a WebSocket.
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
    runs: RunsPort
    holds: HoldsPort
    jobs: JobsPort | None = None
    access_log: bool = False
    capacity: CapacityPort | None = None
    failing: UnreportedFailures = field(default_factory=UnreportedFailures)
    refuse_unpriced: bool = False
    tracer: Tracer | None = None
    look_up: LookUp = by_system
    earlier_peppers: tuple[bytes, ...] = ()
    answers: Mapping[Route, Answerer] = field(default_factory=dict)
    handlers: Mapping[str, Answerer] = field(default_factory=dict)
    open_socket: Answerer | None = None
    caches: CachePool = field(default_factory=CachePool)
