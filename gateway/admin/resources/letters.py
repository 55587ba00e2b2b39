"""One decision for many dead letters and accounts: its request and its answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from gateway.admin.resources.resource import (
    Action,
    ReportEndpoint,
)
from gateway.admin.resources.values import (
    Amount,
    Flag,
    Id,
    In,
    Out,
    Text,
    optional,
)
from gateway.core.accounts.administration import (
    OPERATOR,
    RowScope,
    access,
)
from gateway.core.model import PARTITIONS

DECIDED_MAX, DECIDED_USUALLY = 500, 100

DEAD_LETTERS = "dead_letters"
# Fields that apply to only one of the two.
_OF_ONE = {"partition": DEAD_LETTERS, "kind": "quarantine", "account": "quarantine", "accept": "quarantine"}


class Letters(Out):
    """The numbers of dead letters and quarantined accounts to decide; null if counting takes too long."""

    dead_letters: int | None = Field(description="Letters that are neither stored nor resolved.")
    quarantine: int | None = Field(description="Accounts that are not released.")


def _without_others(what: str) -> dict[str, Any]:
    return {
        "properties": {name: {"type": "null"} for name, subject in sorted(_OF_ONE.items()) if subject != what}
    }


class LettersDecide(In):
    """The dead letters or accounts to decide, and how. A call decides some, by id; the next continues."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"what": {"const": DEAD_LETTERS}}},
            "then": _without_others(DEAD_LETTERS),
            "else": _without_others("quarantine"),
        }
    )

    what: Literal["dead_letters", "quarantine"] = Field(
        description="Redrive letters as they are, or release accounts."
    )
    reason: Text
    organization_id: Id | None = None
    tenant_id: Id | None = None
    partition: Annotated[int, Field(strict=True, ge=0, lt=PARTITIONS)] | None = optional("Of letters alone.")
    account: Text | None = optional("Of quarantine alone.")
    kind: Literal["gap", "conflict", "unknown_account", "behind"] | None = optional("Of quarantine alone.")
    accept: Flag | None = optional("Of quarantine alone: list what is missing as lost.")
    limit: Annotated[int, Field(strict=True, ge=1, le=DECIDED_MAX)] = DECIDED_USUALLY
    after_id: Amount | None = optional("`next_after_id` of the call before.")

    @model_validator(mode="after")
    def of_what_is_decided(self) -> Self:
        wrong = [
            name
            for name, subject in _OF_ONE.items()
            if getattr(self, name) is not None and subject != self.what
        ]
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))} must be left out: {self.what} has none")
        return self


class LetterRefused(Out):
    """A dead letter or account that could not be decided, and why."""

    id: Id
    why: str


class DeadLetterDecisions(Out):
    """The results of deciding dead letters or accounts."""

    done: list[int] = Field(description="Ids of those that were redriven or released.")
    refused: list[LetterRefused]
    next_after_id: int | None = Field(description="`after_id` of the next call; null where that was all.")


LETTERS_REPORT = ReportEndpoint(
    name="letters",
    access=access(OPERATOR, reach=RowScope.WHOLE),
    description="Work that waits for a person: dead letters and accounts in quarantine.",
    summary="Read how much waits",
    out=Letters,
    run=Action("decide", "Redrive letters, or release accounts, many at once", LettersDecide),
    ran=DeadLetterDecisions,
)
