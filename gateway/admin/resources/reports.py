"""Reports: who is busy now, and whether the counters and the ledger say the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.admin.resources.resource import Action, Report, Whole
from gateway.admin.resources.values import Flag, In, Instant, Out


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


class ReconciliationItem(Out):
    """One account that differs."""

    account: str = Field(description="tenant:<id>, credits:<organization id> or spend:<organization id>.")
    kind: Literal["lag", "gap", "excess", "drift"]
    difference: int = Field(
        description="The counters' balance less the ledger's; missing movements of a gap."
    )
    seq: int
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


REPORTS = {
    report.name: report
    for report in (
        Report(
            name="reconciliation",
            description="Whether counters and ledger say the same.",
            summary="Read the last result",
            out=Reconciliation,
            run=Action("run", "Compare all accounts now; repair drifts only if asked", ReconciliationRun),
        ),
        Report(
            name="activity",
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
