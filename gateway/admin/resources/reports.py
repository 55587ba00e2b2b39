"""Reports: what was used, who is busy now, and whether the counters and the ledger say the same."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.admin.resources import configuration, finance, letters, programs
from gateway.admin.resources.paging import Paged
from gateway.admin.resources.resource import Action, Document, Report, Whole
from gateway.admin.resources.values import (
    Amount,
    Currency,
    Exactly,
    Flag,
    Id,
    In,
    Instant,
    Out,
    Text,
    plausible,
)
from gateway.core.accounts.roles import OPERATOR, Reach, access
from gateway.core.accounts.usage import GROUPS


class BusyTenant(Out):
    """What calls of one tenant did."""

    tenant_id: int
    tenant: str | None = Field(description="Its name; null once it is deleted.")
    requests: int = Field(description="Calls that were settled.")
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason.")


class ActivityReport(Out):
    """What all tenants did within a window that ends now. Numbers to look at: bills come from the ledger."""

    window_s: float = Field(description="Seconds the numbers are of.")
    requests: int
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason; of unknown callers too.")
    items: list[BusyTenant] = Field(description="The tenants with most calls, most first.")


class ReconciliationRun(In):
    """What a run is to do."""

    repair: Flag = Field(
        default=False, description="Make each drift good by an appended adjust or correction."
    )
    whole: Flag = Field(
        default=False,
        description="Ask all rows whether they contradict each other, in up to ten minutes; else in one.",
    )


class ReconciliationItem(Out):
    """One account that differs or whose rows do not agree, or a budget's window that is full."""

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
    """What comparing found."""

    checked: int = Field(description="Accounts compared.")
    drift_tokens: int = Field(description="Sum of absolute differences.")
    drift_credits: int = Field(description="Sum of absolute differences.")
    pending: int = Field(description="Accounts with movements not stored yet.")
    items: Annotated[list[ReconciliationItem], Field(description="Accounts that differ.")]
    started_at: Instant | None = Field(description="Null before the first run.")
    finished_at: Instant | None


def _groups(text: str) -> str:
    names = text.split(",")
    unknown = [name for name in names if name not in GROUPS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"must be some of {', '.join(GROUPS)}, each once, with commas between")
    return text


def _whole_hour(moment: datetime) -> datetime:
    plausible(moment.date())
    if moment.timestamp() % 3600:
        raise ValueError("must be a whole hour, such as 2026-01-31T13:00:00Z")
    return moment


Hour = Annotated[Instant, AfterValidator(_whole_hour)]


class UsageAsked(In):
    """Which calls are added up, and by what they are told apart."""

    since: Hour | None = Field(default=None, alias="from", description="By default 30 days before `to`.")
    until: Hour | None = Field(
        default=None, alias="to", description="Not included; by default the end of today, in UTC."
    )
    interval: Literal["hour", "day", "month", "none"] = Field(default="none", description="In UTC.")
    group_by: Annotated[Text, AfterValidator(_groups)] | None = Field(
        default=None, description=f"Some of {', '.join(GROUPS)}, with commas between."
    )
    organization_id: Id | None = None
    tenant_id: Id | None = None
    user_id: Id | None = None
    api_key_id: Id | None = None
    project_id: Amount | None = None
    service_id: Id | None = None
    model: Text | None = None
    currency: Currency | None = None


class UsagePage(UsageAsked, Paged):
    """The same by pages."""


class UsageItem(Out):
    """What the calls of one group came to. Fields of groups that were not asked for are left out."""

    start: Instant
    organization_id: int | None = None
    organization: str | None = None
    tenant_id: int | None = None
    tenant: str | None = None
    user_id: int | None = None
    user: str | None = Field(default=None, description="The caller's own id of its user.")
    api_key_id: int | None = None
    api_key: str | None = None
    project_id: int | None = None
    project: str | None = Field(
        default=None, description="`other`: projects beyond how many of a day are told apart."
    )
    service_id: int | None = None
    service: str | None = Field(default=None, description="Its key.")
    model: str | None = Field(
        default=None,
        description="As it was asked for; `other`: models beyond how many of a day are told apart.",
    )
    requests: int
    refused: int
    input: int = Field(description="Tokens read, but for what a cache had or was written into one.")
    cache_read: int
    cache_write: int = Field(description="Of both lifetimes.")
    cache_write_1h: int = Field(description="Those of it that are kept for an hour.")
    output: int
    reasoning: int = Field(description="Of the output.")
    tokens: int
    credits: int
    units: int
    cost: Exactly
    currency: str
    estimated: int = Field(description="Calls whose use was counted, not reported.")
    unpriced: int = Field(description="Calls that used something without a price: a model, or a tool.")


class Usage(Out):
    """Calls added up: of whole hours, by whatever they are told apart."""

    items: list[UsageItem]
    next_cursor: str | None = Field(description="What asks for the next page; null on the last one.")


REPORTS = {
    report.name: report
    for report in (
        *finance.REPORTS,
        *configuration.REPORTS,
        letters.REPORT,
        programs.REPORT,
        Report(
            name="reconciliation",
            access=access(OPERATOR, reach=Reach.WHOLE),
            description="Whether counters and ledger say the same.",
            summary="Read the last result",
            out=Reconciliation,
            run=Action("run", "Compare all accounts now; repair drifts only if asked", ReconciliationRun),
        ),
        Report(
            name="usage",
            access=access(),
            description="What was used and what it cost.",
            summary="Add up calls by time, organization, tenant, user, key, project, service and model",
            out=Usage,
            asked=UsagePage,
            documents=(
                Document(".csv", "text/csv", "The same as CSV, all of its items"),
                Document(".parquet", "application/vnd.apache.parquet", "The same as Parquet"),
                Document("/focus.csv", "text/csv", "Charges of each day, as FOCUS 1.2 has them"),
            ),
            by_hand=True,
        ),
        Report(
            name="activity",
            access=access(),
            description="Who is busy now.",
            summary="Read what tenants did within the last minute",
            out=ActivityReport,
            numbers={
                "window": Whole("Seconds, up to now.", 60, 5, 60),
                "limit": Whole("Most tenants to name.", 20, 1, 100),
            },
        ),
    )
}
