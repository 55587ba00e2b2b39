"""Resources for decisions by people: dead letters and quarantined accounts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

from msgspec.json import encode
from msgspec.structs import asdict
from pydantic import Field, model_validator
from pydantic_core import to_json

from gateway.admin.resources.people import IDENTITY, ISSUER
from gateway.admin.resources.resource import (
    Action,
    Filter,
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
    OPERATOR,
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
# Keys and overrides that are named where a release would open them; others are counted.
OPENED_NAMED_MAX = 1_000
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
        return {**row, "raw": base64.b64encode(raw).decode(), "event": _decode_dead_entry(raw)}


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


class HeldKey(Out):
    """A key whose row is live, and that Redis knows as revoked or ended."""

    id: Id
    prefix: str
    name: str


class HeldOverride(Out):
    """An override that Redis knows otherwise than the budget's rows."""

    budget_id: Id
    owner: str = Field(
        description="The beginning of the SHA-256 of the user, key, project or session, or group:ID."
    )


class Opens(Out):
    """The first keys and overrides that a release with `accept` opens."""

    keys: list[HeldKey]
    overrides: list[HeldOverride]


class Quarantined(Out):
    """A stopped account, whose movements wait in the outbox; or keys and overrides that are as Redis knows them."""

    id: Id
    account: str = Field(
        description="tenant:<id>, credits:<organization id> or spend:<organization id>; access:<organization id> for"
        " keys and overrides, where PostgreSQL was set back."
    )
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
    opens: Opens | None = Field(description="What a release with accept opens, of access:<organization id>.")
    opens_keys: int
    opens_overrides: int
    reason: str
    created_at: Instant
    released_at: Instant | None
    resolution: str | None = Field(description="judged (its entries were checked again) or accepted.")
    released_by: str | None = Field(description=BY)
    released_person: str | None = Field(description=PERSON)
    released_issuer: str | None = Field(description=ISSUER)
    released_identity: str | None = Field(description=IDENTITY)
    released_reason: str | None

    @model_validator(mode="before")
    @classmethod
    def count_opens(cls, row: Any) -> Any:
        opens = row["opens"] or {"keys": [], "overrides": []}
        counts = {f"opens_{name}": len(held) for name, held in opens.items()}
        named = {name: held[:OPENED_NAMED_MAX] for name, held in opens.items()} if row["opens"] else None
        return {**row, **counts, "opens": named, "stood": row["stood"] if named is None else None}


class QuarantineRelease(In):
    """How a quarantined account is released."""

    reason: Text
    accept: Flag = Field(
        default=False,
        description="A gap: list the movements as lost, the difference becomes a row. A contradiction: its "
        "entries become dead letters. Keys and overrides: they are as their rows say. Left out, the entries are "
        "only checked again.",
    )


def _decode_dead_entry(raw: bytes) -> dict[str, Any] | None:
    """Return the decoded fields of a dead entry for people; None if the entry is malformed.

    A field that cannot be decoded is "unreadable".
    """
    try:
        event = decode(raw)
    except MalformedEvent:
        return None
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    facts = event.facts
    return {name: _representable(value) for name, value in values.items() if name not in _READ} | {
        "metadata": _read(lambda: json.loads(event.metadata) if event.metadata else None),
        "facts": _read(lambda: facts and json.loads(encode(asdict(facts)))),
        "priced": _read(lambda: _read_priced(event.priced) if event.priced else None),
    }


def _read_priced(packed: bytes) -> dict[str, Any]:
    """Return the units and tiers with which a movement was priced, as JSON."""
    (before,) = PRICED.struct.unpack_from(packed)
    tiers = [(tier.up_to, f"{tier.unit_price:f}") for tier in read_tiers(packed[PRICED.size :])]
    return {
        "units_before": int(before),
        "tiers": [{"up_to": up_to, "unit_price": price} for up_to, price in tiers],
    }


def _read(read: Callable[[], object]) -> object:
    try:
        return _representable(read())
    except (ValueError, OverflowError, ArithmeticError, RecursionError):
        return UNREADABLE


def _representable(value: object) -> object:
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


assert set(KINDS) == {"gap", "conflict", "unknown_account", "behind"}
