"""The nouns of admission: who calls, what is held, what was decided, what was used.

Tokens and credits are integers below 2**53 (Lua numbers are doubles); times are integer
milliseconds since the epoch, UTC, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NewType

from gateway.core.accounts.plans import Weights
from gateway.core.accounts.run_policies import RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.billing.money import NO_PRICING, ServicePricing
from gateway.core.billing.price_book import TokenRate
from gateway.core.lru import LruEntry

INTEGER_MAX = 2**53 - 1
PARTITIONS = 64
# The name of an API family, which fixes the shape of errors and the way use is metered.
Family = NewType("Family", str)
GENERIC: Final = Family("generic")


class Scope(IntEnum):
    """What a limit is set on; the number is the one scripts answer with."""

    KEY = 1
    USER = 2
    TENANT = 3
    ORGANIZATION = 4
    BUDGET = 5


class LimitKind(IntEnum):
    """Which limit of a scope a script speaks of."""

    REQUESTS = 1
    TOKENS = 2
    CONCURRENCY = 3
    QUOTA = 4
    CREDITS = 5
    SPEND = 6
    BUDGET = 7


class Verdict(IntEnum):
    """First number of a `reserve` answer."""

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


class SettleResult(IntEnum):
    """First number of a `settle` answer; SPOOLED is no script's: the worker's log has it."""

    SPOOLED = 2
    DONE = 1
    UNVERIFIED = 0
    RECLAIMED = -1
    UNKNOWN = -2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one scope; None is "no limit"."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


# Names as lists have them: exact, or a pattern in which `*` stands for any characters.
def on_list(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a list holds this name, letter by letter or by a pattern such as `gpt-4o*`.

    No pattern holds a name with a comma: some upstreams take that for several names.
    """
    return "," not in name and any("*" in pattern and _fits(name, pattern.split("*")) for pattern in patterns)


class Patterns:
    """The patterns of a list, taken apart once for many names."""

    __slots__ = ("_parts",)

    def __init__(self, listed: Iterable[str]) -> None:
        self._parts = [one.split("*") for one in listed if "*" in one]

    def hold(self, name: str) -> bool:
        return "," not in name and any(_fits(name, parts) for parts in self._parts)


def _fits(name: str, parts: list[str]) -> bool:
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
# What a hold costs that a caller took by the API and nobody settled: all it held, or nothing.
UNSETTLED_CHARGED, UNSETTLED_RELEASED = ("charge", "release")
# Which of two calls goes first where an upstream's capacity is short.
INTERACTIVE, BATCH = PRIORITIES = ("interactive", "batch")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a credential stands for (`tk:id:{pNN}:<digest>`); all that may change is checked in the script.

    `user` is whom all its calls act for; where it is empty, `user_header` is what they may say of it.
    `unsettled` is what becomes of its holds that nobody settles, `priority` the highest its calls may claim,
    `runs` its policy of runs, `spent` how it is told that an amount is spent.
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

    def acts_for(self, named: str, in_body: str = "") -> str:
        """Return the user of a call whose field and body name these users; empty for nobody."""
        if self.user or self.user_header == USER_IGNORED:
            return self.user
        return named or in_body


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a call says of its run: its id, and what it is to be where this call makes it.

    `amount` is in nano-units of the organization's currency, or in tokens; -1 is no limit. `calls_max` and
    `ttl_s` are 0 where it does not say.
    """

    id: str
    parent_id: str = ""
    unit: str = "money"
    amount: int = -1
    calls_max: int = 0
    ttl_s: int = 0


@dataclass(slots=True)
class Attribution:
    """What a request says of itself: the user, and the columns carried into its rows."""

    user: str = ""
    content_id: int | None = None
    project_id: int | None = None
    feature_version: str = ""
    metadata: bytes = b""
    session: str = ""
    run: RunRequest | None = None
    priority: str = ""


@dataclass(slots=True)
class TokenUsage:
    """What an upstream reported or the gateway counted for one call.

    `total` is what is charged in tokens. `reported` is False while nothing was reported:
    missing usage is not zero usage.
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
    """One limit as it stands after a hold: `used` may exceed `limit` (debt), `scope` is a `Scope`."""

    scope: int
    limit: int
    used: int
    reset_ms: int


@dataclass(slots=True)
class BudgetAccount:
    """One account of budgets a call takes from: its name, its windows as they are defined now
    (`gateway/core/accounts/budgets.py`), and whether one of them refuses who has used it up.
    """

    name: str
    defined: bytes
    enforced: bool


@dataclass(slots=True)
class BudgetWindow:
    """One budget as it stands after a hold, or as it refused one; `reset_ms` 0 is never.

    `used` is what is settled, with what is held after a hold. Of a refusal `held` is what calls in flight
    hold, and `need` what the call needs. `unit` is one of `UNIT_OF` of budgets. The scripts do not say its
    name, its interval, and what its money is counted in.
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

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used - self.held)


@dataclass(slots=True)
class Decision:
    """The answer of `reserve`. `bounded`: the call may not use more tokens than it holds.

    `held_tokens`, `tokens_remaining` and a quota's `limit` are tokens as the plan counts them: by `weights`
    of the call's admission, None where it weighs nothing. `budget` is the tightest one that enforces, or the
    one that refused; its windows hold `money_held` nano-units and `raw_held` tokens. `leases`: one is wanted.
    `frame` is what the counters cache for such calls, if they do: the settlement of the call brings it back.
    """

    verdict: Verdict
    scope: int = 0
    kind: int = 0
    used: int = 0
    limit: int = 0
    until_ms: int = 0
    now_ms: int = 0
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
    raw_held: int = 0
    leases: bool = False
    frame: LruEntry | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One metered service of the catalogue, resolved for a call: its price stays what it was then.

    `credits` is what a unit costs, or the whole of a One-Time service. `needs_plan` asks a
    Subscription service's tenant for a token plan. One of the catalogue with neither `counts_tokens` nor
    `counts_none` counts them as its business model says. `upstream` and `paths` say where its calls under
    `/services/` go, empty where the catalogue does not say.
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


# What a call is admitted by on a route that charges nothing, and while no more than its head is known:
# one request and one call at once on each scope, no more. Never settled, only released or topped up.
NO_SERVICE = Service(0, "", counts_tokens=False, needs_plan=False)


@dataclass(slots=True)
class HoldRequest:
    """What `reserve` is asked for.

    `need` is the estimate in tokens, `ceiling` what the call could use at most. Under a strict plan the
    ceiling is held, and of `credits` all: cut to what is free, but never below `least` and `credits_least`,
    where the call states no maximum; both are 0 where it does, or cannot be bound. With `raises` the same
    request holds something already, taken before its body (all of it 0, best by NO_SERVICE): its request and
    slots are not taken again, and a refusal leaves that hold as it was. Where that hold is gone, all is taken
    again. Of what is needed `read_likely` is input, of the most `read`: plans with weights go by that.
    `budgets` are the accounts of budgets it takes from, `names` theirs if known. Their windows hold `money`
    in nano-units, `raw_tokens` of all kinds, or one request; under a strict plan `money_most` and `raw_most`,
    where that is more. Where the call states no maximum (`money_least`, `raw_least` not 0) they hold what is
    free of that, but no less. Somebody's account that is one too many is replaced by that of all others.
    With a `ttl_ms` of its own the hold is a caller's, who settles it by the API: no lease admits it. A
    `whole` one takes all that it needs of the quota, or is refused.
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
    raw_tokens: int = 0
    raw_most: int = 0
    raw_least: int = 0
    names: tuple[str, ...] = ()
    ttl_ms: int = 0
    whole: bool = False

    def weighed(self, weights: Weights) -> tuple[int, int, int]:
        ceiling = weights.at_most(self.ceiling, self.read)
        need = min(weights.at_most(self.need, self.read_likely), ceiling)
        return need, ceiling, min(weights.at_most(self.least, self.read), ceiling)


@dataclass(slots=True)
class Settlement:
    """What a call really used, replacing its hold. A release carries zeros.

    `credits` are whole ones, `over` is by how much they are more than what the call costs, in nano-credits.
    `weighed` is how many tokens of the quota its `tokens` count; None: as many, where no plan weighs them.
    `budgets` are the names of the accounts that its hold took from: their windows count `money` in
    nano-units, `raw_tokens` of all kinds, or one request.
    `attribution` is `content_id TAB project_id TAB feature_version` or empty, `metadata` a
    JSON object or empty; both travel unread to the rows. `frame` is that of the hold's `Decision`.
    `hold_ttl_ms` is how long the hold lives at most that a release ends, where that is longer than a call's.
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
    weighed: int | None = None
    budgets: tuple[str, ...] = ()
    money: int = 0
    raw_tokens: int = 0
    frame: LruEntry | None = None
    hold_ttl_ms: int = 0

    @property
    def of_quota(self) -> int:
        return self.tokens if self.weighed is None else self.weighed


# What covers least of a hold.
BY_QUOTA, BY_CREDITS, BY_BUDGETS = 0, 1, 2


@dataclass(slots=True)
class HoldExtension:
    """A live call's hold as `extend` keeps it: renewed while the call lives.

    `tokens` is what was seen so far; `held` how many of them the hold covers, by `counts` its
    tokens and by `rate` its credits, raised by `extend`; `exhausted` is set when an account has
    nothing left to extend it with, `cut` when the plan then ends the call instead of letting it
    finish. Under `weights` the quota is apart: of it `weighed` was seen so far and `quota` is held.
    Of `budgets`, the names of its accounts, `money_rate` says what was used of their money, `hold_rate` what
    is held of it where that is another, and `counts_raw` that some are of tokens. Nothing is held ahead
    beyond `most`, all the call can use. Besides, `reserved` tokens and, under weights, `reserved_quota` are
    asked for once: `answered` is called when the answer is here, and `short` says what covers least of the
    hold: its tokens, credits or budgets.
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
    weighed: int = 0
    quota: int = 0
    budgets: tuple[str, ...] = ()
    money_rate: TokenRate | None = None
    hold_rate: TokenRate | None = None
    counts_raw: bool = False
    most: int = INTEGER_MAX
    reserved: int = 0
    reserved_quota: int = 0
    answered: Callable[[], object] | None = None
    short: int = 0

    def ahead(self, margin: int) -> int:
        """Return the tokens to hold: those seen and reserved, and as many more as the call can still use."""
        return max(self.tokens, self.reserved, min(self.tokens + margin, self.most))

    def end_request(self) -> None:
        """End the request for reserved tokens, and report that it was answered."""
        answered, self.answered = self.answered, None
        self.reserved = self.reserved_quota = 0
        if answered is not None:
            answered()

    def wanted_of_budgets(self, margin: int) -> tuple[int, int, int]:
        """Return the money seen so far, and the money and tokens to hold in budgets with `margin`."""
        ahead = self.ahead(margin)
        seen = 0 if self.money_rate is None else self.money_rate.nano(self.tokens)
        rate = self.hold_rate or self.money_rate
        more = 0 if rate is None else rate.nano(ahead)
        return min(seen, INTEGER_MAX), min(more, INTEGER_MAX), ahead if self.counts_raw else 0

    def wanted(self, margin: int) -> int:
        """Return tokens of the quota that the seen and so much more output count."""
        if self.weights is None:
            return self.ahead(margin)
        more = max(0, min(margin, self.most - self.tokens))
        return max(self.weighed + self.weights.at_most(more, 0), self.reserved_quota)
