"""Resources of organizations, tenants, users, API keys, admin tokens and the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from gateway.admin import credentials
from gateway.admin.resources.billing import UNBILLED, AutoTopUpField, UnitCost
from gateway.admin.resources.form_fields import Secret
from gateway.admin.resources.resource import (
    IS_CURRENT,
    Action,
    ConfigDeclaration,
    Resource,
    answer_of,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    AS_STORED,
    MODELS_MAX,
    Address,
    Amount,
    Cap,
    Contact,
    Country,
    Currency,
    EndpointId,
    Exactly,
    ExternalId,
    Flag,
    Fraction,
    Id,
    In,
    Instant,
    LimitsIn,
    ModelText,
    Money,
    Out,
    PositiveAmount,
    RunAmount,
    TagNames,
    TagValues,
    Text,
    Zone,
    must,
    optional,
)
from gateway.core.accounts.administration import (
    BILLING,
    CHANGE,
    CREATE,
    DELETE,
    MEMBER,
    OPERATOR,
    OVERLAP_S,
    OVERLAP_S_MAX,
    READ,
    READONLY,
    ROLES,
    TEAM_ROLES,
    access,
)
from gateway.core.accounts.runs import ENDLESS_CALLS, TTL_S_MAX
from gateway.core.accounts.spent_answers import RETRY_AFTER_S_MAX
from gateway.core.billing.invoice_schedule import LEFT_REASONS
from gateway.core.billing.payments import DUE_DAYS_MAX
from gateway.core.billing.price_book import BASE_CURRENCY
from gateway.core.issuers import SUBJECT_CHARACTERS_MAX

Models = Annotated[list[ModelText], Field(min_length=1, max_length=MODELS_MAX)]
MODELS = "The models its calls may ask for, besides other lists; null is any."


class RunPolicyIn(In):
    """The limits of runs that its calls open; what is left out or null has no limit."""

    max: RunAmount | None = optional("Most that one costs, in its currency.")
    max_calls: Annotated[int, Field(strict=True, ge=1, lt=ENDLESS_CALLS)] | None = None
    ttl_s: Annotated[int, Field(strict=True, ge=1, le=TTL_S_MAX)] | None = None
    required: Flag = Field(default=False, description="Refuse calls that name no run.")


Runs = Annotated[RunPolicyIn, AS_STORED]
RUNS = "What its calls' runs may be, besides other policies; null is anything."

SpentStatus = Literal[402, 429]
SPENT_STATUS = "Status of a refusal for a spent amount: agents wait behind 429, and most end at 402"
RetryAfter = Annotated[int, Field(strict=True, ge=1, le=RETRY_AFTER_S_MAX)]
RETRY_AFTER_MAX = "Longest Retry-After of such a refusal, in seconds"

StripeCustomer = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_-]{1,255}$")]


class OrganizationCreate(In):
    """A new organization."""

    name: Text
    currency: Currency = Field(default=BASE_CURRENCY, description="The currency, ISO 4217.")
    credit_limit: Amount = Field(default=0, description="Credits it may use beyond its balance.")
    credit_unit_cost: UnitCost | None = optional(
        "Price of a credit used beyond the balance, from now on; null: free."
    )
    auto_top_up: AutoTopUpField | None = optional(
        "Credits that are bought automatically: at which balance (threshold), how many "
        "(credits), what one costs (unit_cost), invoicing now or prepaid, how often a month (monthly_max)."
    )
    spend_cap: Cap | None = optional("Most Pay-Per-Use spend a month.")
    services: Literal["all", "listed"] = Field(
        default="all",
        description="All, or those alone that it has a row of organization-services for.",
    )
    limits: LimitsIn | None = None
    models: Models | None = optional(MODELS)
    runs: Runs | None = optional(RUNS)
    spent_status: SpentStatus | None = optional(f"{SPENT_STATUS}; null: the default of the settings.")
    retry_after_max_s: RetryAfter | None = optional(f"{RETRY_AFTER_MAX}; null: no bound.")
    tags: TagNames = Field(
        default=[],
        description="Names of members of `x-tollkeeper-metadata` for budgets and usage reports.",
    )
    due_days: Annotated[int, Field(strict=True, ge=0, le=DUE_DAYS_MAX)] | None = optional(
        "Days until its invoices are due; null: the default of the settings."
    )
    dunning: Flag = Field(
        default=True,
        description="Send reminders and block when invoices stay unpaid.",
    )
    tax_rate: Fraction = Field(default="0", description='A fraction, such as "0.20".', validate_default=True)
    address: Address | None = optional(
        "Below its name on invoices: lines, or street, city, post_code, region and country as one object."
    )
    country: Country | None = optional("ISO 3166, two letters.")
    tax_number: Text | None = optional("Such as its VAT identifier.")
    contact: Contact | None = optional("Whom to ask about its invoices: name, phone, email.")
    buyer_reference: Text | None = optional("What it wants its invoices to name, such as a Leitweg-ID.")
    endpoint_id: EndpointId | None = optional(
        "Where it gets electronic invoices: a scheme and an identifier, or a mail address."
    )
    stripe_customer: StripeCustomer | None = optional(
        "Stripe's customer id, such as cus_…; later final documents are handed over."
    )
    time_zone: Zone = Field(default="UTC", description="An IANA name: where its months end, for invoices.")


# Fields that an organization may change itself. Its name is not among them, as files and staff use it.
THEIR_FIELDS = {
    "limits", "models", "runs", "spent_status", "retry_after_max_s", "address", "country", "tax_number",
    "contact", "buyer_reference", "endpoint_id", "tags",
}  # fmt: skip

Organization = answer_of(
    OrganizationCreate,
    "Who is billed: the owner of credits, of a spend cap and of tenants.",
    tags_since=(dict[str, str], Field(description="Since when calls have each tag.")),
    credit_balance=(int, Field(description="Credits as the counters hold them now.")),
    balance_is_current=(bool, Field(default=False, description=IS_CURRENT)),
    credit_ahead=(Exactly, Field(description="Part of a credit that is paid and not used yet.")),
    credit_unit_cost=Money | None,
    spend_cap=Money | None,
    currency=(str, Field(description="The currency, ISO 4217.")),
    time_zone=str,
    invoicing_left=(str | None, Field(description="Why its invoice on schedule was not made; null: it was.")),
    invoicing_left_reason=(
        str | None,
        Field(description=f"The same in a word: {', '.join(LEFT_REASONS)}."),
    ),
)


class TenantCreate(In):
    """A new tenant; without `organization_id` an organization of its name is made for it."""

    name: Text
    organization_id: Id | None = None
    plan_id: Id | None = optional("A token plan.")
    limits: LimitsIn | None = None
    user_limits: LimitsIn | None = optional("For each of the tenant's users.")
    models: Models | None = optional(MODELS)
    runs: Runs | None = optional(RUNS)


Tenant = answer_of(
    TenantCreate,
    "A part of an organization with its own token quota. It never changes organization.",
    organization_id=Id,
)


class Recharge(In):
    """Tokens to add to the remaining ones."""

    amount: PositiveAmount


class Adjust(In):
    """A correction of the balance, with its reason."""

    amount: PositiveAmount
    direction: Literal["IN", "OUT"]
    reason: Text


class UserCreate(In):
    """A new user; without `organization_id` a member of staff."""

    external_id: ExternalId = Field(description="The caller's own name for this user.")
    organization_id: Id | None = None
    name: Text | None = None
    limits: LimitsIn | None = optional("Override the tenant's `user_limits`.")
    models: Models | None = optional(MODELS)


User = answer_of(UserCreate, "Someone a request acts for, or a member of staff.")


RESOURCES = (
    Resource(
        name="organizations",
        access=access(
            BILLING,
            OPERATOR,
            verbs={"delete": (OPERATOR,)},
            fields={
                BILLING: OrganizationCreate.model_fields.keys() - {"limits", "models", "runs"},
                OPERATOR: ("name", "limits", "models", "runs"),
            },
            of_all=("create",),
            ours=("delete", *OrganizationCreate.model_fields.keys() - THEIR_FIELDS),
            theirs=("change",),
        ),
        description="Who is billed: the owner of credits, of a spend cap and of tenants.",
        out=Organization,
        create=OrganizationCreate,
        patch=patch_of(OrganizationCreate),
        deletable=True,
        live="credits",
        parts=(UNBILLED,),
        filters=filters("name:text search:text invoicing_left_reason", invoicing_left_reason=LEFT_REASONS),
        declared=ConfigDeclaration(),
    ),
    Resource(
        name="tenants",
        access=access(
            OPERATOR,
            ours=("plan_id", "recharge", "reset", "adjust", "block", "unblock"),
            theirs=("create", "change", "delete"),
            teams={READ: TEAM_ROLES, CHANGE: {OPERATOR: ("user_limits",)}},
        ),
        description="Parts of organizations with their own token quota.",
        out=Tenant,
        create=TenantCreate,
        patch=patch_of(TenantCreate, without=("organization_id",)),
        deletable=True,
        filters=filters("search:text organization_id plan_id name:text"),
        actions=(
            Action("recharge", "Add tokens to what remains of this cycle", Recharge, quota=True),
            Action("reset", "Begin a new cycle now", quota=True),
            Action("adjust", "Correct what remains, stating why", Adjust, quota=True),
            Action("block", "Refuse the tenant's requests until unblocked", quota=True),
            Action("unblock", "Take a block by hand away", quota=True),
        ),
        declared=ConfigDeclaration(
            by=("organization_id", "name"), needs=("organization_id",), known_by_id=True
        ),
    ),
    Resource(
        name="users",
        access=access(OPERATOR, theirs=("create", "change", "delete")),
        description="Whom requests act for, and staff. Met on their first request, or made here.",
        out=User,
        named_by="external_id",
        create=UserCreate,
        patch=patch_of(UserCreate, without=("organization_id", "external_id")),
        deletable=True,
        filters=filters("organization_id external_id:text"),
        # Those that a request was the first to name are not configuration, unless a person gave them limits.
        declared=ConfigDeclaration(
            by=("organization_id", "external_id"),
            is_kept=lambda row: not row["first_sight"] or bool(row["limits"] or row["models"]),
        ),
    ),
)


# API keys and admin tokens: the credentials.

# The fields that replace a secret for signed tokens.
TOKENS = ("issuer", "subject")
Issuer = Annotated[str, Field(strict=True, pattern=r"^[\x21-\x7e]{1,512}$")]
Subject = Annotated[
    Text,
    Field(max_length=SUBJECT_CHARACTERS_MAX),
    must(str.isprintable, "be printable: no token is read that says anything else"),
]
Overlap = Annotated[int, Field(strict=True, ge=0, le=OVERLAP_S_MAX)]


class _TokenCredential(In):
    """A credential that may accept signed tokens instead of a secret."""

    @model_validator(mode="after")
    def both_say_whose_tokens(self) -> Self:
        """Require issuer and subject together, or none: an issuer alone would admit all its people."""
        absent = [getattr(self, name) is None for name in TOKENS]
        if any(absent) and not all(absent):
            raise ValueError("issuer and subject belong together: say both, or none")
        return self


class ApiKeyCreate(_TokenCredential):
    """A new API key of a tenant."""

    tenant_id: Id
    name: Text | None = None
    user: ExternalId | None = optional("The user this key belongs to, by the tenant's own id.")
    user_header: Literal["accept", "require", "ignore"] = Field(
        default="accept", description="May a request name its user (x-tollkeeper-user) if the key has none?"
    )
    unsettled: Literal["charge", "release"] = Field(
        default="charge",
        description="What a hold of this key costs if nobody settles it: all it held, or nothing.",
    )
    priority: Literal["interactive", "batch"] = Field(
        default="interactive",
        description="The highest priority that its calls may claim (x-tollkeeper-priority).",
    )
    limits: LimitsIn | None = None
    models: Models | None = optional("The models it may ask for; null is any.")
    runs: Runs | None = optional(RUNS)
    spent_status: SpentStatus | None = optional(f"{SPENT_STATUS}; null: as the organization says.")
    retry_after_max_s: RetryAfter | None = optional(f"{RETRY_AFTER_MAX}; null: as the organization says.")
    tags: TagValues = Field(
        default={},
        description="Values of declared tags of all its calls, before what callers say.",
    )
    expires_at: Instant | None = None
    issuer: Issuer | None = optional(
        "With `subject`: use signed tokens (JWTs) of this issuer instead of a key."
    )
    subject: Subject | None = optional("The tokens' subject, as the gateways' rule for the issuer maps it.")


class Rotate(In):
    """A new key that replaces another, with the same user, limits, models and policy of runs."""

    overlap_s: Overlap = Field(
        default=OVERLAP_S, description="Seconds for which both are good; 0 revokes the earlier one at once."
    )
    expires_at: Instant | None = optional(
        "When the new one ends; if it is not said, when the earlier one would have."
    )


ApiKey = answer_of(
    ApiKeyCreate,
    "A credential for the data plane; `key` itself is in the answer alone that made it.",
    name=str,
    prefix=(str, Field(description="How the key begins, to recognize it by.")),
    revoked_at=Instant | None,
    replaced_by_id=(Id | None, Field(description="The key that was made in its place.")),
    last_used_at=(Instant | None, Field(description="The day of its last call that was stored, in UTC.")),
)


class AdminTokenCreate(_TokenCredential):
    """A new token for this API."""

    name: Text
    role: Literal["admin", "billing", "operator", "member", "readonly"]
    organization_id: Id | None = optional("Limits the token to this organization; null: all organizations.")
    tenant_id: Id | None = optional(
        "Narrows the token to this tenant of its organization: its lead is an operator, an "
        "engineer a member; null: the whole organization."
    )
    user_id: Id | None = optional("The user its writes are attributed to.")
    expires_at: Instant | None = None
    ours: Flag = Field(
        default=False,
        description="Of one organization: it may decide what that one owes, and whether it is shut out. "
        "A token of all organizations alone can say so.",
    )
    issuer: Issuer | None = optional(
        "With `subject`: people of this provider sign in with it, without a token."
    )
    subject: Subject | None = optional("The people, as the keepers' rule for the provider maps them.")


AdminToken = answer_of(
    AdminTokenCreate,
    "A credential for this API; `token` itself is in the create answer only.",
    prefix=(str, Field(description="How the token begins, to recognize it by.")),
    revoked_at=Instant | None,
    last_used_at=(Instant | None, Field(description="To a minute.")),
)


# Tags limit what a team may use: it sets none.
_TEAM_FIELDS = ApiKeyCreate.model_fields.keys() - {"tags"}

ACCESS_RESOURCES = (
    Resource(
        name="api-keys",
        access=access(
            OPERATOR,
            MEMBER,
            theirs=("create", "change", "delete", "rotate", "revoke"),
            teams={
                READ: TEAM_ROLES,
                CREATE: dict.fromkeys((OPERATOR, MEMBER), _TEAM_FIELDS),
                CHANGE: {OPERATOR: _TEAM_FIELDS, MEMBER: ("name",)},
                DELETE: (OPERATOR, MEMBER),
                "rotate": (OPERATOR, MEMBER),
                "revoke": (OPERATOR, MEMBER),
            },
        ),
        description="Credentials of the data plane. The key itself is shown once, when it is made; "
        "one of an issuer's subject has none.",
        out=ApiKey,
        create=ApiKeyCreate,
        patch=patch_of(ApiKeyCreate, without=("tenant_id", *TOKENS), kinds={"name": Text}),
        deletable=True,
        settle_first="revoke",
        filters=filters("tenant_id organization_id user:text prefix:text issuer:text subject:text"),
        actions=(
            Action("rotate", "Make a key in its place; this one ends after an overlap", Rotate, mints=True),
            Action("revoke", "Refuse the key from now on, for ever"),
        ),
        refers={"replaced_by_id": "api-keys"},
        secret=Secret("key", credentials.API_KEY, instead=TOKENS),
        declared=ConfigDeclaration(
            by=("tenant_id", "name"),
            needs=("name",),
            # Another key has its name, or none needs it: it is revoked, or ends after an overlap.
            is_gone=lambda row: row["revoked_at"] is not None or row["replaced_by_id"] is not None,
            known_by_id=True,
            followed_by="replaced_by_id",
            claims=TOKENS,
        ),
    ),
    Resource(
        name="admin-tokens",
        access=access(read=(READONLY,), theirs=("create", "change", "delete", "revoke"), of_all=("ours",)),
        description="Credentials of the Admin API and of the console. The token itself is shown once, when "
        "it is made; one of a provider's people has none.",
        out=AdminToken,
        create=AdminTokenCreate,
        patch=patch_of(AdminTokenCreate, without=("role", "organization_id", "tenant_id", *TOKENS)),
        deletable=True,
        filters=filters("organization_id tenant_id role user_id issuer:text subject:text", role=ROLES),
        actions=(Action("revoke", "Refuse the token from now on, for ever"),),
        secret=Secret("token", credentials.ADMIN_TOKEN, instead=TOKENS),
    ),
)


# The audit log: who changed what, and when; read-only.

ISSUER = "Which provider: two of them may name two people alike."
IDENTITY = "Who that is at this provider for good: the claim `sub`."


class AuditEntry(Out):
    """A change, stored in the same transaction as the change itself."""

    id: Id
    actor: str
    admin_token_id: Id | None
    token: str | None = Field(description="The name of that token.")
    person: str | None = Field(description="Who it was, where a provider of identities has said so.")
    issuer: str | None = Field(description=ISSUER)
    identity: str | None = Field(description=IDENTITY)
    role: str | None = Field(description="What its token might do.")
    organization_id: Id | None = Field(description="Whose row it was; null where it is nobody's.")
    action: str
    resource: str
    resource_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    created_at: Instant


AUDIT_RESOURCES = (
    Resource(
        name="audit-log",
        access=access(),
        description="Who changed what, and when. Append-only, written in the transaction of the change.",
        out=AuditEntry,
        filters=filters(
            "actor:text person:text issuer:text identity:text resource:text resource_id:text "
            "action:text admin_token_id organization_id role",
            role=ROLES,
        ),
    ),
)
