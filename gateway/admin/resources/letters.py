"""What waits for a person to decide, decided many at once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gateway.admin.resources.integrity import KINDS
from gateway.admin.resources.resource import Action, Report
from gateway.admin.resources.values import Amount, Flag, Id, In, Out, Text
from gateway.core.accounts.roles import OPERATOR, Reach, access
from gateway.core.model import PARTITIONS

DECIDED_MAX, DECIDED_USUALLY = 500, 100
# A call takes no new row after so long: the next call goes on.
RUN_S_MAX = 60.0
DEAD_LETTERS = "dead_letters"
# What filters, or says how, for one of the two alone.
_OF_ONE = {"partition": DEAD_LETTERS, "kind": "quarantine", "account": "quarantine", "accept": "quarantine"}


class Letters(Out):
    """How much waits for a person; null where counting takes too long."""

    dead_letters: int | None = Field(description="Letters that are neither stored nor resolved.")
    quarantine: int | None = Field(description="Accounts that are not released.")


class LettersDecide(In):
    """Which of them are decided now, and how. A call takes some of them, by id; the next goes on behind."""

    what: Literal["dead_letters", "quarantine"] = Field(
        description="Redrive letters as they are, or release accounts."
    )
    reason: Text
    organization_id: Id | None = None
    tenant_id: Id | None = None
    partition: Annotated[int, Field(strict=True, ge=0, lt=PARTITIONS)] | None = Field(
        default=None, description="Of letters alone."
    )
    account: Text | None = Field(default=None, description="Of quarantine alone.")
    kind: Literal["gap", "conflict", "unknown_account", "behind"] | None = Field(
        default=None, description="Of quarantine alone."
    )
    accept: Flag | None = Field(
        default=None,
        description="Of quarantine alone: list what is missing as lost.",
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=DECIDED_MAX)] = DECIDED_USUALLY
    after_id: Amount | None = Field(default=None, description="`next_after_id` of the call before.")

    @model_validator(mode="after")
    def of_what_is_decided(self) -> Self:
        """A filter of the one says nothing of the other."""
        wrong = [name for name, of in _OF_ONE.items() if getattr(self, name) is not None and of != self.what]
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))} must be left out: {self.what} has none")
        return self


class LetterRefused(Out):
    """One that was left as it is."""

    id: Id
    why: str


class LettersDecided(Out):
    """What became of them."""

    done: list[int] = Field(description="Ids of those that were redriven or released.")
    refused: list[LetterRefused]
    next_after_id: int | None = Field(description="`after_id` of the next call; null where that was all.")


assert set(KINDS) == {"gap", "conflict", "unknown_account", "behind"}

REPORT = Report(
    name="letters",
    access=access(OPERATOR, reach=Reach.WHOLE),
    description="What waits for a person: dead letters and accounts in quarantine.",
    summary="Read how much waits",
    out=Letters,
    run=Action("decide", "Redrive letters, or release accounts, many at once", LettersDecide),
    ran=LettersDecided,
)
