"""The resource for jobs that an upstream runs later."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model, model_validator

from gateway.admin.resources.journal import by_name
from gateway.admin.resources.resource import Resource, filters
from gateway.admin.resources.values import Id, Instant, Money, Out
from gateway.core.accounts.administration import READ, TEAM_ROLES, access
from gateway.core.accounts.upstream_jobs import KINDS, STATUSES


class JobRow(Out):
    """A job: many calls that an upstream processes later, under one hold."""

    id: str = Field(description="As its upstream names it.")
    number: int = Field(description="By which `GET jobs/{id}` has it as well.")
    kind: str = Field(description="batch, video or response.")
    organization_id: Id
    tenant_id: Id
    model: str
    status: str = Field(description="in_progress, completed, failed, expired or cancelled.")
    held: Money | None = Field(description="What it is likely to cost, until it is settled.")
    cost: Money | None = Field(description="What its calls cost, once it is settled; null if nobody knows.")
    currency: str | None = Field(description="null: its model has no price.")
    lines: int = Field(description="Its calls.")
    created_at: Instant
    expires_at: Instant = Field(description="When its hold ends at the latest.")
    settled_at: Instant | None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, row: Any) -> Any:
        return by_name(row)


JobAnswer = create_model("Job", __base__=JobRow, __doc__=JobRow.__doc__)
RESOURCES = (
    Resource(
        name="jobs",
        access=access(teams={READ: TEAM_ROLES}),
        description="Batches: many calls that an upstream works off later. Each is in `calls`.",
        out=JobAnswer,
        filters=filters(
            "organization_id tenant_id id:text kind model:text status", kind=KINDS, status=STATUSES
        ),
    ),
)
