"""What an administrator defines of accounts, as it travels from the tables to the counters.

Times are milliseconds since the epoch (0 is never); `None` totals and caps are "unlimited".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.plans import PlanTerms
from gateway.core.accounts.run_policies import NO_POLICIES, RunPolicies, RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.billing.money import ServicePricing
from gateway.core.billing.price_book import BASE_CURRENCY
from gateway.core.billing.vector import ExchangeRate, ModelPrice
from gateway.core.calls.capacity import Share
from gateway.core.calls.routes import ModelRule
from gateway.core.model import INTERACTIVE, UNSETTLED_CHARGED, USER_ACCEPTED, Limits, Service

CATALOGUE_ACCOUNT = "catalogue"
PRICES_ACCOUNT = "prices"


@dataclass(frozen=True, slots=True)
class NegotiatedTerms:
    """What an organization pays for one service; what is None is as the service says."""

    service_id: int
    credits: int
    meter: str | None = None
    pricing: ServicePricing | None = None
    counts_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelLists:
    """The models that an organization's calls may ask for, those of its tenants by id, and of its users.

    Where there is no list, any model may be asked for.
    """

    own: tuple[str, ...] | None = None
    tenants: dict[int, tuple[str, ...]] = field(default_factory=dict)
    users: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, tenant_id: int, user: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return the lists that a call has to be on, each with whose it is."""
        found = [("organization", self.own), ("tenant", self.tenants.get(tenant_id))]
        if user:
            found.append(("user", self.users.get(user)))
        return [(whose, models) for whose, models in found if models is not None]


NO_LISTS = ModelLists()


@dataclass(frozen=True, slots=True)
class OrganizationTerms:
    """What services cost an organization, and which its subscription includes.

    The subscription is in force from `since_ms` to `until_ms` (not included); both are 0 where there is
    none. `subscribed` says that one was in force at some time before. `currency` is its own. `budgets` are
    all of the organization's. `listed`: it may use only negotiated services. `models` are lists that its
    calls are held to, and `runs` policies of their runs, besides those of keys. `spent` is how they are told
    that an amount is spent.
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


@dataclass(frozen=True, slots=True)
class OrganizationDefinition:
    """An organization's limits and terms. `cap` is in millionths of its currency."""

    organization_id: int
    limits: Limits
    credit_limit: int = 0
    cap: int | None = None
    terms: OrganizationTerms = OrganizationTerms()


@dataclass(frozen=True, slots=True)
class TenantDefinition:
    """A tenant's limits, its users' limits, and the terms of its plan."""

    tenant_id: int
    organization_id: int
    limits: Limits
    user_limits: Limits
    terms: PlanTerms
    has_ledger: bool = False


@dataclass(frozen=True, slots=True)
class KeyDefinition:
    """An API key and whom it stands for; `digest` is its HMAC, the name of its identity.

    One `of_tokens` is no secret: signed tokens of a subject stand for it, also once it has ended. One that is
    `gone` was deleted: its subject is nobody's again.
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
    of_tokens: bool = False
    gone: bool = False


@dataclass(frozen=True, slots=True)
class UserDefinition:
    tenant_id: int
    organization_id: int
    user: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class CatalogueDefinition:
    """Every service, resolved; models and shares; and by plan what kinds of tokens weigh, in millionths."""

    services: tuple[Service, ...]
    weights: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    models: tuple[ModelRule, ...] = ()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class PricesDefinition:
    """Prices of models known by their names that are in force, were a day ago, or will be; and rates."""

    prices: tuple[ModelPrice, ...]
    rates: tuple[ExchangeRate, ...] = ()


# Definitions of one organization; and whatever is defined.
AccountDefinition = OrganizationDefinition | TenantDefinition | KeyDefinition | UserDefinition
Definition = AccountDefinition | CatalogueDefinition | PricesDefinition


@dataclass(frozen=True, slots=True)
class ControlWrite:
    """One intent that waits: `position` orders them, `definitions` are read when it is pushed.

    A grant (`verb` other than define) names its tenant and organization; `payload` is what the Admin API
    committed: recharge {"amount"}, adjust {"amount", "direction", "reason"}, plan {its terms by name, and
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
    """A tenant's token account as PostgreSQL has it: what a rebuild starts from.

    `granted` is what was granted beyond its plan, while that is unlimited: then `remaining` is None.
    `forgives`: the next reset forgives debt, though its plan carries that.
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


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """What an organization's price of a service depends on: paid once, units of a month so far.

    Units that are money (`in_money`) are counted apart.
    """

    service_id: int
    activated: bool
    month: int
    quantity: int
    in_money: bool = False


@dataclass(frozen=True, slots=True)
class OrganizationAccount:
    """An organization's credit and spend accounts as PostgreSQL has them. `month` is year × 12 + month.

    `ahead` is what it paid beyond what its calls cost, in nano-credits.
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
