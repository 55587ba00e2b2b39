"""Reports: finance, usage, current activity, and the comparison of counters with the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, WithJsonSchema, create_model

from gateway.admin.resources import configuration, letters, programs
from gateway.admin.resources.form_fields import IntegerParameter
from gateway.admin.resources.resource import (
    Action,
    DocumentEndpoint,
    PageQuery,
    ReportEndpoint,
)
from gateway.admin.resources.values import (
    Amount,
    Currency,
    Day,
    Exactly,
    Flag,
    Id,
    In,
    Instant,
    Out,
    Text,
    optional,
    plausible,
    read_moment,
)
from gateway.core.accounts.administration import OPERATOR, READ, TEAM_ROLES, RowScope, access
from gateway.core.accounts.tags import GROUP as TAG_GROUP
from gateway.core.accounts.tags import TAG, TAGS_MAX
from gateway.core.accounts.usage import GROUPS
from gateway.core.accounts.usage_sums import MONEY_SUMS, USAGE_SUMS
from gateway.core.billing.finance import ACCOUNT_CHARS_MAX, ACCOUNTS, SUPPLY

# Finance reports: amounts due, deferred, earned and taxed, and journal entries for an accounting system.

MONTHS_MAX = 120
_MONTH = re.compile(r"(19[7-9][0-9]|2[0-9]{3})-(0[1-9]|1[0-2])", re.ASCII)
_CODE = re.compile(rf"[A-Za-z0-9 ._/-]{{1,{ACCOUNT_CHARS_MAX}}}", re.ASCII)


def _month(text: str, before: timedelta = timedelta()) -> str:
    """Return the month of a text such as "2026-04", a day or a time; `before` is subtracted from a time."""
    if _MONTH.fullmatch(text) is None:
        try:
            moment = read_moment(text)
        except ValueError as error:
            raise ValueError("must be a month, such as 2026-04, or a day in it") from error
        plausible(moment.date())
        return f"{moment - before:%Y-%m}"
    plausible(date.fromisoformat(f"{text}-01"))
    return text


def _check_codes(text: str) -> str:
    """Raise `ValueError` for a text that is no list of accounts and their codes."""
    for pair in text.split(","):
        name, _, code = pair.partition(":")
        if name not in ACCOUNTS or _CODE.fullmatch(code) is None:
            raise ValueError(
                "must be pairs such as receivables:1200 with commas between; the accounts are "
                + ", ".join(ACCOUNTS)
            )
    return text


_MONTH_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_MONTH.pattern}$", "examples": ["2026-04"]})
FirstMonth = Annotated[Text, AfterValidator(_month), _MONTH_SCHEMA]
# The time itself is excluded: the midnight after a month is its end.
LastMonth = Annotated[Text, AfterValidator(partial(_month, before=timedelta(microseconds=1))), _MONTH_SCHEMA]


class FinanceQuery(In):
    """The organization and currency of a finance report."""

    organization_id: Id | None = None
    currency: Currency | None = None


class DayQuery(FinanceQuery):
    """The query of a report at the end of a day."""

    at: Day | None = optional("As it was at the end of this day in UTC; else today.")


class MonthsQuery(FinanceQuery):
    """The query of a report on whole UTC months."""

    since: FirstMonth | None = Field(
        default=None, alias="from", description="The first month, or a day or time in it; else that of `to`."
    )
    until: LastMonth | None = Field(
        default=None,
        alias="to",
        description="The last month, or a day or time that is not included; else this one.",
    )


class TaxQuery(MonthsQuery):
    """The query of the tax report: whole months, by documents or by billed supplies."""

    by: Literal["document", "supply"] = Field(
        default="document", description=f"The month a document became final in, or ({SUPPLY}) of the supply."
    )


class LedgerQuery(MonthsQuery):
    """The query of the journal: whole months, with codes for accounts."""

    accounts: Annotated[Text, AfterValidator(_check_codes)] | None = optional(
        "Codes of accounts, such as `receivables:1200,bank:1800`."
    )


class _OrganizationItem(Out):
    organization_id: Id
    organization: str
    currency: str


class Receivable(_OrganizationItem):
    """The amounts an organization must pay of its invoices in one currency."""

    invoices: int = Field(description="Of which something is left to pay.")
    open: Exactly = Field(description="Not due yet, or without a day.")
    overdue_1_30: Exactly = Field(description="Due 1 to 30 days before.")
    overdue_31_60: Exactly
    overdue_61_90: Exactly
    overdue_over_90: Exactly
    to_pay_back: Exactly = Field(description="What credit notes and overpaid invoices leave to pay back.")
    uncollectible: Exactly = Field(description="The part given up. not in the total.")
    total: Exactly = Field(description="Open and overdue, less what is to be paid back.")


class Unbilled(_OrganizationItem):
    """Charges that are on no final invoice."""

    month: Day = Field(description="The first day of the month it is supplied in.")
    kind: str
    amount: Exactly = Field(description="Before tax, not rounded.")
    charges: int


class Balance(_OrganizationItem):
    """The total amount an organization owes in one currency."""

    invoiced: Exactly = Field(description="Invoices in force.")
    credited: Exactly = Field(description="Credit notes in force.")
    paid: Exactly = Field(description="Money that came in for invoices, less what went back.")
    applied: Exactly = Field(description="Credit of notes that was applied to invoices.")
    refunded: Exactly = Field(description="Money that was paid back for credit notes.")
    due: Exactly = Field(description="invoiced - paid - applied.")
    open_credit: Exactly = Field(description="credited - applied - refunded.")
    unbilled: Exactly = Field(description="Charges that no final invoice had, before tax.")
    balance: Exactly = Field(description="due - open_credit + unbilled.")


class Deferred(_OrganizationItem):
    """Charges in advance of their supply."""

    month: Day | None = Field(
        description="The first day of the month it is supplied in; null of credits that are not used yet."
    )
    kind: str
    amount: Exactly


class Revenue(_OrganizationItem):
    """The revenue of a month."""

    month: Day
    kind: str
    amount: Exactly


class TaxItem(_OrganizationItem):
    """The sums of a month's documents for a tax rate."""

    month: Day
    rate: Exactly = Field(description="A fraction, such as 0.2.")
    net: Exactly
    tax: Exactly
    documents: int


class Leg(_OrganizationItem):
    """One side of a journal entry: a debit or a credit."""

    entry_id: str = Field(description="Names the entry for ever; its debits are its credits.")
    date: Instant
    account: str = Field(description="Its name, or the code it was given.")
    debit: Exactly | None
    credit: Exactly | None
    source: str = Field(
        description="charge, release, use, expiry, return, posting, invoice, void, payment, application "
        "or write_off."
    )
    source_id: Id
    invoice_id: Id | None
    number: str | None = Field(description="Of the invoice.")
    description: str


class _FinanceReport(NamedTuple):
    item: type[Out]
    asked: type[FinanceQuery]
    answer: str
    doc: str
    summary: str


_FINANCE = {
    "receivables": _FinanceReport(
        Receivable, DayQuery, "Receivables", "What organizations have to pay.",
        "What organizations have to pay, by age, at the end of a day",
    ),
    "unbilled": _FinanceReport(
        Unbilled, DayQuery, "UnbilledCharges", "What no invoice has.",
        "Charges without an invoice, by month of supply and kind, at the end of a day",
    ),
    "balances": _FinanceReport(
        Balance, DayQuery, "Balances", "What organizations owe altogether.",
        "The whole debt of organizations: documents, payments, credit and unbilled charges",
    ),
    "deferred-revenue": _FinanceReport(
        Deferred, DayQuery, "DeferredRevenue", "Charges billed ahead.",
        "Charges not supplied yet, by month of supply; and credits not used",
    ),
    "revenue": _FinanceReport(
        Revenue, MonthsQuery, "EarnedRevenue", "Earnings.", "Earnings, by month of supply and kind"
    ),
    "taxes": _FinanceReport(
        TaxItem, TaxQuery, "Taxes", "What documents say of taxes.", "Tax by month, rate and currency"
    ),
    "ledger": _FinanceReport(
        Leg, LedgerQuery, "LedgerEntries", "Entries, a leg each.",
        "Double entries of charges, credits, invoices, payments and credit notes",
    ),
}  # fmt: skip
ITEMS = {name: each.item for name, each in _FINANCE.items()}
ASKED = {name: each.asked for name, each in _FINANCE.items()}
PAGED: dict[str, type[In]] = {
    name: create_model(f"{asked.__name__}Page", __base__=(asked, PageQuery), __doc__="The same by pages.")
    for name, asked in ASKED.items()
}
_NEXT = "What asks for the next page; null on the last one."
_PARQUET = DocumentEndpoint(".parquet", "application/vnd.apache.parquet", "The same as Parquet")
_CSV = DocumentEndpoint(".csv", "text/csv", "The same as CSV, all of its items")
FINANCE_REPORTS = tuple(
    ReportEndpoint(
        name=f"reports/{name}",
        access=access(),
        description=f"{each.summary}.",
        summary=each.summary,
        out=create_model(
            each.answer,
            __base__=Out,
            __doc__=each.doc,
            items=(list[each.item], ...),  # type: ignore[name-defined]  # of this row
            next_cursor=(str | None, Field(description=_NEXT)),
        ),
        asked=PAGED[name],
        documents=(_CSV, _PARQUET) if name != "ledger" else (_CSV,),
        by_hand=True,
    )
    for name, each in _FINANCE.items()
)


class BusyTenant(Out):
    """The recent calls of one tenant."""

    tenant_id: int
    tenant: str | None = Field(description="Its name; null once it is deleted.")
    requests: int = Field(description="Calls that were settled.")
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason.")


class ActivityReport(Out):
    """The calls of all tenants within a window that ends now. Not for billing: bills come from the ledger."""

    window_s: float = Field(description="Seconds the numbers are of.")
    requests: int
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason; of unknown callers too.")
    waiting_s: float | None = Field(
        description="Seconds that the oldest use has waited to be stored; null where none waits, and for an"
        " organization's own people."
    )
    items: list[BusyTenant] = Field(description="The tenants with most calls, most first.")


class ReconciliationRun(In):
    """The options of a reconciliation."""

    repair: Flag = Field(
        default=False, description="Make each drift good by an appended adjust or correction."
    )
    whole: Flag = Field(
        default=False,
        description="Ask all rows whether they contradict each other, in up to ten minutes; else in one.",
    )


class UnreadableCount(Out):
    """The number of accounts in the counters that this version cannot read, whose calls are refused."""

    unreadable: int = Field(description="As far as the keeper has met them.")


class CountersRebuild(In):
    """The organization whose unreadable accounts are rebuilt."""

    organization_id: Id


class RebuiltAccounts(Out):
    """How many accounts were rebuilt from rows, by kind. Others of the organization are as they were."""

    organizations: int = Field(description="Credits and spend of the organization.")
    tenants: int
    api_keys: int
    users: int
    services: int = Field(description="Uses of services.")
    budgets: int


class ReconciliationItem(Out):
    """An account with a difference or contradictory rows, or a full window of a budget."""

    account: str = Field(
        description="tenant:<id>, credits:<organization id>, spend:<organization id>, or of a budget"
        " budget:<id> and whose of each. A contradiction may also be of organization:<id> or invoice:<id>."
        " Rows are unasked, or there is more of all."
    )
    kind: Literal["lag", "gap", "excess", "drift", "full", "contradiction", "unasked", "more"]
    difference: int = Field(
        description="The counters' balance less the ledger's; missing movements of a gap."
    )
    seq: int = Field(description="The movement; 0 of a contradiction that is of none.")
    detail: str


class Reconciliation(Out):
    """The result of comparing the counters with the ledger."""

    checked: int = Field(description="Accounts compared.")
    drift_tokens: int = Field(description="Sum of absolute differences.")
    drift_credits: int = Field(description="Sum of absolute differences.")
    pending: int = Field(description="Accounts with movements not stored yet.")
    items: Annotated[list[ReconciliationItem], Field(description="Accounts that differ.")]
    started_at: Instant | None = Field(description="Null before the first run.")
    finished_at: Instant | None


def _check_groups(text: str) -> str:
    """Raise `ValueError` for a text that is no list of groups and tags of the usage report."""
    names = text.split(",")
    unknown = [name for name in names if name not in GROUPS and TAG_GROUP.fullmatch(name) is None]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"must be some of {', '.join(GROUPS)} or {TAG}NAME, each once, with commas between")
    if sum(name not in GROUPS for name in names) > TAGS_MAX:
        raise ValueError(f"has more than {TAGS_MAX} tags, which no call has")
    return text


def _hour(value: object, up: timedelta = timedelta()) -> datetime:
    """Return the start of the hour of a day or time; with `up`, rounded up."""
    if not isinstance(value, str):
        raise ValueError("must be an RFC 3339 time in a string")  # noqa: TRY004  # pydantic reports ValueError
    moment = read_moment(value)
    plausible(moment.date())
    return (moment + up).replace(minute=0, second=0, microsecond=0)


FirstHour = Annotated[Instant, BeforeValidator(_hour)]
LastHour = Annotated[Instant, BeforeValidator(partial(_hour, up=timedelta(hours=1, microseconds=-1)))]


class UsageReportQuery(In):
    """The calls to sum, and how to group them."""

    since: FirstHour | None = Field(
        default=None,
        alias="from",
        description="A day, or a time: from its hour on. By default 30 days before `to`.",
    )
    until: LastHour | None = Field(
        default=None,
        alias="to",
        description="A day, or a time: not included, but for its hour. By default the end of today, in UTC.",
    )
    interval: Literal["hour", "day", "month", "none"] = Field(default="none", description="In UTC.")
    group_by: Annotated[Text, AfterValidator(_check_groups)] | None = optional(
        f"Some of {', '.join(GROUPS)} and {TAG}NAME, with commas between. A filter by a tag is"
        f" {TAG}NAME=VALUE; no value is none."
    )
    organization_id: Id | None = None
    tenant_id: Id | None = None
    user_id: Id | None = None
    api_key_id: Id | None = None
    project_id: Amount | None = None
    service_id: Id | None = None
    model: Text | None = None
    currency: Currency | None = None
    group_id: Id | None = Field(
        default=None,
        validation_alias=AliasChoices("group_id", "group"),
        description="Calls whose caller was in this group; `group` is the same.",
    )


class UsagePage(UsageReportQuery, PageQuery):
    """The query of one page of the usage report."""


class UsageGroup(Out):
    """The group of the sums of a usage report.

    The value of a tag is in the field `tag:NAME`: null for none, `other` beyond the number counted by name
    in a day.
    """

    start: Instant
    organization_id: int | None = None
    organization: str | None = None
    tenant_id: int | None = None
    tenant: str | None = None
    user_id: int | None = None
    user: str | None = optional("The caller's own id of its user.")
    api_key_id: int | None = None
    api_key: str | None = None
    project_id: int | None = None
    project: str | None = optional("`other`: projects beyond the number counted each by itself in a day.")
    service_id: int | None = None
    service: str | None = optional("Its key.")
    group_id: int | None = None
    group: str | None = optional("Rows of groups do not add up: a call is in each of its caller's.")
    model: str | None = optional(
        "As it was asked for; `other`: models beyond the number counted each by itself in a day."
    )


def _usage_fields() -> Iterator[tuple[str, Any]]:
    """Yield the field of each sum; the currency stands behind the cost, which is in it."""
    for usage_sum in USAGE_SUMS:
        kind = Exactly if usage_sum.name in MONEY_SUMS else int
        yield usage_sum.name, (kind, Field(description=usage_sum.says or None))
        if usage_sum.name == "cost":
            yield "currency", (str, ...)


UsageItem: type[UsageGroup] = create_model(
    "UsageItem",
    __base__=UsageGroup,
    __doc__="The sums of the calls of one group. Fields of groups that were not requested are left out.",
    **dict(_usage_fields()),
)


class Usage(Out):
    """Sums of calls in whole hours, by group."""

    items: list[UsageItem]  # type: ignore[valid-type]  # made of the rows of sums
    next_cursor: str | None = Field(description=_NEXT)
    tags_since: dict[str, str] | None = optional(
        "Since when calls have each of the tags that were asked for; those before have none."
    )


REPORTS = {
    report.name: report
    for report in (
        *FINANCE_REPORTS,
        *configuration.CONFIGURATION_REPORTS,
        letters.LETTERS_REPORT,
        programs.PROGRAMS_REPORT,
        ReportEndpoint(
            name="counters",
            access=access(OPERATOR, reach=RowScope.WHOLE),
            description="Accounts in the counters that this version cannot read.",
            summary="Read how many there are",
            out=UnreadableCount,
            run=Action("rebuild", "Rebuild an organization's unreadable accounts from rows", CountersRebuild),
            ran=RebuiltAccounts,
        ),
        ReportEndpoint(
            name="reconciliation",
            access=access(OPERATOR, reach=RowScope.WHOLE),
            description="Whether counters and ledger say the same.",
            summary="Read the last result",
            out=Reconciliation,
            run=Action("run", "Compare all accounts now; repair drifts only if asked", ReconciliationRun),
        ),
        ReportEndpoint(
            name="usage",
            access=access(teams={READ: TEAM_ROLES}),
            description="Usage and cost.",
            summary="Add up calls by time, organization, tenant, user, key, project, service, model and group",
            out=Usage,
            asked=UsagePage,
            documents=(_CSV, _PARQUET),
            by_hand=True,
        ),
        ReportEndpoint(
            name="activity",
            access=access(),
            description="Who is busy now.",
            summary="Read what tenants did within the last minute",
            out=ActivityReport,
            numbers={
                "window": IntegerParameter("Seconds, up to now.", 60, 5, 60),
                "limit": IntegerParameter("Most tenants to name.", 20, 1, 100),
            },
        ),
    )
}
