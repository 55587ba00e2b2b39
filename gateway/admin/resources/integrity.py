"""Resources for decisions by people: dead letters, quarantined accounts, running programs, configuration."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from msgspec.json import encode
from msgspec.structs import asdict
from pydantic import ConfigDict, Field, model_validator
from pydantic_core import to_json

from gateway.admin.resources.people import IDENTITY, ISSUER
from gateway.admin.resources.resource import (
    Action,
    DocumentEndpoint,
    Filter,
    ReportEndpoint,
    Resource,
    absent,
    filters,
)
from gateway.admin.resources.values import (
    BASE64,
    Amount,
    Flag,
    Id,
    In,
    Instant,
    Out,
    SignedOrZero,
    Text,
    optional,
)
from gateway.core.accounts.administration import (
    BILLING,
    DEFAULT_NAME,
    OPERATOR,
    READONLY,
    RowScope,
    access,
)
from gateway.core.accounts.outbox import PRICED, MalformedEvent, decode
from gateway.core.billing.money import read_tiers
from gateway.core.model import PARTITIONS

KINDS = ("gap", "conflict", "unknown_account", "behind")
RAW_CHARS_MAX = 100_000
SOURCE_CHARS_MAX = 36
USER_CHARS_MAX = 128
ATTRIBUTION_CHARS_MAX = 250
UNREADABLE = "unreadable"
# Fields with packed bytes, which are shown decoded.
_READ = frozenset({"metadata", "facts", "priced"})
# The default of a field that may be left out, and not be null.
_LEFT_OUT: Any = Field(default_factory=absent)
BY = "Who did it, as the audit log has its `actor`: such as token:7, or builtin:admin."
PERSON = "Which person that was, where a provider of identities has said so."


class DeadLetter(Out):
    """An entry that could not be stored as a row, and its places in the accounts it moves."""

    id: Id
    partition: int
    entry_id: str
    reason: str
    organization_id: Id | None
    tenant_id: Id | None
    epoch: int | None
    token_seq: int | None = Field(description="Its place in the tenant's tokens; none if it has none.")
    credit_seq: int | None
    spend_seq: int | None
    event: dict[str, Any] | None = Field(description="What it says; null where it cannot be read.")
    raw: str = Field(description="Its bytes, base64.")
    created_at: Instant
    resolved_at: Instant | None
    resolution: str | None = Field(description="redriven or resolved.")
    resolved_by: str | None = Field(description=BY)
    resolved_person: str | None = Field(description=PERSON)
    resolved_issuer: str | None = Field(description=ISSUER)
    resolved_identity: str | None = Field(description=IDENTITY)
    resolved_reason: str | None

    @model_validator(mode="before")
    @classmethod
    def with_what_it_says(cls, row: Any) -> Any:
        raw = bytes(row["raw"])
        return {**row, "raw": base64.b64encode(raw).decode(), "event": _said(raw)}


class EventChanges(In):
    """Corrections of an entry's facts; metadata alone may be removed. Its owner and place cannot change."""

    at_ms: Amount = _LEFT_OUT
    epoch: Amount = _LEFT_OUT
    service_id: Amount = _LEFT_OUT
    key_id: Amount = _LEFT_OUT
    cycle: Amount = _LEFT_OUT
    amount: Amount = _LEFT_OUT
    remaining: SignedOrZero = _LEFT_OUT
    used: Amount = _LEFT_OUT
    next_reset_ms: Amount = _LEFT_OUT
    credits: Amount = _LEFT_OUT
    balance: SignedOrZero = _LEFT_OUT
    units: Amount = _LEFT_OUT
    spend: SignedOrZero = _LEFT_OUT
    spent: SignedOrZero = _LEFT_OUT
    source: Annotated[str, Field(strict=True, max_length=SOURCE_CHARS_MAX)] = _LEFT_OUT
    user: Annotated[str, Field(strict=True, max_length=USER_CHARS_MAX)] = _LEFT_OUT
    attribution: Annotated[str, Field(strict=True, max_length=ATTRIBUTION_CHARS_MAX)] = _LEFT_OUT
    metadata: dict[str, Any] | None = _LEFT_OUT


class DeadLetterRedrive(In):
    """How to store a dead letter: unchanged, with some facts corrected, or as a whole new entry."""

    changes: EventChanges | None = None
    raw: Annotated[str, Field(strict=True, min_length=1, max_length=RAW_CHARS_MAX), BASE64] | None = optional(
        "The whole entry, base64: for one that cannot be read."
    )
    reason: Text | None = None


class DeadLetterResolve(In):
    """Why a dead letter is resolved without storing it."""

    reason: Text


class Stood(Out):
    """The state of an account just before the movement that stopped it."""

    balance: int | None
    cycle: int
    at_ms: int


class Quarantined(Out):
    """A stopped account: its movements wait in the outbox."""

    id: Id
    account: str = Field(description="tenant:<id>, credits:<organization id> or spend:<organization id>.")
    partition: int
    organization_id: Id
    tenant_id: Id | None
    kind: str = Field(description="gap, conflict, unknown_account, or behind another account.")
    behind: str | None
    entry_id: str
    epoch: int
    stored_seq: int = Field(description="The last movement PostgreSQL has.")
    found_seq: int = Field(description="The movement that came next.")
    stood: Stood | None
    reason: str
    created_at: Instant
    released_at: Instant | None
    resolution: str | None = Field(description="judged (its entries were checked again) or accepted.")
    released_by: str | None = Field(description=BY)
    released_person: str | None = Field(description=PERSON)
    released_issuer: str | None = Field(description=ISSUER)
    released_identity: str | None = Field(description=IDENTITY)
    released_reason: str | None


class QuarantineRelease(In):
    """How a quarantined account is released."""

    reason: Text
    accept: Flag = Field(
        default=False,
        description="A gap: list the movements as lost, the difference becomes a row. A contradiction: its "
        "entries become dead letters. Left out, the entries are only checked again.",
    )


def _said(raw: bytes) -> dict[str, Any] | None:
    """Return the decoded fields of a dead entry for people; None if the entry is malformed.

    A field that cannot be decoded is "unreadable".
    """
    try:
        event = decode(raw)
    except MalformedEvent:
        return None
    said = {field.name: getattr(event, field.name) for field in fields(event)}
    facts = event.facts
    return {name: _shown(value) for name, value in said.items() if name not in _READ} | {
        "metadata": _read(lambda: json.loads(event.metadata) if event.metadata else None),
        "facts": _read(lambda: facts and json.loads(encode(asdict(facts)))),
        "priced": _read(lambda: _priced(event.priced) if event.priced else None),
    }


def _priced(packed: bytes) -> dict[str, Any]:
    (before,) = PRICED.struct.unpack_from(packed)
    tiers = [(tier.up_to, f"{tier.unit_price:f}") for tier in read_tiers(packed[PRICED.size :])]
    return {
        "units_before": int(before),
        "tiers": [{"up_to": up_to, "unit_price": price} for up_to, price in tiers],
    }


def _read(read: Callable[[], object]) -> object:
    try:
        return _shown(read())
    except (ValueError, OverflowError, ArithmeticError, RecursionError):
        return UNREADABLE


def _shown(value: object) -> object:
    """Return a value if JSON can represent it; otherwise `UNREADABLE` (NaN, half a character, too deep)."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        to_json(value)
    except (ValueError, TypeError, RecursionError):
        return UNREADABLE
    return value


RESOURCES = (
    Resource(
        name="quarantine",
        access=access(OPERATOR, ours=("release",)),
        description="Accounts whose entries contradict what is stored: they wait until a person decides.",
        out=Quarantined,
        named_by="account",
        filters=filters("kind organization_id tenant_id released:flag account:text", kind=KINDS),
        actions=(Action("release", "Let it go on, with a reason", QuarantineRelease),),
    ),
    Resource(
        name="dead-letters",
        access=access(OPERATOR, ours=("redrive", "resolve")),
        description="Entries that could not become rows: listed gaps, for a person to decide.",
        out=DeadLetter,
        filters={
            "organization_id": Filter(),
            "tenant_id": Filter(),
            "resolved": Filter("flag"),
            "partition": Filter("count", most=PARTITIONS - 1),
        },
        actions=(
            Action("redrive", "Store it where it belongs, once", DeadLetterRedrive),
            Action("resolve", "Have it stay unbilled, with a reason", DeadLetterResolve),
        ),
    ),
)


# Decisions on many dead letters or accounts at once.

DECIDED_MAX, DECIDED_USUALLY = 500, 100
DEAD_LETTERS = "dead_letters"
# Fields that apply to only one of the two.
_OF_ONE = {"partition": DEAD_LETTERS, "kind": "quarantine", "account": "quarantine", "accept": "quarantine"}


class Letters(Out):
    """The numbers of dead letters and quarantined accounts to decide; null if counting takes too long."""

    dead_letters: int | None = Field(description="Letters that are neither stored nor resolved.")
    quarantine: int | None = Field(description="Accounts that are not released.")


def _without_others(what: str) -> dict[str, Any]:
    return {"properties": {name: {"type": "null"} for name, of in sorted(_OF_ONE.items()) if of != what}}


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
        wrong = [name for name, of in _OF_ONE.items() if getattr(self, name) is not None and of != self.what]
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


assert set(KINDS) == {"gap", "conflict", "unknown_account", "behind"}

LETTERS_REPORT = ReportEndpoint(
    name="letters",
    access=access(OPERATOR, reach=RowScope.WHOLE),
    description="Work that waits for a person: dead letters and accounts in quarantine.",
    summary="Read how much waits",
    out=Letters,
    run=Action("decide", "Redrive letters, or release accounts, many at once", LettersDecide),
    ran=DeadLetterDecisions,
)


# Running programs.
class RunningProgram(Out):
    """A gateway worker or keeper, as reported by itself."""

    id: str
    role: Literal["gateway", "keeper"]
    version: str
    layout: int = Field(description="Of what Redis holds, the newest that it knows.")
    schema_version: str | None = Field(
        description="Of PostgreSQL, the newest that it knows; null of a gateway."
    )
    host: str
    knows: list[str] = Field(
        default=[], description="Capabilities that it knows; none of a program before 1.1.0."
    )
    started_at: Instant
    said_at: Instant = Field(description="When it said last that it is there, by the clock of Redis.")
    refused: str | None = Field(description="Why it serves nothing, and what helps; null where it serves.")


class Programs(Out):
    """The running programs and the stored versions. A program silent for 90 seconds is left out."""

    layout: int = Field(description="The newest in Redis; 0 where there is nothing yet.")
    schema_version: str | None
    runs_from: str | None = Field(
        description="Programs that know the schema up to this one, or more, run on it."
    )
    items: list[RunningProgram] = Field(description="Those that began last first.")


PROGRAMS_REPORT = ReportEndpoint(
    name="programs",
    access=access(reach=RowScope.WHOLE),
    description="Who runs which version.",
    summary="Read which gateway workers and keepers run, and which of them are too old",
    out=Programs,
)


# Configuration in files: exported, planned and applied.

SCHEMA = "/schema.json"
DIGEST = "^[0-9a-f]{64}$"


class ConfigurationApply(In):
    """The wanted configuration; with the digest of its plan it is applied, without one planned."""

    objects: dict[str, Any] = Field(
        description="Objects by their kind, such as tenants. Others are named: plan, not plan_id."
    )
    digest: Annotated[str, Field(strict=True, pattern=DIGEST)] | None = optional(
        "Of the plan that is to be done, just as it was answered."
    )
    trial: Flag = Field(
        default=False, description="Also do it and undo it, which tells what would be refused."
    )
    prune: Flag = Field(
        default=False, description="Delete what applying under this name made, and no object is about."
    )
    name: Text = Field(default=DEFAULT_NAME, description="Name of this set of files, if there are several.")


class FieldChange(Out):
    """A field's value before and after."""

    before: Any
    after: Any


class PlannedChange(Out):
    """The planned change of one row."""

    change: str = Field(description="create, change or delete; another word is the action that it takes.")
    resource: str
    name: str
    at: str = Field(description="Where the object stands in what was sent; empty where none does.")
    id: int | None
    fields: dict[str, FieldChange] = Field(description="By their names in files.")
    stays: str = Field(description="Why it is left as it is; empty where it is not.")


class NewSecret(Out):
    """A new credential, shown once."""

    resource: str
    name: str
    at: str
    field: str
    value: str


class RowAdoption(Out):
    """A row created by hand that an object now describes by its name."""

    resource: str
    name: str
    at: str
    id: int


class ConfigurationPlan(Out):
    """The changes, planned or done."""

    digest: str = Field(description="Names the plan: the same is done with it, or nothing.")
    changes: list[PlannedChange]
    unchanged: int
    noted: int = Field(description="Objects that are as they should be, and not known to be of files yet.")
    forgotten: int = Field(description="Rows that apply made and others deleted: pruning forgets them.")
    taken: list[RowAdoption] = Field(
        description="The first 100 rows that no file was about before, and that objects are about now."
    )
    taken_count: int = Field(description="How many these are.")
    tried: bool = Field(description="Whether it was done and undone.")
    applied: bool
    pending: bool = Field(description="Stored; not all of it is in force yet.")
    refused: str = Field(description="Stored definitions that the counters refused; empty is nothing.")
    secrets: list[NewSecret]


class Configuration(Out):
    """The whole configuration in the form of files."""

    objects: dict[str, list[dict[str, Any]]]
    left_out: list[str] = Field(description="Settings that files cannot hold, and why.")


CONFIGURATION_REPORTS = (
    ReportEndpoint(
        name="configuration",
        # Each object is judged as the write of its own resource.
        access=access(BILLING, OPERATOR, READONLY, theirs=("apply",)),
        description="What files of configuration say: all of it, what differs, and that it is applied.",
        summary="Write down all that is configuration",
        out=Configuration,
        documents=(
            DocumentEndpoint(
                SCHEMA, "application/schema+json", "The JSON Schema of files, for editors", public=True
            ),
        ),
        by_hand=True,
        run=Action("apply", "Plan what makes it so, or do what was planned", ConfigurationApply),
        ran=ConfigurationPlan,
    ),
)
