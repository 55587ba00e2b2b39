"""The resource for raise requests: people ask for more of a budget, with a reason, and others decide."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from gateway.admin.resources.budgets import Amounts, BudgetAmount
from gateway.admin.resources.resource import Action, Resource, answer_of, filters
from gateway.admin.resources.values import ExternalId, Id, In, Instant, Text, optional
from gateway.core.accounts.administration import (
    BILLING,
    CREATE,
    DELETE,
    MEMBER,
    OPERATOR,
    READ,
    TEAM_ROLES,
    access,
)
from gateway.core.accounts.budgets import OPEN, RAISE_STATUSES


class RaiseRequestCreate(In):
    """A request for another amount of a budget until a time, with the reason."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"budget_id": 1, "amount": "20", "reason": "release week"}}
    )

    budget_id: Id
    amount: BudgetAmount = Field(description="What the budget should be raised to.")
    reason: Text
    who: ExternalId | None = optional(
        "Of a budget with `each`: the user, session, or id of the key or project to be raised. null: the "
        "asker's own user or key."
    )
    until: Instant | None = Field(default=None, description="null: to the end of the budget's interval.")


RaiseRequest: Any = answer_of(
    RaiseRequestCreate,
    "A request for another amount of a budget, and what became of it.",
    base=Amounts,
    organization_id=Id,
    budget=(str, Field(description="Its name.")),
    unit=(str, Field(description="The budget's: money, tokens or requests.")),
    currency=(str, Field(description="The organization's.")),
    until=Instant,
    status=(str, Field(description="open, approved or denied.")),
    requested_by=(str, Field(description="Whose token it was.")),
    decided_by=str | None,
    decided_at=Instant | None,
)

RESOURCES = (
    Resource(
        name="raise-requests",
        access=access(
            BILLING,
            verbs={"create": (BILLING, OPERATOR, MEMBER)},
            theirs=("create", "delete", "approve", "deny"),
            teams={
                READ: TEAM_ROLES,
                CREATE: (OPERATOR, MEMBER),
                **dict.fromkeys((DELETE, "approve", "deny"), (OPERATOR,)),
            },
        ),
        description="Requests for more of a budget. An approved one is its raise, and ends by itself.",
        out=RaiseRequest,
        create=RaiseRequestCreate,
        deletable=True,
        filters=filters("organization_id budget_id status", status=RAISE_STATUSES),
        actions=(
            Action(
                "approve",
                "Raise the amount as asked",
                offered=lambda row: row["status"] == OPEN,
                done="Approved: the amount is raised.",
            ),
            Action(
                "deny",
                "Leave the budget as it is",
                offered=lambda row: row["status"] == OPEN,
                done="Denied.",
            ),
        ),
    ),
)
