"""The resource for runs, read-only."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model, model_validator

from gateway.admin.resources.budgets import Amounts, BudgetAmount
from gateway.admin.resources.journal import by_name
from gateway.admin.resources.resource import IS_CURRENT, Resource, filters
from gateway.admin.resources.values import Id, Instant, optional
from gateway.core.accounts.administration import READ, TEAM_ROLES, access
from gateway.core.accounts.runs import STATUSES


class RunRow(Amounts):
    """A run: a budget that a call opened, for all calls that name it."""

    id: str = Field(description="As its callers name it, within its tenant.")
    number: int = Field(description="By which `GET runs/{id}` has it as well.")
    organization_id: Id
    tenant_id: Id
    parent_id: str | None = Field(description="The run it draws from.")
    unit: str = Field(description="money or tokens.")
    currency: str = Field(description="Its organization's.")
    max: BudgetAmount | None = Field(description="null: no limit.")
    max_calls: int | None
    used: BudgetAmount = Field(description="Settled, its children included.")
    held: BudgetAmount | None = optional("By calls in flight.")
    calls: int = Field(description="Settled, its children's included.")
    status: str = Field(description="open, ended or exhausted.")
    created_at: Instant
    expires_at: Instant
    ended_at: Instant | None = Field(description="When a caller ended it.")
    is_current: bool | None = optional(IS_CURRENT)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, row: Any) -> Any:
        return by_name(row)


Run = create_model("Run", __base__=RunRow, __doc__=RunRow.__doc__)
RESOURCES = (
    Resource(
        name="runs",
        access=access(teams={READ: TEAM_ROLES}),
        description="Budgets that callers make, which travel with their calls.",
        out=Run,
        live="runs",
        filters=filters("organization_id tenant_id id:text parent_id:text status", status=STATUSES),
    ),
)
