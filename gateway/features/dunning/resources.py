"""The resource for steps of dunning."""

from __future__ import annotations

from pydantic import Field

from gateway.admin.resources.resource import Resource, filters
from gateway.admin.resources.values import Id, Instant, Out
from gateway.core.accounts.administration import access


class DunningStep(Out):
    """A step of dunning for an invoice that is not paid."""

    id: Id
    organization_id: Id
    invoice_id: Id
    action: str = Field(description="reminder, block or unblock.")
    days: int = Field(description="Days behind the due date it is for.")
    tenant_id: Id | None = Field(description="Who was blocked, or let go.")
    reason: str
    corrects_id: Id | None = Field(description="The block that it ends.")
    actor: str
    created_at: Instant


RESOURCES = (
    Resource(
        name="dunning-steps",
        access=access(),
        description="Steps of dunning: reminders, blocks and their ends.",
        out=DunningStep,
        named_by="id",
        refers={"corrects_id": "dunning-steps"},
        filters=filters(
            "organization_id invoice_id tenant_id action", action=("reminder", "block", "unblock")
        ),
    ),
)
