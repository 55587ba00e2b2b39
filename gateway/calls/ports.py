"""Interfaces that the admission and the charge of a use need; `gateway/app.py` provides the implementations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.definitions import ModelLists, Share
from gateway.core.accounts.refusals import Refusals
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import FIELD, Run
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.accounts.steps import ReachedUses, RefusedSubstitutes, SessionModel, StepMatches
from gateway.core.accounts.tags import Tags
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import NO_SIZES, CallRequest
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.models import ConfiguredModels
from gateway.core.calls.routes import ModelRule, UpstreamTarget
from gateway.core.circuit_breaker import CircuitBreaker
from gateway.core.families.family import KEPT_OBJECTS
from gateway.core.model import (
    Admitted,
    Attribution,
    Caller,
    HoldExtension,
    HoldRequest,
    Refused,
    RunRequest,
    Service,
    Settlement,
    SettleResult,
)
from gateway.errors import InvalidRequest, RunNotFound


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
        attribution: Attribution,
        call: CallRequest,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets | None:
        """Return the budgets that a call takes from, including those of its `run`; None if there are none.

        `attribution` is the attribution of the call. If a call is only considered, not made, `remember` is False,
        and the result is not cached. Fails with `CountersUnavailable`.
        """

    def definitions(
        self, caller: Caller, accounts: tuple[str, ...], attribution: Attribution, call: CallRequest
    ) -> tuple[bytes, ...]:
        """Return the windows of budget accounts as they are defined now, packed; empty for one of no budget.

        The others of the parameters are those of a call that took from these accounts. Fails with
        `CountersUnavailable`.
        """

    @property
    def grouped(self) -> bool:
        """Whether an organization has groups: else `groups` need not be called."""

    def groups(self, caller: Caller, attribution: Attribution, call: CallRequest) -> tuple[int, ...]:
        """Return the ids of the groups that a call is in; `attribution` is the attribution of the call."""

    def model_lists(self, caller: Caller) -> ModelLists | None:
        """Return the model lists of the caller's organization, or None. Fails with `CountersUnavailable`."""

    def run_policies(self, caller: Caller) -> CallRunPolicies:
        """Return the rules that a caller's calls must meet about runs. Fails with `CountersUnavailable`."""

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        """Return the HTTP status and maximum wait in this caller's refusals for a used-up amount."""

    def tags(self, caller: Caller, attribution: Attribution) -> Tags:
        """Return the tags of a call that its organization declares, by its key and its `attribution`."""

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

    def sizes(self, caller: Caller, ids: Sequence[str]) -> Awaitable[list[tuple[int, int]]]:
        """Return until when each object is known, 0 if it is not, and the tokens of the text that an upstream keeps of it.

        0 tokens if nobody noted them. The request is sent at once. Fails with `CountersUnavailable`.
        """

    def keep(  # noqa: PLR0917  # ids, and their size
        self, caller: Caller, ids: Sequence[str], kept: int = KEPT_OBJECTS, tokens: int = 0, added: int = 0,
        found: Mapping[str, tuple[int, int]] = NO_SIZES,
    ) -> Awaitable[object]:  # fmt: skip
        """Store the caller's organization as the owner of these objects.

        `kept` says for how long, as one of the constants for lifetimes. The upstream keeps a text of `tokens` of each,
        by an answer whose call has `found` these sizes; where others came in between, `added` is what the call has added
        at most. The request is sent at once, whether or not the result is awaited.
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
        raise InvalidRequest(f"Runs are not installed here: leave the run {asked.id} out.", param=FIELD)

    async def find(self, caller: Caller, asked: RunRequest, _: CallRunPolicies) -> Run:
        run = self.cached(caller, asked)
        assert run is not None
        return run

    def admitted(self, caller: Caller, run: Run) -> None:
        """Return at once: no call with a run is admitted."""

    async def tell(self, *_: object) -> bytes:
        raise RunNotFound

    async def end(self, *_: object) -> None:
        raise RunNotFound

    async def restore(self, _: Collection[int]) -> None:
        """Return at once: no run is known."""


class ModelSessionsPort(Protocol):
    """The sessions whose calls keep the model that a step of a budget gave their first one, or did not."""

    def find(self, caller: Caller, session: str, model: str) -> Awaitable[SessionModel | None]:
        """Return what calls of a session that ask for a model go as; None if it is new, or nobody knows."""

    def keep(self, caller: Caller, session: str, model: str, goes_as: SessionModel) -> None:
        """Store what a call of a session that asked for a model went as, for an hour."""


class NoModelSessions:
    """Knows no session: each call is judged by itself."""

    async def find(self, *_: object) -> SessionModel | None:
        return None

    def keep(self, *_: object) -> None:
        """Return at once: nothing is stored."""


class CountersPort(Protocol):
    """The limits and the ledger in Redis."""

    def reserve(self, request: HoldRequest) -> Awaitable[Admitted | Refused]:
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


@dataclass(frozen=True, slots=True)
class CallPorts:
    """Everything that decides whether a use may begin, and at which price.

    With `refuse_unpriced` a model without a price is refused.
    """

    directory: DirectoryPort
    counters: CountersPort
    objects: ObjectOwnersPort
    refusals: Refusals
    runs: RunsPort = field(default_factory=RefusedRuns, kw_only=True)
    sessions: ModelSessionsPort = field(default_factory=NoModelSessions, kw_only=True)
    reached: ReachedUses = field(default_factory=ReachedUses, kw_only=True)
    matches: StepMatches = field(default_factory=StepMatches, kw_only=True)
    refused: RefusedSubstitutes = field(default_factory=RefusedSubstitutes, kw_only=True)
    refuse_unpriced: bool = field(default=False, kw_only=True)


class UpstreamPort(Protocol):
    """What admission asks of an upstream: `contexts` are context lengths of models from its own list."""

    target: UpstreamTarget
    contexts: dict[str, int]


@dataclass(frozen=True, slots=True)
class AdmissionPorts:
    """Everything that an admission asks: limits and prices, models, the upstreams by name, and estimates.

    `budget_refused` is told of each refusal by a budget: the reason, the budget's unit and its interval.
    """

    calls: CallPorts
    models: ConfiguredModels
    upstreams: Mapping[str, UpstreamPort]
    estimator: Estimator
    breaker: CircuitBreaker
    budget_refused: Callable[[str, str, str], None]
