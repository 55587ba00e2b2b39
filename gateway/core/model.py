"""Types of admission: callers, holds, decisions and settlements.

Tokens and credits are integers below 2**53 (Lua numbers are doubles). Times are integer milliseconds since
the epoch, UTC, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NewType

from gateway.core.accounts.run_policies import RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.accounts.weights import Weights
from gateway.core.billing.money import NO_PRICING, ServicePricing
from gateway.core.billing.price_book import TokenRate
from gateway.core.lru import LruEntry

INTEGER_MAX = 2**53 - 1
PARTITIONS = 64
# The name of an API family, which fixes the shape of errors and the way use is metered.
Family = NewType("Family", str)
GENERIC: Final = Family("generic")


class Scope(IntEnum):
    """The kind of owner that a limit is set on. Scripts answer with the number."""

    KEY = 1
    USER = 2
    TENANT = 3
    ORGANIZATION = 4
    BUDGET = 5


class LimitKind(IntEnum):
    """The kind of a scope's limit. Scripts answer with the number."""

    REQUESTS = 1
    TOKENS = 2
    CONCURRENCY = 3
    QUOTA = 4
    CREDITS = 5
    SPEND = 6
    BUDGET = 7


class Verdict(IntEnum):
    """The first number in an answer of `reserve`."""

    ADMITTED = 1
    UNVERIFIED = 0
    STALE = -1
    UNKNOWN_ACCOUNT = -2
    REVOKED = -3
    TENANT_BLOCKED = -4
    NOT_INCLUDED = -5
    RATE_LIMITED = -6
    CONCURRENCY_LIMITED = -7
    QUOTA_EXCEEDED = -8
    QUOTA_HELD = -9
    INSUFFICIENT_CREDITS = -10
    SPEND_CAP_REACHED = -11
    OTHER_PLAN = -12
    BUDGET_EXCEEDED = -13
    OTHER_ACCOUNT = -14
    STEP_REACHED = -15


class BlockCause(IntEnum):
    """Why a tenant is blocked: a person decided so, an invoice is unpaid, or too much use is not stored.

    The number is part of a stored state: another cause needs another layout.
    """

    MANUAL = 0
    DUNNING = 1
    BACKLOG = 2

    @property
    def word(self) -> str:
        """The name of this cause in the Admin API and in control writes."""
        return self.name.lower()


BLOCK_CAUSES = {cause.word: cause for cause in BlockCause}


class SettleResult(IntEnum):
    """The first number in an answer of `settle`. SPOOLED is from the worker's log, not from a script.

    UNHELD is DONE where an account held less than was given back. The negative ones say why nothing was
    settled: the hold was reclaimed; no hold has this id; the tenant or the organization is not stored; the
    hold of a call's head was raised meanwhile.
    """

    UNHELD = 3
    SPOOLED = 2
    DONE = 1
    UNVERIFIED = 0
    RECLAIMED = -1
    UNKNOWN = -2
    UNKNOWN_ACCOUNT = -3
    RAISED = -4


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one scope; None means no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


def on_list(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a list has this name of a model, or a pattern that fits, such as `gpt-4o*`.

    No pattern matches a name with a comma: some upstreams read it as several names.
    """
    return "," not in name and any("*" in pattern and _fits(name, pattern.split("*")) for pattern in patterns)


class Patterns:
    """The patterns of a list, split once for checking many names."""

    __slots__ = ("_parts",)

    def __init__(self, listed: Iterable[str]) -> None:
        self._parts = [one.split("*") for one in listed if "*" in one]

    def hold(self, name: str) -> bool:
        return "," not in name and any(_fits(name, parts) for parts in self._parts)


def _fits(name: str, parts: list[str]) -> bool:
    """Return whether a name has these parts in order, with anything between them."""
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


USER_ACCEPTED, USER_REQUIRED, USER_IGNORED = ("accept", "require", "ignore")
# The charge of an unsettled hold that a caller took by the API: all that it held, or nothing.
UNSETTLED_CHARGED, UNSETTLED_RELEASED = ("charge", "release")
# Priorities of calls if an upstream's capacity is short.
INTERACTIVE, BATCH = PRIORITIES = ("interactive", "batch")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller that a credential (`tk:id:{pNN}:<digest>`) identifies. Scripts check all that may change.

    `user` is the user of all its calls; if empty, `user_header` says whether calls may name one. `unsettled`
    says what its unsettled holds cost, `priority` is the highest that its calls may claim, `runs` its policy
    of runs, `spent` the answer when an amount is used up, and `tags` are those that its calls always have.
    `claims` are names of groups that an issuer's token says.
    """

    organization_id: int
    tenant_id: int
    key_id: int
    partition: int
    user: str = ""
    models: frozenset[str] | None = None
    user_header: str = USER_ACCEPTED
    unsettled: str = UNSETTLED_CHARGED
    priority: str = INTERACTIVE
    runs: RunPolicy | None = None
    spent: SpentAnswer = UNSAID
    tags: tuple[tuple[str, str], ...] = ()
    claims: tuple[str, ...] = ()

    def acts_for(self, named: str, in_body: str = "") -> str:
        """Return the user for whom a call is made; empty for none.

        It is the user of the API key, else the user `named` in a header field, else that in the body,
        unless the key ignores these.
        """
        if self.user or self.user_header == USER_IGNORED:
            return self.user
        return named or in_body


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The run that a call names, with the properties for creating it.

    `amount` is in nano-units of the organization's currency, or in tokens; -1 means no limit. `calls_max` and
    `ttl_s` are 0 if unstated.
    """

    id: str
    parent_id: str = ""
    unit: str = "money"
    amount: int = -1
    calls_max: int = 0
    ttl_s: int = 0


@dataclass(slots=True)
class Attribution:
    """Facts that a request states about itself: its user, and columns for its rows.

    `tags` are the members of `metadata` that can be tags, whatever the organization declares. `is_trace`: the session
    is named by a trace alone.
    """

    user: str = ""
    content_id: int | None = None
    project_id: int | None = None
    feature_version: str = ""
    metadata: bytes = b""
    session: str = ""
    run: RunRequest | None = None
    priority: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    is_trace: bool = False


@dataclass(slots=True)
class TokenUsage:
    """The usage of one call, as the upstream reported it or the gateway counted it.

    `total` is the number of charged tokens. `reported` is False until a report arrives: missing usage is not
    zero usage.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    total: int = 0
    units: int = 1
    reported: bool = False
    estimated: bool = False


@dataclass(slots=True)
class Window:
    """The state of one limit after a hold. `used` may exceed `limit` (debt); `scope` is a `Scope`."""

    scope: int
    limit: int
    used: int
    reset_ms: int


@dataclass(slots=True)
class BudgetAccount:
    """A budget account that a call uses: its name, and its current windows, packed (`accounts/budgets.py`).

    `enforced` means that one of its budgets refuses calls once it is used up. `usual` are its windows without
    a raise of its owner and carry-over, as the shared account has them; empty if they are the same.
    """

    name: str
    defined: bytes
    enforced: bool
    usual: bytes = b""


@dataclass(slots=True)
class BudgetWindow:
    """The state of one budget after a hold, or when it refused one. `reset_ms` of 0 is never.

    `used` is the settled use, after a hold with held amounts. In a refusal, `held` is what calls in flight
    hold, and `need` what the call needs. `unit` is a key of `UNIT_OF` in `accounts/budgets.py`. The scripts
    do not return name, interval, kind and currency. A window that rolls resets for a call when that fits.
    """

    budget_id: int
    limit: int
    used: int
    reset_ms: int
    unit: int
    name: str = ""
    currency: str = ""
    interval: str = ""
    held: int = 0
    need: int = 0
    kind: str = "calendar"

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used - self.held)


@dataclass(slots=True)
class FreedAmount:
    """The next part of a rolling budget's use that ends to count: when (Unix ms), and how much, in `unit`."""

    budget_id: int
    at_ms: int
    amount: int
    unit: int
    name: str = ""


@dataclass(slots=True)
class Admitted:
    """The answer of `reserve` to a use that it admits: the hold, and what its limits have left.

    `limit` is the quota of the plan (0 if it has none), which resets at `until_ms`. It, `held_tokens` and
    `tokens_remaining` are quota tokens by the plan's `weights`, None if it has none. Amounts that remain are
    None where nothing limits them. `bounded`: the call may not use more tokens than it holds. `budget` is the
    tightest one that enforces, None without one; windows of budgets hold `money_held` nano-units and
    `budget_tokens_held` tokens. `frees` are of the tightest budgets that roll. `leases` asks the worker to get a lease. `frame` is the cache entry for such calls, if
    there is one: the call's settlement returns it.
    """

    limit: int = 0
    until_ms: int = 0
    now_ms: int = 0  # by Redis' clock, 0 on a lease
    held_tokens: int = 0
    tokens_remaining: int | None = None
    credits_remaining: int | None = None
    requests: Window | None = None
    tokens: Window | None = None
    held_credits: int = 0
    bounded: bool = False
    weights: Weights | None = None
    budget: BudgetWindow | None = None
    money_held: int = 0
    budget_tokens_held: int = 0
    frees: tuple[FreedAmount, ...] = ()
    leases: bool = False
    frame: LruEntry | None = None

    @property
    def verdict(self) -> Verdict:
        return Verdict.ADMITTED


@dataclass(slots=True)
class Refused:
    """The answer of `reserve` to a use that it refuses: nothing is held, and nothing has changed.

    `scope` and `kind` name the limit that refused, 0 if none did; `used` and `limit` are its amounts, which
    reset at `until_ms` (0 if unknown). `used` is the cause of a blocked tenant, or the accounts to replace
    of OTHER_ACCOUNT; `limit` is the plan of OTHER_PLAN. `budget` is set if a budget or a run refused. `reached`
    of STEP_REACHED has a byte for each step of the request, 1 if it is reached.
    """

    verdict: Verdict  # any but ADMITTED
    scope: int = 0
    kind: int = 0
    used: int = 0
    limit: int = 0
    until_ms: int = 0
    now_ms: int = 0
    budget: BudgetWindow | None = None
    reached: bytes = b""


@dataclass(frozen=True, slots=True)
class Service:
    """One metered service of the catalogue, as it was when the call began; its price does not change later.

    `credits` is the price of a unit, or of a One-Time service as a whole. `needs_plan` requires a token plan
    of the tenant of a Subscription service. A service with neither `counts_tokens` nor `counts_none` counts
    tokens if its business model does. `upstream` and `paths` are the target of its calls under `/services/`,
    empty if the catalogue has none.
    """

    id: int
    key: str
    meter: str = "subscription"
    counts_tokens: bool = True
    credits: int = 0
    one_time: bool = False
    pricing: ServicePricing = NO_PRICING
    needs_plan: bool = True
    upstream: str = ""
    paths: tuple[str, ...] = ()
    counts_none: bool = False

    def costs_as(self, other: Service) -> bool:
        mine = (self.meter, self.counts_tokens, self.credits, self.one_time, self.pricing)
        return mine == (other.meter, other.counts_tokens, other.credits, other.one_time, other.pricing)


# The service of calls on a free route, and of calls while only their head is known. It takes one request and
# one concurrent call of each scope. It is never settled, only released or raised.
NO_SERVICE = Service(0, "", counts_tokens=False, needs_plan=False)


@dataclass(slots=True)
class HoldRequest:
    """A request to `reserve`.

    `need` is the estimate in tokens, `ceiling` the most that the call could use. A strict plan holds the
    ceiling and all `credits`, reduced to the free amount, but not below `least` and `credits_least`; both are
    0 if the call states a maximum, or cannot be bounded. With `raises` the request already has a hold, taken
    before its body arrived (all 0, usually by NO_SERVICE): its request and slots are not counted again, and a
    refusal leaves that hold unchanged. If that hold is gone, all is taken again. `read_likely` tokens of the
    need and `read` of the ceiling are input, for plans with weights.

    `budgets` are the accounts of budgets that it uses, `names` their names if known. Their windows hold
    `money` in nano-units, `budget_tokens` of all kinds, or one request; under a strict plan they hold
    `money_most` and `budget_tokens_most` if that is more. If the call states no maximum (`money_least`, `budget_tokens_least` not
    0), they hold what is free of that, but no less than those. An account beyond the maximum of accounts of
    `each` is replaced by the shared account of all others.

    `steps` of these budgets are judged with it: each a budget's id, a part of its limit in millionths, and what it
    does (`STEP_…`).

    With `ttl_ms` the hold belongs to a caller who settles it by the API: no lease admits it. A `whole` one
    holds all that it needs of the quota, or is refused.
    """

    caller: Caller
    request_id: str
    user: str
    service: Service
    need: int
    ceiling: int
    credits: int = 0
    units: int = 1
    raises: bool = False
    least: int = 0
    credits_least: int = 0
    read: int = 0
    read_likely: int = 0
    budgets: tuple[BudgetAccount, ...] = ()
    money: int = 0
    money_most: int = 0
    money_least: int = 0
    budget_tokens: int = 0
    budget_tokens_most: int = 0
    budget_tokens_least: int = 0
    names: tuple[str, ...] = ()
    ttl_ms: int = 0
    whole: bool = False
    steps: tuple[tuple[int, int, int], ...] = ()

    def weigh(self, weights: Weights) -> tuple[int, int, int]:
        ceiling = weights.at_most(self.ceiling, self.read)
        need = min(weights.at_most(self.need, self.read_likely), ceiling)
        return need, ceiling, min(weights.at_most(self.least, self.read), ceiling)


@dataclass(slots=True)
class Settlement:
    """The real use of a call, which replaces its hold. A release has zeros.

    `credits` are whole, and `over` is how much they exceed the cost, in nano-credits. `quota_tokens` is the number
    of quota tokens that `tokens` count as; None means the same number. `budgets` are the accounts that its
    hold used: their windows count `money` in nano-units, `budget_tokens` of all kinds, or one request.
    `attribution` is `content_id TAB project_id TAB feature_version` or empty, `metadata` a JSON object or
    empty; scripts pass both on unread. `frame` is that of the hold's `Admitted`. `hold_ttl_ms` is the longest
    life of the hold that a release ends, if it is longer than a call's.
    """

    caller: Caller
    request_id: str
    user: str
    service: Service
    charge: bool
    tokens: int = 0
    credits: int = 0
    units: int = 0
    attribution: str = ""
    metadata: bytes = b""
    over: int = 0
    quota_tokens: int | None = None
    budgets: tuple[str, ...] = ()
    money: int = 0
    budget_tokens: int = 0
    frame: LruEntry | None = None
    hold_ttl_ms: int = 0

    @property
    def of_quota(self) -> int:
        return self.tokens if self.quota_tokens is None else self.quota_tokens


# The limit that covers least of a hold: values of `HoldExtension.short`.
BY_QUOTA, BY_CREDITS, BY_BUDGETS = 0, 1, 2


@dataclass(slots=True)
class HoldExtension:
    """The hold of a running call, which `extend` renews and raises.

    `tokens` were seen so far, and the hold covers `held` of them: by `counts` their tokens, by `rate` their
    credits. `exhausted` is set if an account cannot extend it further, `cut` if the plan then ends the call.
    With `weights` the quota is separate: `quota_tokens` quota tokens were seen, and `quota` are held. For the
    accounts `budgets`, `money_rate` is the cost of use, `hold_rate` the rate of holding if it differs, and
    `counts_budget_tokens` says that some count tokens. At most `most`, all that the call can use, is held ahead. Once,
    `reserved` tokens and `reserved_quota` quota tokens may be requested in addition, all or none of them:
    `answered` is called with the answer, and `short` names the limit that covers least of it: tokens, credits
    or budgets.
    """

    caller: Caller
    request_id: str
    held: int
    tokens: int = 0
    exhausted: bool = False
    cut: bool = False
    counts: bool = True
    rate: TokenRate | None = None
    weights: Weights | None = None
    quota_tokens: int = 0
    quota: int = 0
    budgets: tuple[str, ...] = ()
    money_rate: TokenRate | None = None
    hold_rate: TokenRate | None = None
    counts_budget_tokens: bool = False
    most: int = INTEGER_MAX
    reserved: int = 0
    reserved_quota: int = 0
    answered: Callable[[], object] | None = None
    short: int = 0

    def ahead(self, margin: int) -> int:
        """Return the tokens to hold for a running call.

        These are the tokens seen so far with `margin` more, or the reserved ones if these are more. A request
        for additional tokens has no margin: they are held all, or none of them.
        """
        return max(self.tokens + self._more(margin), self.reserved)

    def _more(self, margin: int) -> int:
        """Return `margin`, at most all that the call can still use unless its upstream has passed that."""
        if self.answered is not None:
            return 0
        left = self.most - self.tokens
        return margin if left < 0 else min(margin, left)

    def end_request(self) -> None:
        """End the request for additional tokens, and call the callback `answered`."""
        answered, self.answered = self.answered, None
        self.reserved = self.reserved_quota = 0
        if answered is not None:
            answered()

    def wanted_of_budgets(self, margin: int) -> tuple[int, int, int]:
        """Return the cost of the tokens seen so far, and the money and tokens to hold in budgets.

        `margin` is the number of tokens to hold beyond those seen. Costs are in nano-units.
        """
        ahead = self.ahead(margin)
        seen = 0 if self.money_rate is None else self.money_rate.nano(self.tokens)
        rate = self.hold_rate or self.money_rate
        more = 0 if rate is None else rate.nano(ahead)
        return min(seen, INTEGER_MAX), min(more, INTEGER_MAX), ahead if self.counts_budget_tokens else 0

    def wanted(self, margin: int) -> int:
        """Return the quota tokens to hold: for the tokens seen so far, and for `margin` more output."""
        if self.weights is None:
            return self.ahead(margin)
        more = self.weights.at_most(self._more(margin), 0)
        return max(self.quota_tokens + more, self.reserved_quota)
