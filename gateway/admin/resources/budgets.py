"""Resources of budgets: limits on money, tokens or calls per interval, their use now, and replays of calls."""

from __future__ import annotations

import re
from datetime import date
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

from gateway.admin.resources.resource import (
    IS_CURRENT,
    Action,
    ConfigDeclaration,
    Filter,
    PartsDeclaration,
    Question,
    Resource,
    SubResource,
    answer_of,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    AS_STORED,
    Amount,
    AnchorDay,
    ExternalId,
    Flag,
    Id,
    In,
    Instant,
    ModelText,
    Money,
    Out,
    TagValues,
    Text,
    must,
    optional,
    plausible,
    show_decimal,
)
from gateway.core.accounts.administration import BILLING, CREATE, OPERATOR, READ, TEAM_ROLES, Row, access
from gateway.core.accounts.budget_amounts import THRESHOLDS, THRESHOLDS_MAX
from gateway.core.accounts.budget_selectors import Selector
from gateway.core.accounts.budgets import (
    EACH,
    ENFORCE,
    FINISH,
    HOLDS,
    KEY,
    MODES,
    MONEY,
    OF_GROUP,
    ON_EXHAUSTED,
    OVERRIDES_MAX,
    TENANT,
    UNITS,
)
from gateway.core.accounts.intervals import INTERVALS
from gateway.core.accounts.replay.fold import BUDGETS_MAX as REPLAYED_MAX
from gateway.core.accounts.replay.fold import OWNERS_LISTED_MAX
from gateway.core.accounts.steps import KEEP, MODELS_MAX, SESSIONS, STEPS_MAX
from gateway.core.accounts.tags import GROUP as TAG_GROUP
from gateway.core.accounts.tags import TAG
from gateway.core.accounts.windows import CALENDAR, WINDOWS, read_length
from gateway.core.model import INTEGER_MAX

ANY_NAME = "*"
# Fields that define a budget's windows; they never change.
WINDOW = (
    "organization_id", *Selector._fields, "unit", "window", "length", "interval", "time_zone", "anchor_day",
)  # fmt: skip
# The choices come from the domain's own constants.
Unit: Any = Literal[UNITS]
Interval: Any = Literal[tuple(INTERVALS)]
Window: Any = Literal[WINDOWS]
Session: Any = Literal[SESSIONS]
Length = Annotated[
    str,
    Field(strict=True, json_schema_extra={"pattern": "^[1-9][0-9]{0,5}[mhd]$"}),
    must(
        lambda text: read_length(text) > 0,
        "be a number of minutes, hours or days from 5m to 366d, such as 90m, 5h or 7d",
    ),
]
Each: Any = Annotated[
    str,
    Field(strict=True),
    must(
        lambda kind: kind in EACH or TAG_GROUP.fullmatch(kind) is not None,
        f"be {', '.join(EACH)}, or {TAG}NAME of a tag",
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(EACH)},
                {"type": "string", "pattern": f"^{TAG_GROUP.pattern}$"},
            ]
        }
    ),
]
Mode: Any = Literal[MODES]
OnExhausted: Any = Literal[ON_EXHAUSTED]
Holds: Any = Literal[HOLDS]
# Up to 10^15 of a currency, which is more than other decimals have.
AMOUNT = re.compile(r"[0-9]{1,16}(\.[0-9]{1,9})?", re.ASCII)


def _amount(value: object) -> object:
    if type(value) is int or isinstance(value, Decimal):
        return value
    if isinstance(value, str) and AMOUNT.fullmatch(value) is not None:
        return Decimal(value)
    raise ValueError('must be a decimal in a string, such as "12.50", of money, else a whole number')


def _show(amount: Decimal | int) -> str | int:
    return show_decimal(amount) if isinstance(amount, Decimal) else amount


# For money a decimal string, for tokens and requests a whole number.
BudgetAmount = Annotated[
    Decimal | int,
    BeforeValidator(_amount),
    PlainSerializer(_show, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{AMOUNT.pattern}$", "examples": ["12.50"]},
                {"type": "integer", "minimum": 1, "maximum": INTEGER_MAX},
            ]
        },
        mode="validation",
    ),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}, mode="serialization"),
]
ModelName = Annotated[
    ModelText, must(lambda model: ANY_NAME not in model, "be a model's whole name, without *")
]
ModelPattern = Annotated[
    ModelText,
    must(
        lambda model: ANY_NAME not in model[:-1] and model != ANY_NAME,
        "be a model's name, or a prefix with one * at its end",
    ),
]
StepPattern = Annotated[
    ModelText,
    must(
        lambda model: ANY_NAME not in model[:-1],
        "be a model's name, a prefix with one * at its end, or * for every model",
    ),
]
Thresholds = Annotated[
    list[Annotated[float, Field(strict=True, json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})]],
    Field(max_length=THRESHOLDS_MAX, json_schema_extra={"uniqueItems": True}),
    must(
        lambda parts: all(0 < part <= 1 for part in parts) and parts == sorted(set(parts)),
        "be above 0, at most 1, and ascend",
    ),
]


class CarryIn(In):
    """What an interval hands on to the next one."""

    max: BudgetAmount = Field(description="The most that is added to the next interval's amount.")
    debt: Flag = Field(
        default=False,
        description="Take use beyond the amount off the next ones, until these have covered it.",
    )


Carry: Any = Annotated[CarryIn, AS_STORED]


class StepIn(In):
    """A step: once so much is used, calls of a model are sent as another one."""

    at: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        description="From this share of the limit on, used and held; 0.8 is 80 %."
    )
    models: Annotated[
        dict[StepPattern, ModelName],
        Field(min_length=1, max_length=MODELS_MAX),
        must(
            lambda models: len({pattern.casefold() for pattern in models}) == len(models),
            "name each pattern once: case is ignored",
        ),
        must(
            lambda models: all(pattern.casefold() != other.casefold() for pattern, other in models.items()),
            "name another model than the one that it replaces",
        ),
    ] = Field(
        description="By model, a prefix such as claude-opus-*, or * for every model: the one that is sent instead."
    )
    session: Session = Field(
        default=KEEP, description="Whether running sessions keep their model while it fits, or switch."
    )


def _patterns_of(steps: list[StepIn]) -> list[tuple[float, str]]:
    return [(step.at, pattern.casefold()) for step in steps for pattern in step.models]


StepList = Annotated[
    list[StepIn],
    Field(max_length=STEPS_MAX),
    must(
        lambda steps: len(set(_patterns_of(steps))) == len(_patterns_of(steps)),
        "name a pattern once at one share: case is ignored",
    ),
]
# Null is none of them.
Steps: Any = Annotated[StepList | None, AfterValidator(lambda steps: steps or []), AS_STORED]


class BudgetCreate(In):
    """A new budget. A selector that is left out, such as a tenant, matches every call."""

    organization_id: Id
    name: Text
    unit: Unit = Field(description="Money is in the organization's currency; tokens are of all kinds.")
    amount: BudgetAmount = Field(description="Amount per interval: money such as 12.50, else a whole number.")
    interval: Interval | None = optional(
        "How often a calendar window resets; total never does. Other windows have a length instead."
    )
    window: Window = Field(
        default=CALENDAR,
        description="calendar resets by interval; rolling counts the last length; first_use begins with a call, and"
        " lasts length.",
    )
    length: Length | None = optional("Of a window that is not calendar: 5m to 366d, such as 90m, 5h or 7d.")
    carry: Carry | None = optional(
        "The rest of an interval goes on into the next one, up to max in the budget's unit; null: nothing does."
    )
    each: Each | None = optional(
        "Give each user, key, project, session, tenant, or value of a tag (tag:NAME) this amount; null: share it."
    )
    tenant_id: Id | None = None
    user: ExternalId | None = optional("The caller's own name for a user.")
    api_key_id: Id | None = None
    project_id: Amount | None = None
    model: ModelPattern | None = optional("A model, or a prefix such as claude-opus-*. Case is ignored.")
    service_id: Id | None = None
    tool: Text | None = optional("A tool of an MCP server. Case is ignored.")
    server: Text | None = optional("An MCP server, by its upstream's name.")
    tags: TagValues = Field(default={}, description="Values of tags that a call must have, all of them.")
    group_id: Id | None = optional("Calls of its members, together; with each, each member has the amount.")
    time_zone: Text = Field(default="UTC", description="An IANA name: whose days it counts.")
    anchor_day: AnchorDay = Field(
        default=1, description="The day it begins on: 1 to 31 of a month, 1 (Monday) to 7 of a week."
    )
    mode: Mode = Field(default=ENFORCE, description="enforce refuses; audit only counts and alerts.")
    on_exhausted: OnExhausted = Field(
        default=FINISH, description="Whether a stream that exhausts the budget may finish or is cut."
    )
    hold: Holds | None = optional(
        "How much of a call is held: what is likely, or the maximum. null is as its token plan"
        " admits: the maximum where that is strict, else likely."
    )
    thresholds: Thresholds = Field(
        default=list(THRESHOLDS), description="Alert at these shares of the amount (0.8 is 80 %)."
    )
    steps: Steps = Field(
        default=[],
        description="From which share of the amount on calls of a model are sent as another one. Only enforce steps.",
    )


class Raise(In):
    """The raised amount of a budget, until when, and why; with `who` of one alone."""

    amount: BudgetAmount = Field(description="The raised amount.")
    until: Instant = Field(description="Then it ends by itself.")
    reason: Text
    who: ExternalId | None = optional(
        "Of a budget with `each`: the user, session, or id of the key, project or tenant that is raised."
        " null: all."
    )


class OverrideOwner(In):
    """Whose amount of a budget with `each` an override is."""

    who: ExternalId = Field(description="The user, session, or id of the key, project or tenant.")


class Override(In):
    """The amount of one alone, in place of the budget's."""

    amount: BudgetAmount | None = Field(description="0: nothing; null: no limit.")
    until: Instant | None = optional("Then it ends by itself; null: it stays.")
    reason: Text | None = None


class Amounts(Out):
    """Amounts of a budget: decimals for money, else whole numbers."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, row: Any) -> Any:
        if row["unit"] == MONEY:
            return row
        return {name: int(each) if isinstance(each, Decimal) else each for name, each in row.items()}


class WindowRelease(Out):
    """When a rolling window gives back, and how much."""

    at: Instant
    amount: BudgetAmount


# The counts of a window, for a budget and for one of its accounts.
COUNTED: dict[str, Any] = {
    "used": (BudgetAmount | None, optional("In this window, settled.")),
    "held": (BudgetAmount | None, optional("By calls in flight.")),
    "remaining": (BudgetAmount | None, optional("Settled, with `carried`; below 0 is passed.")),
    "resets_at": (
        Instant | None,
        optional("When the next window begins; null is never, or with the next call."),
    ),
    "carried": (
        BudgetAmount | None,
        optional(
            "What earlier intervals left, beside the amount; below 0 is taken off. null without `carry`."
        ),
    ),
    "frees": (
        list[WindowRelease] | None,
        optional("The next moments at which a rolling window gives back. null of other windows."),
    ),
    "is_current": (bool | None, optional(IS_CURRENT)),
}


class CarryOver(Out):
    """The rest of an interval that goes on into the next one, up to `max`; with `debt`, use beyond it too."""

    max: BudgetAmount
    debt: bool


Budget = answer_of(
    BudgetCreate,
    """Limits on spend, tokens or requests per interval, and their use now.

    With `each` there are many accounts: what they used is told by `GET budgets/{id}/accounts`.
    """,
    base=Amounts,
    amount=BudgetAmount,
    carry=CarryOver | None,
    currency=(str, Field(description="Its organization's.")),
    of_team=(bool, Field(description="A lead of its tenant made it: leads may change it.")),
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
    who=(str | None, optional("The user, the session, the id of the key, project or tenant.")),
    limit=(BudgetAmount | None, optional("The most that may be used in this window; null: no limit.")),
    limit_by=(str | None, optional("What decides `limit`: budget, or override or raise of this one.")),
    shared=(bool, Field(default=False, description="Of all others: there are as many accounts as may be.")),
    **COUNTED,
)
ACCOUNTS = SubResource(
    "accounts",
    "List what everybody of `each` has used",
    BudgetAccount,
    "by account",
    ("who", "shared", "limit", "limit_by", "used", "held", "remaining", "carried", "frees", "resets_at"),
)


class BudgetOverride(Amounts):
    """An amount of one alone, in place of the budget's."""

    who: str = Field(validation_alias="name")
    amount: BudgetAmount | None
    until: Instant | None
    reason: str | None


OVERRIDES = SubResource(
    "overrides",
    "List the amounts that single ones have in place of the budget's",
    BudgetOverride,
    "by who",
    ("who", "amount", "until", "reason"),
    OverrideOwner,
    put=Action(
        "override",
        "Give one alone another amount in place of the budget's",
        Override,
        done="This one has its own amount now.",
    ),
    delete=Action(
        "remove-override",
        "Let one have the budget's own amount again",
        done="This one has the budget's own amount again.",
    ),
)
# A time by which windows can be computed.
_ReplayTime = Annotated[Instant, AfterValidator(plausible)]


class ReplayedOverride(In):
    """The amount of one alone, as of an override."""

    who: ExternalId = Field(
        description="The user, session, or id of the key, project or tenant; or group:ID."
    )
    amount: BudgetAmount | None = Field(description="0: nothing; null: no limit.")
    until: _ReplayTime | None = optional("Calls from then on have the budget's own; null: it stays.")


class ReplayedBudget(BudgetCreate):
    """A budget of a replay: as a new one, with the overrides that it would have."""

    organization_id: Id | None = optional("That of the replay, or left out.")  # type: ignore[assignment]  # a new budget must name it
    overrides: list[ReplayedOverride] = Field(
        default=[], max_length=OVERRIDES_MAX, description="Amounts of single ones; until may be in the past."
    )


class BudgetReplayQuery(In):
    """Budgets, and the time whose calls go through them."""

    organization_id: Id
    budgets: list[ReplayedBudget] = Field(
        min_length=1, max_length=REPLAYED_MAX, description="As new ones; their names differ."
    )
    since: _ReplayTime | None = Field(
        default_factory=lambda: None, alias="from", description="By default 30 days before `to`."
    )
    until: _ReplayTime | None = Field(
        default_factory=lambda: None, alias="to", description="Not included. By default now."
    )


Saved = Annotated[
    Decimal,
    PlainSerializer(show_decimal, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["41.20"]}),
]


class ReplayedOwner(Out):
    """An owner of a budget with `each` that was refused."""

    who: str = Field(description='"" is the account that callers without a value of `each` share.')
    refused: int
    first_refusal_at: Instant
    used_max: BudgetAmount = Field(description="The most that it used in one window.")


class ReplayDayRow(Out):
    """A day of a budget's time zone."""

    day: date  # perhaps in the year before or after those that may be asked for
    used: BudgetAmount
    refused: int


class ReplayedCounts(Out):
    """Counts of refused and substituted calls."""

    refused: int
    refused_cost: Money = Field(description="What the refused calls did cost.")
    substituted: int = Field(description="Calls that steps had sent as another model.")
    saved: Saved = Field(description="What these had cost less; below 0 is more.")


class ReplayedItem(ReplayedCounts):
    """What one budget would have done: `refused` counts calls that it had no room for."""

    name: str
    first_refusal_at: Instant | None
    owners: list[ReplayedOwner] = Field(
        description=f"Of a budget with `each`: the first {OWNERS_LISTED_MAX} that were refused."
    )
    owners_more: int = Field(description="How many more were refused.")
    by_day: list[ReplayDayRow]
    least_amount: BudgetAmount = Field(
        description="With it this budget alone, without its steps, had refused nothing; with `each` nobody"
        " without an override."
    )
    suggestions: dict[str, BudgetAmount] | None = Field(
        description="Of a budget with `each`: by 50, 90 and 99, with which amount so many of a hundred owners"
        " without an override had been refused nothing."
    )


class ReplayReport(ReplayedCounts):
    """What budgets would have done with stored calls, had they been the only ones."""

    calls: int = Field(description="Calls of the time that were not refused when they came.")
    assumes: list[str] = Field(description="What it takes for granted, such as groups_now.")
    items: list[ReplayedItem] = Field(description="One a budget, in their order.")


REPLAY = Question(
    "replay", "Say what budgets would have done with the calls of a time", BudgetReplayQuery, ReplayReport,
    verb=CREATE,
)  # fmt: skip
# What leads may do with budgets of their tenant; all but overrides: with those that a lead of it made.
_LEADS = ("create", "change", "delete", "raise", "reset", "override", "remove-override", "set-overrides")
# Values of `each` that are ids of rows.
_ROWS_OF_EACH = {KEY: "api-keys", TENANT: "tenants"}


def _row_of_owner(budget: Row, who: object) -> tuple[str, str]:
    """Return the resource of the row that the owner of an override is the id of, and the text before the id."""
    if isinstance(who, str) and who.startswith(OF_GROUP):
        return "groups", OF_GROUP
    return _ROWS_OF_EACH.get(str(budget.get("each")), ""), ""


# A budget as one of `each` has it: the limit is that of the account.
_OwnBudget = create_model("OwnBudget", __base__=Budget, limit=(BudgetAmount | None, ...), limit_by=(str, ...))


def render_budget(row: Row) -> Row:
    """Return a budget for people; one with the figures of an account says `limit` and `limit_by` too."""
    return (_OwnBudget if "limit_by" in row else Budget).model_validate(row).model_dump(mode="json")


BUDGET_RESOURCES = (
    Resource(
        name="budgets",
        access=access(
            BILLING,
            theirs=_LEADS,
            teams={READ: TEAM_ROLES, **dict.fromkeys(_LEADS, (OPERATOR,))},
        ),
        description="Limits on spend, tokens or requests per period.",
        out=Budget,
        create=BudgetCreate,
        patch=patch_of(BudgetCreate, without=WINDOW),
        fixed=dict.fromkeys(WINDOW, "stays, as what is used is counted by it: make another budget"),
        deletable=True,
        live="budgets",
        filters={
            **filters(
                "organization_id name:text tenant_id user:text api_key_id model:text unit window "
                "interval each mode project_id:count service_id tool:text server:text group_id",
                unit=UNITS,
                window=WINDOWS,
                interval=tuple(INTERVALS),
                mode=MODES,
            ),
            "each": Filter("text", EACH, or_tag=True),
        },
        actions=(
            Action("raise", "Have more until a time; then it ends by itself", Raise),
            Action("reset", "Begin this interval's use at 0 again, of all accounts"),
        ),
        parts=(ACCOUNTS, OVERRIDES),
        questions=(REPLAY,),
        declared=ConfigDeclaration(
            by=("organization_id", "name"),
            after=("prices", "models"),  # a step's model needs a price
            actions={"overrides": "set-overrides"},
            known_by_id=True,
            unique=True,
            parts={
                "overrides": PartsDeclaration(OVERRIDES_MAX, names=_row_of_owner, key="who", ends="until")
            },
        ),
    ),
)
