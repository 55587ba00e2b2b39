"""Budgets: how much money, tokens or calls an interval may use, of whom or of what, and what is used now."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    create_model,
    model_validator,
)

from gateway.admin.resources.models import IS_CURRENT, answer_of, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Part, Resource
from gateway.admin.resources.said import ExternalId, ModelText
from gateway.admin.resources.values import (
    DECIMAL,
    Amount,
    AnchorDay,
    Id,
    In,
    Instant,
    Out,
    Text,
    read_decimal,
    show_decimal,
)
from gateway.core.accounts.budget_terms import THRESHOLDS, THRESHOLDS_MAX
from gateway.core.accounts.budgets import EACH, ENFORCE, FINISH, INTERVALS, MODES, MONEY, ON_EXHAUSTED, UNITS
from gateway.core.accounts.roles import BILLING, access
from gateway.core.accounts.selectors import SELECTING
from gateway.core.model import INTEGER_MAX

ANY_NAME = "*"
# What a budget's windows are; another one is another budget.
WINDOW = ("organization_id", *SELECTING, "each", "unit", "interval", "time_zone", "anchor_day")
# The choices of each are the domain's own.
Unit: Any = Literal[UNITS]
Interval: Any = Literal[INTERVALS]
Each: Any = Literal[EACH]
Mode: Any = Literal[MODES]
OnExhausted: Any = Literal[ON_EXHAUSTED]


def _amount(value: object) -> object:
    if type(value) is int or isinstance(value, Decimal):
        return value
    if isinstance(value, str):
        return read_decimal(value)
    raise ValueError('must be a decimal in a string, such as "12.50", of money, else a whole number')


def _show(amount: Decimal | int) -> str | int:
    return show_decimal(amount) if isinstance(amount, Decimal) else amount


def _pattern(model: str) -> str:
    if ANY_NAME in model[:-1] or model == ANY_NAME:
        raise ValueError("must be a model's name, or what names begin with and one * behind it")
    return model


def _ascending(parts: list[float]) -> list[float]:
    if any(not 0 < part <= 1 for part in parts) or parts != sorted(set(parts)):
        raise ValueError("must be above 0, at most 1, and ascend")
    return parts


# Of money a decimal in a string, of tokens and requests a whole number.
BudgetAmount = Annotated[
    Decimal | int,
    BeforeValidator(_amount),
    PlainSerializer(_show, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{DECIMAL.pattern}$", "examples": ["12.50"]},
                {"type": "integer", "minimum": 1, "maximum": INTEGER_MAX},
            ]
        },
        mode="validation",
    ),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}, mode="serialization"),
]
ModelPattern = Annotated[ModelText, AfterValidator(_pattern)]
Thresholds = Annotated[
    list[Annotated[float, Field(strict=True, json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})]],
    Field(max_length=THRESHOLDS_MAX, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_ascending),
]


class BudgetCreate(In):
    """A new budget; what it does not name, such as a tenant, may be any."""

    organization_id: Id
    name: Text
    unit: Unit = Field(description="Money is in the organization's currency; tokens are of all kinds.")
    amount: BudgetAmount = Field(description="In an interval: money such as 12.50, else a whole number.")
    interval: Interval = Field(description="How often it begins again; total never does.")
    each: Each | None = Field(
        default=None, description="Everybody of a kind has the whole amount; null is one amount for all."
    )
    tenant_id: Id | None = None
    user: ExternalId | None = Field(default=None, description="The caller's own name for a user.")
    api_key_id: Id | None = None
    project_id: Amount | None = None
    model: ModelPattern | None = Field(
        default=None, description="A name, or what names begin with and a *; A-Z and a-z are the same."
    )
    service_id: Id | None = None
    time_zone: Text = Field(default="UTC", description="An IANA name: whose days it counts.")
    anchor_day: AnchorDay = Field(
        default=1, description="The day it begins on: 1 to 31 of a month, 1 (Monday) to 7 of a week."
    )
    mode: Mode = Field(default=ENFORCE, description="audit counts and tells, and refuses nobody.")
    on_exhausted: OnExhausted = Field(default=FINISH, description="What becomes of a stream that uses it up.")
    thresholds: Thresholds = Field(
        default=list(THRESHOLDS), description="Parts of the amount that are told when they are used."
    )


class Raise(In):
    """What the amount is until a time, and why."""

    amount: BudgetAmount = Field(description="What it is raised to.")
    until: Instant = Field(description="Then it ends by itself.")
    reason: Text


class Amounts(Out):
    """Amounts of a budget: of money decimals, else whole numbers."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, row: Any) -> Any:
        if row["unit"] == MONEY:
            return row
        return {name: int(each) if isinstance(each, Decimal) else each for name, each in row.items()}


# What is counted in a window, of a budget and of an account of one.
COUNTED: dict[str, Any] = {
    "used": (BudgetAmount | None, Field(default=None, description="In this window, settled.")),
    "held": (BudgetAmount | None, Field(default=None, description="By calls in flight.")),
    "remaining": (BudgetAmount | None, Field(default=None, description="Settled; below 0 is passed.")),
    "resets_at": (
        Instant | None,
        Field(default=None, description="When the next window begins; null is never."),
    ),
    "is_current": (bool | None, Field(default=None, description=IS_CURRENT)),
}
Budget = answer_of(
    BudgetCreate,
    """How much an interval may use, by every call it matches, and what is used of it now.

    With `each` there are many accounts: what they used is told by `GET budgets/{id}/accounts`.
    """,
    base=Amounts,
    amount=BudgetAmount,
    currency=(str, Field(description="Its organization's.")),
    raised_to=(BudgetAmount | None, Field(description="What the amount is until `raised_until`.")),
    raised_until=Instant | None,
    raise_reason=str | None,
    **COUNTED,
)
BudgetAccount = create_model(
    "BudgetAccount",
    __base__=Amounts,
    __doc__="One account of a budget: everybody of `each` has one.",
    unit=(str, MONEY),
    who=(str | None, Field(default=None, description="The user, the key's or project's id, the session.")),
    shared=(bool, Field(default=False, description="Of all others: there are as many accounts as may be.")),
    **COUNTED,
)
ACCOUNTS = Part(
    "accounts",
    "List what everybody of `each` has used",
    BudgetAccount,
    "by account",
    ("who", "shared", "used", "held", "remaining", "resets_at"),
)
RESOURCES = (
    Resource(
        name="budgets",
        access=access(BILLING, theirs=("create", "change", "delete", "raise", "reset")),
        description="How much money, tokens or calls an interval may use, of whom or of what.",
        out=Budget,
        create=BudgetCreate,
        patch=patch_of(BudgetCreate, without=WINDOW),
        fixed=dict.fromkeys(WINDOW, "stays, as what is used is counted by it: make another budget"),
        deletable=True,
        live="budgets",
        filters={
            "organization_id": Filter(),
            "tenant_id": Filter(),
            "user": Filter("text"),
            "api_key_id": Filter(),
            "project_id": Filter("count"),
            "model": Filter("text"),
            "service_id": Filter(),
            "each": Filter("text", EACH),
            "unit": Filter("text", UNITS),
            "interval": Filter("text", INTERVALS),
            "mode": Filter("text", MODES),
            "name": Filter("text"),
        },
        actions=(
            Action("raise", "Have more until a time; then it ends by itself", Raise),
            Action("reset", "Begin this interval's use at 0 again, of all accounts"),
        ),
        parts=(ACCOUNTS,),
        declared=Declared(by=("organization_id", "name"), known_by_id=True, unique=True),
    ),
)
