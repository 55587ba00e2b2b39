"""Definitions of accounts by administrators, as they are sent from PostgreSQL's tables to Redis.

Times are milliseconds since the epoch (0 is never). Totals and caps of `None` are unlimited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.groups import NO_GROUPS, GroupTerms
from gateway.core.accounts.plans import PlanTerms
from gateway.core.accounts.run_policies import NO_POLICIES, RunPolicies, RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.accounts.tags import Tags
from gateway.core.billing.money import ServicePricing
from gateway.core.billing.price_book import BASE_CURRENCY
from gateway.core.billing.vector import ExchangeRate, ModelPrice
from gateway.core.calls.routes import ModelRule
from gateway.core.model import (
    BATCH,
    INTERACTIVE,
    UNSETTLED_CHARGED,
    USER_ACCEPTED,
    BlockCause,
    Caller,
    Limits,
    Service,
)

CATALOGUE_ACCOUNT = "catalogue"
PRICES_ACCOUNT = "prices"
# Its control write has Redis forget the credentials that PostgreSQL does not know.
CREDENTIALS_ACCOUNT = "credentials"


@dataclass(frozen=True, slots=True)
class NegotiatedTerms:
    """The terms of an organization for one service. Fields that are None have the service's usual value."""

    service_id: int
    credits: int
    meter: str | None = None
    pricing: ServicePricing | None = None
    counts_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelLists:
    """The models that calls may ask for: a list of the organization, of tenants by id, of users by name.

    Without a list any model is allowed.
    """

    own: tuple[str, ...] | None = None
    tenants: dict[int, tuple[str, ...]] = field(default_factory=dict)
    users: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, tenant_id: int, user: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return (owner, models) for each list of allowed models that applies to a tenant and user."""
        found = [("organization", self.own), ("tenant", self.tenants.get(tenant_id))]
        if user:
            found.append(("user", self.users.get(user)))
        return [(whose, models) for whose, models in found if models is not None]


NO_LISTS = ModelLists()


@dataclass(frozen=True, slots=True)
class OrganizationTerms:
    """What services cost an organization, and which its subscription includes.

    The subscription is in force from `since_ms` to `until_ms` (exclusive); both are 0 without one.
    `subscribed` says that one was in force earlier. `currency` is the organization's. `budgets` are all of
    its budgets. With `listed` it may use only negotiated services. `models` are the lists of allowed models,
    and `runs` the policies of runs, besides those of keys. `spent` is the answer sent when an amount is used
    up. `tags` are the names of its tags, and `groups` are those of its callers.
    """

    negotiated: tuple[NegotiatedTerms, ...] = ()
    features: tuple[str, ...] = ()
    since_ms: int = 0
    until_ms: int = 0
    subscribed: bool = False
    currency: str = BASE_CURRENCY
    budgets: tuple[Budget, ...] = ()
    listed: bool = False
    models: ModelLists = NO_LISTS
    runs: RunPolicies = NO_POLICIES
    spent: SpentAnswer = UNSAID
    tags: tuple[str, ...] = ()
    groups: GroupTerms = NO_GROUPS


@dataclass(frozen=True, slots=True)
class OrganizationDefinition:
    """An organization's limits and terms. `cap` is in millionths of its currency.

    Of any definition, `created` is when its row was created, in µs: a row of another time is another one.
    """

    organization_id: int
    limits: Limits
    credit_limit: int = 0
    cap: int | None = None
    terms: OrganizationTerms = OrganizationTerms()
    created: int = 0


@dataclass(frozen=True, slots=True)
class TenantDefinition:
    """A tenant's own limits, the limits of each of its users, and the terms of its plan."""

    tenant_id: int
    organization_id: int
    limits: Limits
    user_limits: Limits
    terms: PlanTerms
    has_ledger: bool = False
    created: int = 0


@dataclass(frozen=True, slots=True)
class KeyDefinition:
    """An API key and the caller that it identifies. `digest` is its HMAC, by which it is looked up.

    With `of_tokens` it has no secret: it is the key of all signed tokens of a subject, also after it has
    expired. `gone` means that it was deleted, and its subject is unassigned.
    """

    key_id: int
    tenant_id: int
    organization_id: int
    digest: str
    limits: Limits
    user: str = ""
    models: frozenset[str] | None = None
    revoked: bool = False
    expires_ms: int = 0
    user_header: str = USER_ACCEPTED
    unsettled: str = UNSETTLED_CHARGED
    priority: str = INTERACTIVE
    runs: RunPolicy | None = None
    spent: SpentAnswer = UNSAID
    tags: Tags = ()
    of_tokens: bool = False
    gone: bool = False
    created: int = 0


@dataclass(frozen=True, slots=True)
class UserDefinition:
    tenant_id: int
    organization_id: int
    user: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Share:
    """A part of an upstream's capacity for an organization, or for one tenant (`tenant_id` not 0).

    An empty `model` means all models. The minute limits are guaranteed (0 for none), the rest is shared by
    `weight`, and `priority` is the highest priority of its calls.
    """

    upstream: str
    model: str
    organization_id: int
    tenant_id: int = 0
    weight: int = 1
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    priority: str = INTERACTIVE

    @property
    def name(self) -> str:
        """The name of this share in the counters of capacity: `o7` for an organization, `t7` for a tenant."""
        return f"t{self.tenant_id}" if self.tenant_id else f"o{self.organization_id}"

    def is_batch(self, caller: Caller, claimed: str) -> bool:
        """Return whether a call has batch (low) priority, by `claimed` in its header, its key or share."""
        return BATCH in {claimed or caller.priority, self.priority}


@dataclass(frozen=True, slots=True)
class CatalogueDefinition:
    """All services, model rules and shares; and weights of kinds of tokens by plan id, in millionths."""

    services: tuple[Service, ...]
    weights: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    models: tuple[ModelRule, ...] = ()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class PricesDefinition:
    """Prices of models that are in force, were a day ago, or will be; and exchange rates."""

    prices: tuple[ModelPrice, ...]
    rates: tuple[ExchangeRate, ...] = ()


# Definitions within one organization, and all definitions.
AccountDefinition = OrganizationDefinition | TenantDefinition | KeyDefinition | UserDefinition
Definition = AccountDefinition | CatalogueDefinition | PricesDefinition


@dataclass(frozen=True, slots=True)
class ControlWrite:
    """One pending write to Redis, in order of `position`. `definitions` are read when it is pushed.

    A grant (any `verb` but define) names its tenant and organization. `payload` is what the Admin API
    committed: recharge {"amount"}, adjust {"amount", "direction", "reason"}, plan {terms by name,
    "since_ms"}.
    """

    id: str
    position: int
    account: str
    verb: str
    payload: Mapping[str, object] = field(default_factory=dict)
    tenant_id: int = 0
    organization_id: int = 0
    definitions: tuple[Definition, ...] = ()
    terms: PlanTerms | None = None


@dataclass(frozen=True, slots=True)
class TenantAccount:
    """A tenant's token account as PostgreSQL has it: the start of a rebuild.

    `granted` are tokens granted beyond an unlimited plan; then `remaining` is None. `forgives`: the next
    reset forgives debt, although the plan carries debt over. `block_cause` is that of a `manual_block`.
    """

    definition: TenantDefinition
    remaining: int | None
    used: int
    cycle: int
    total: int | None
    manual_block: bool
    last_reset_ms: int
    next_reset_ms: int
    seq: int
    epoch: int
    granted: int = 0
    forgives: bool = False
    block_cause: BlockCause = BlockCause.MANUAL


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """The use of a service on which an organization's price depends: whether activated, and units this month.

    Units that are money (`in_money`) are counted separately.
    """

    service_id: int
    activated: bool
    month: int
    quantity: int
    in_money: bool = False


@dataclass(frozen=True, slots=True)
class OrganizationAccount:
    """An organization's credit and spend accounts as PostgreSQL has them. `month` is year × 12 + month.

    `ahead` is how much more it paid than its calls cost, in nano-credits.
    """

    definition: OrganizationDefinition
    balance: int
    credit_seq: int
    spend_seq: int
    spent: int
    month: int
    epoch: int
    uses: tuple[ServiceUse, ...] = ()
    ahead: int = 0
