"""All collections of the console: their words, columns, filters and menu entries.

Each row of this table defines a list, a page for each row and its forms, over the resource of the same name.
There are buttons only for what the resource can do. The rows of `PAGES` add other pages to the menu.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.admin.resources.resource import Endpoint, Resource
from gateway.core.accounts.administration import (
    ADMIN,
    BILLING,
    CHANGE,
    CREATE,
    DELETE,
    KEY_HOLDER,
    MEMBER,
    OPERATOR,
    READONLY,
    ROLES,
    Actor,
    refused_read,
    refused_write,
)
from gateway.feature import features
from gateway.settings.settings import Settings


class Slot(NamedTuple):
    """A field in a form's sentence: the word before it, texts of choices and of none, the `usual` value."""

    word: str
    field: str
    empty: str = ""
    says: Mapping[str, str] = {}
    usual: str = ""


@dataclass(frozen=True, slots=True)
class Screen:
    """The presentation of a resource, and its heading in the menu.

    The menu shows it to the roles in `first_for`; for the others it is folded under *More*.
    `columns` are fields of its rows, the first one links to the row's page. `empty` says what would fill the
    list. `only` are the offered filters,
    by default the resource's. `next_step` is the text and address of the button on an empty list without a
    form. The form of a new row begins with its `sentence`. With `is_staffs`, people of one organization see
    it in the menu only if they may change something there. `besides` are parameters of the page that shows
    the list beside others.
    """

    heading: str
    name: str
    title: str
    one: str
    columns: tuple[str, ...]
    empty: str
    only: tuple[str, ...] = ()
    newest_first: bool = True
    has_page: bool = True
    spans_time: bool = False
    first_for: Collection[str] = ()
    next_step: tuple[str, str] = ("See the overview", "/")
    sentence: tuple[Slot, ...] = ()
    is_staffs: bool = False
    besides: tuple[str, ...] = ()

    @property
    def resource(self) -> Resource:
        return RESOURCES[self.name]

    @property
    def filters(self) -> tuple[str, ...]:
        """The names of the offered filters; the search replaces the filter by name."""
        known = self.resource.filters
        return self.only or tuple(filter_ for filter_ in known if filter_ != "name" or "search" not in known)


# The headings of the menu, in this order; people see those with entries for them.
HEADINGS = ("Spend", "Access", "Catalogue", "Billing", "Reports", "Records", "Operation")
# The most entries that a menu shows before *More*.
FIRST_MAX = 12

SCREENS = {
    screen.name: screen
    for screen in (
        Screen(
            "Spend", "calls", "Calls", "call",
            ("created_at", "tenant_id", "user_id", "model", "tokens", "cost", "status", "request_id"),
            empty="No call yet. Each request with an API key is a row.",
            spans_time=True,
            next_step=("See the API keys", "/api-keys"),
            first_for=(ADMIN, OPERATOR, MEMBER, READONLY),
        ),
        Screen(
            "Spend", "budgets", "Budgets", "budget",
            ("name", "organization_id", "of", "use", "window", "state", "resets_at"),
            empty="No budget yet. Limit what a tenant, user, key or model may spend.",
            newest_first=False,
            sentence=(
                Slot("Limit", "each", "all calls together", {
                    "user": "each user", "key": "each API key", "project": "each project",
                    "session": "each session", "tenant": "each tenant",
                }),
                Slot("of", "tenant_id", "any tenant"), Slot("in", "organization_id", "its organization"),
                Slot("to", "amount", "20"), Slot("of", "unit", usual="money"),
                Slot("per", "interval", "length of a window", {"total": "life, it never resets"}, "day"),
                Slot("of", "window", "", {
                    "calendar": "the calendar", "rolling": "the last", "first_use": "a first call's",
                }, "calendar"),
                Slot("length", "length", "5h"),
            ),
            first_for=ROLES,
        ),
        Screen(
            "Access", "groups", "Groups", "group",
            ("name", "organization_id", "kind", "claim", "created_at"),
            empty="No group yet. Budgets may be of a group's members.",
            newest_first=False,
        ),
        Screen(
            "Access", "organizations", "Organizations", "organization",
            ("name", "credit_balance", "credit_limit", "spend_cap", "currency", "created_at"),
            empty="No organization yet. Creating a tenant creates one too.",
            newest_first=False,
            first_for=(ADMIN, BILLING, OPERATOR, READONLY),
        ),
        Screen(
            "Access", "tenants", "Tenants", "tenant",
            ("name", "organization_id", "plan_id", "quota", "state"),
            empty="No tenant yet. A tenant holds a token quota and the API keys that draw on it.",
            newest_first=False,
            first_for=(ADMIN, OPERATOR, MEMBER, READONLY),
        ),
        Screen(
            "Access", "users", "Users", "user",
            ("external_id", "name", "organization_id", "limits", "created_at"),
            empty="No user yet. Calls and API keys that name one make it.",
            first_for=(ADMIN, OPERATOR, READONLY),
        ),
        Screen(
            "Access", "api-keys", "API keys", "API key",
            ("name", "tenant_id", "prefix", "state", "last_used_at", "expires_at", "created_at"),
            empty="No API key yet. Programs call with one.",
            first_for=(ADMIN, OPERATOR, MEMBER, READONLY),
        ),
        Screen(
            "Access", "admin-tokens", "Admin tokens", "admin token",
            ("name", "role", "organization_id", "tenant_id", "prefix", "subject", "state", "last_used_at",
             "expires_at"),
            empty="Only the built-in tokens of the settings are in use.",
        ),
        Screen(
            "Access", "audit-log", "Audit log", "change",
            ("created_at", "actor", "person", "issuer", "token", "role", "action", "resource", "resource_id",
             "after"),
            empty="No change yet. Each change by a person or program is a row.",
            has_page=False, spans_time=True,
        ),
        Screen(
            "Catalogue", "services", "Services", "service",
            ("name", "key", "business_model_id", "service_type", "credits", "counts_tokens"),
            empty="No service yet. A service is what calls are counted and sold as.",
            newest_first=False,
        ),
        Screen(
            "Catalogue", "token-plans", "Token plans", "token plan",
            (
                "name", "total_amount", "reset_interval", "overage_policy", "rollover_max", "weights",
                "created_at",
            ),
            empty="No plan yet. A tenant without one is counted but not limited.",
            is_staffs=True,
        ),
        Screen(
            "Catalogue", "subscription-plans", "Subscription plans", "subscription plan",
            ("name", "monthly_cost", "annual_cost", "feature_access", "token_plan_id"),
            empty="No subscription plan yet. A plan has a fee by month or year, and what it includes.",
        ),
        Screen(
            "Catalogue", "prices", "Prices", "price",
            ("model", "match", "provider", "input", "output", "currency", "source", "effective_from"),
            empty="No price yet: calls are counted, and cost nothing.",
            first_for=(ADMIN, BILLING, MEMBER, READONLY),
        ),
        Screen(
            "Catalogue", "exchange-rates", "Exchange rates", "exchange rate",
            ("currency", "base", "rate", "effective_from", "created_at"),
            empty="No exchange rate yet. Organizations in other currencies need prices of their own.",
            is_staffs=True,
        ),
        Screen(
            "Catalogue", "models", "Models", "model",
            ("name", "targets", "fallback", "organization_id", "output_max", "context"),
            empty="No model yet: calls go where their paths say.", newest_first=False,
            is_staffs=True,
            first_for=(ADMIN, OPERATOR, MEMBER, READONLY),
        ),
        Screen(
            "Catalogue", "business-models", "Business models", "business model",
            ("name", "display_name", "meter", "description"),
            empty="No business model yet. It says what a service is paid by.", newest_first=False,
            is_staffs=True,
        ),
        Screen(
            "Catalogue", "organization-services", "Negotiated prices", "negotiated price",
            ("id", "organization_id", "service_id", "negotiated_credits", "business_model_id"),
            empty="Everybody pays the list price.",
        ),
        Screen(
            "Billing", "invoices", "Invoices", "invoice",
            ("number", "organization_id", "kind", "status", "payment_status", "due_date", "period_start",
             "period_end", "total_amount"),
            empty="No invoice yet. A draft shows what a period would cost.",
            first_for=(ADMIN, BILLING, READONLY),
        ),
        Screen(
            "Billing", "credit-additions", "Credits", "grant",
            ("id", "organization_id", "credits_added", "credits_remaining", "category", "expires_at",
             "timestamp"),
            empty="No credits yet. Pay-Per-Use services are paid with credits.", spans_time=True,
            first_for=(BILLING,),
        ),
        Screen(
            "Billing", "organization-subscriptions", "Subscriptions", "subscription",
            ("id", "organization_id", "plan_id", "status", "billing_interval", "start_date", "end_date"),
            empty="No subscription yet. It bills an organization the fee of a plan.",
            first_for=(BILLING,),
        ),
        Screen(
            "Billing", "payments", "Payments", "payment",
            ("reference", "organization_id", "invoice_id", "amount", "currency", "created_at"),
            empty="No payment yet. Record one on its invoice's page.",
            spans_time=True,
            next_step=("See the invoices", "/invoices"),
            first_for=(BILLING,),
        ),
        Screen(
            "Billing", "tax-rates", "Tax rates", "tax rate",
            ("organization_id", "rate", "category", "reason", "effective_from", "created_at"),
            empty="No dated tax rate. Each organization's own rate applies.",
        ),
        Screen(
            "Billing", "accounting-rates", "Accounting rates", "accounting rate",
            ("currency", "accounting_currency", "rate", "published_on", "source", "effective_from",
             "effective_to"),
            empty="No accounting rate yet. Invoices in the seller's own currency need none.",
            is_staffs=True,
        ),
        Screen(
            "Billing", "note-applications", "Applied credit", "application",
            ("created_at", "organization_id", "note_id", "invoice_id", "amount", "currency", "reason"),
            empty="No credit of a note was applied to an invoice yet.",
            spans_time=True,
            next_step=("See the invoices", "/invoices"),
        ),
        Screen(
            "Records", "charges", "Charges", "charge",
            ("period_start", "organization_id", "kind", "quantity", "unit_price", "amount", "currency",
             "reason", "invoice_id"),
            empty="No charge yet. Invoices are made of charges: use, fees and credits.",
            spans_time=True,
            next_step=("See the invoices", "/invoices"),
        ),
        Screen(
            "Records", "events", "Events", "event",
            ("used_at", "tenant_id", "service_id", "source", "event_id", "request_id", "created_at"),
            empty="No event yet. Events report use that did not pass the gateway.",
            next_step=("See the calls", "/calls"),
        ),
        Screen(
            "Records", "amendments", "Amendments", "amendment",
            (
                "created_at", "organization_id", "request_id", "direction", "tokens", "credits", "units",
                "amount", "reason",
            ),
            empty="No amendment yet. It corrects what a call was charged.",
            next_step=("See the calls", "/calls"),
        ),
        Screen(
            "Records", "reratings", "Re-rated calls", "re-rated call",
            ("created_at", "organization_id", "request_id", "cost_before", "cost_after", "charged", "reason"),
            empty="No call was re-rated yet. A price for the past rates its calls again.",
            next_step=("See the calls", "/calls"),
        ),
        Screen(
            "Records", "credit-transactions", "Credit transactions", "credit transaction",
            ("timestamp", "organization_id", "feature_id", "credits_used", "balance_after", "user_id",
             "request_id"),
            empty="No use was paid with credits yet.",
            has_page=False, spans_time=True,
            next_step=("See the calls", "/calls"),
        ),
        Screen(
            "Records", "feature-usage", "Feature usage", "use",
            ("timestamp", "organization_id", "feature_id", "usage_amount", "cost", "user_id", "request_id"),
            empty="No billed use yet.",
            has_page=False, spans_time=True,
            next_step=("See the calls", "/calls"),
        ),
        Screen(
            "Operation", "quarantine", "Quarantine", "quarantined account",
            ("account", "kind", "reason", "state", "created_at"),
            empty="No account is in quarantine. All is well.",
            next_step=("See the reconciliation", "/reconciliation"),
            is_staffs=True,
        ),
        Screen(
            "Operation", "dead-letters", "Dead letters", "dead letter",
            ("id", "reason", "organization_id", "tenant_id", "state", "created_at"),
            empty="No dead letter. All is well.",
            next_step=("See the reconciliation", "/reconciliation"),
            is_staffs=True,
        ),
        Screen(
            "Operation", "webhooks", "Webhooks", "webhook",
            ("url", "events", "enabled", "last_delivery", "created_at"),
            empty="No webhook yet. It is told of alerts, such as a budget that is used up.",
        ),
        Screen(
            "Operation", "webhook-deliveries", "Deliveries", "delivery",
            ("id", "webhook_id", "event", "state", "attempts", "response_status", "created_at"),
            empty="No message was sent yet. Each one to a webhook is a row.",
            next_step=("See the webhooks", "/webhooks"),
        ),
        *(Screen(**fields_) for feature in features() for fields_ in feature.screens),
    )
}  # fmt: skip


def screens_off(settings: Settings) -> frozenset[str]:
    """Return the names of console screens of features that are off by the settings."""
    return frozenset(
        screen["name"] for feature in features() if not feature.is_on(settings) for screen in feature.screens
    )


def _everybody(_: Actor) -> bool:
    return True


def leads(actor: Actor) -> bool:
    """Return whether an actor leads a single tenant, that is, may create its budgets."""
    budgets = RESOURCES["budgets"]
    return actor.tenant_id is not None and refused_write(actor, budgets.name, budgets.access, CREATE) is None


def is_customer(actor: Actor) -> bool:
    """Return whether an actor belongs to an organization, and to no single tenant."""
    return actor.organization_id is not None and actor.tenant_id is None


def _reader_of(report: str) -> Callable[[Actor], bool]:
    return lambda actor: _is_read(actor, REPORTS[report])


class MenuPage(NamedTuple):
    """A page in the menu that is no list of a resource, for actors that `is_for` accepts; `first_for` as above."""

    heading: str
    name: str
    title: str
    address: str
    is_for: Callable[[Actor], bool] = _everybody
    first_for: Collection[str] = (*ROLES, KEY_HOLDER)


# They precede the lists of their headings.
PAGES = (
    MenuPage("Spend", "overview", "Overview", "/", lambda actor: actor.tenant_id is None),
    MenuPage("Spend", "me", "My page", "/me", lambda actor: actor.tenant_id is not None),
    MenuPage("Spend", "team", "Tenant", "/team", leads),
    MenuPage("Spend", "account", "Account", "/account", is_customer),
    MenuPage("Spend", "usage", "Usage and cost", "/usage", lambda actor: actor.api_key_id is None),
    *(
        MenuPage("Reports", name, title, f"/{name}", _reader_of(f"reports/{name}"), first_for)
        for name, title, first_for in (
            ("balances", "Balances", (BILLING,)),
            ("unbilled", "Unbilled", (BILLING,)),
            ("receivables", "Receivables", (BILLING,)),
            ("revenue", "Revenue", ()),
            ("deferred-revenue", "Deferred revenue", ()),
            ("taxes", "Taxes", ()),
            ("ledger", "Ledger entries", ()),
        )
    ),
    MenuPage(
        "Operation",
        "health",
        "Health",
        "/health",
        lambda actor: actor.organization_id is None,
        (ADMIN, OPERATOR, READONLY),
    ),
    MenuPage("Operation", "programs", "Programs", "/programs", _reader_of("programs"), ()),
    MenuPage(
        "Operation",
        "reconciliation",
        "Reconciliation",
        "/reconciliation",
        _reader_of("reconciliation"),
        (OPERATOR,),
    ),
)


class MenuPart(NamedTuple):
    """The entries under a heading, each (name, title, address): the visible ones, and the folded ones."""

    shown: list[tuple[str, str, str]]
    more: list[tuple[str, str, str]]


def menu(actor: Actor, off: Collection[str] = ()) -> Mapping[str, MenuPart]:
    """Return an actor's menu by heading, without lists that are `off`: those of features not configured.

    The list that has only the actor's own organization or tenant is folded.
    """
    own_row = "tenants" if actor.tenant_id is not None else "organizations" if is_customer(actor) else ""
    parts = {heading: MenuPart([], []) for heading in HEADINGS}
    for page in PAGES:
        if page.is_for(actor):
            parts[page.heading][actor.role not in page.first_for].append(
                (page.name, page.title, page.address)
            )
    for screen in SCREENS.values():
        if screen.name not in off and _is_for(actor, screen):
            is_folded = actor.role not in screen.first_for or screen.name == own_row
            parts[screen.heading][is_folded].append((screen.name, screen.title, f"/{screen.name}"))
    return {heading: part for heading, part in parts.items() if part.shown or part.more}


def _is_read(actor: Actor, answered: Endpoint) -> bool:
    return refused_read(actor, answered.name, answered.access) is None


def _is_for(actor: Actor, screen: Screen) -> bool:
    """Return whether an actor's menu shows a list."""
    resource = screen.resource
    if not _is_read(actor, resource):
        return False
    if not screen.is_staffs or actor.organization_id is None:
        return True
    verbs = [CREATE] * (resource.create is not None) + [CHANGE] * (resource.patch is not None)
    verbs += [DELETE] * resource.deletable + [action.name for action in resource.actions]
    return any(refused_write(actor, resource.name, resource.access, verb) is None for verb in verbs)
