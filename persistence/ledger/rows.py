"""Ledger rows as COPY reads them: PostgreSQL's binary format, packed one row at a time.

Pure. Source of the layout: PostgreSQL documentation, COPY, "Binary Format": a count of fields,
then each field's length (-1 is null) and bytes, big-endian.
"""

from __future__ import annotations

import json
import re
from struct import Struct

from gateway.core.accounts.ledger import Event, EventFlag, EventKind, attributed, in_money
from persistence.ledger.portions import unit_prices

COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TAIL = b"\xff\xff"
# Milliseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
EPOCH_MS = 946_684_800_000

LEDGER_COLUMNS = (
    "tenant_id, created_at, epoch, seq, cycle, amount, transaction_type, direction,"
    " total_remaining, request_id, control_write_id, service_id, api_key_id, user_id, metadata,"
    " content_id, project_id, feature_version"
)
USE_COLUMNS = (
    'organization_id, "timestamp", epoch, seq, {amounts}, request_id, feature_id, tenant_id, api_key_id,'
    " user_id, content_id, project_id, feature_version, metadata"
)
TRANSACTION_COLUMNS = USE_COLUMNS.format(amounts="credits_used, balance_after, carried")
USAGE_COLUMNS = USE_COLUMNS.format(amounts="usage_amount, spend, spent_after, in_money, unit_prices")
POSTING_COLUMNS = (
    "organization_id, created_at, epoch, seq, amount, balance_after, kind, credit_addition_id,"
    " control_write_id, metadata"
)

# The addition a posting comes from, and whether it is the addition itself or its expiry.
Origin = tuple[int, str]

NULL = b"\xff\xff\xff\xff"
_FOR_NOTHING = NULL * 3
_TYPE_WORDS = {
    EventKind.CONSUME: b"consume",
    EventKind.RESET: b"reset",
    EventKind.RECHARGE: b"recharge",
    EventKind.ADJUST: b"adjust",
}
_TYPES = {kind: len(word).to_bytes(4) + word for kind, word in _TYPE_WORDS.items()}
# Plain integers: arithmetic on flags builds an object a row.
_INWARD, _UNLIMITED, _CONSUMED = int(EventFlag.IN), int(EventFlag.UNLIMITED), int(EventKind.CONSUME)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_IN, _OUT = b"\0\0\0\2IN", b"\0\0\0\3OUT"
_UUID_LENGTH = (16).to_bytes(4)

# A settled call of a limited tenant with a service, a key, a user and metadata: nearly every row.
_CONSUME = Struct(">hiqiqiqiqiqiqi7si3siqi16siiqiqiqiB").pack
_SIX = Struct(">hiqiqiqiqiqiq").pack
_FOUR = Struct(">hiqiqiqiq").pack
_BIGINT = Struct(">iq").pack
_TRUE, _FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"
_LENGTH = Struct(">i").pack


def token_row(event: Event, user_id: int | None) -> bytes:
    """The `token_ledger` row of an entry with the tokens part; ValueError if its source is no UUID."""
    at = (event.at_ms - EPOCH_MS) * 1000
    if (
        event.kind == _CONSUMED
        and user_id
        and event.metadata
        and event.service_id
        and not event.flags & _UNLIMITED
    ):
        source = bytes.fromhex(event.source.replace("-", ""))
        if len(source) != 16:
            raise ValueError(f"source {event.source!r} is not a UUID")
        return (
            _CONSUME(
                18, 8, event.tenant_id, 8, at, 8, event.epoch, 8, event.seq, 8, event.cycle, 8, event.amount,
                7, b"consume", 3, b"OUT", 8, event.remaining, 16, source, -1,
                8, event.service_id, 8, event.key_id, 8, user_id, len(event.metadata) + 1, 1,
            )
            + event.metadata
            + (_was_for(event) if event.attribution else _FOR_NOTHING)
        )  # fmt: skip
    request, control = _names(event)
    return b"".join(
        (
            _SIX(
                18, 8, event.tenant_id, 8, at, 8, event.epoch, 8, event.seq, 8, event.cycle, 8, event.amount
            ),
            _TYPES[EventKind(event.kind)],
            _IN if event.flags & _INWARD else _OUT,
            NULL if event.flags & _UNLIMITED else _BIGINT(8, event.remaining),
            request,
            control,
            reference(event.service_id),
            reference(event.key_id),
            reference(user_id),
            json_field(event.metadata),
            _was_for(event),
        )
    )


def credit_row(event: Event, user_id: int | None) -> bytes:
    """The `credit_transaction` row of a use with the credits part."""
    at = (event.at_ms - EPOCH_MS) * 1000
    return b"".join(
        (
            _SIX(
                16, 8, event.organization_id, 8, at, 8, event.epoch, 8, event.credit_seq, 8, event.credits,
                8, event.balance,
            ),
            _BIGINT(8, event.carried),
            *_use(event, user_id),
        )
    )  # fmt: skip


def usage_row(event: Event, user_id: int | None) -> bytes:
    """The `feature_usage` row of a use with the usage part."""
    at = (event.at_ms - EPOCH_MS) * 1000
    return b"".join(
        (
            _SIX(
                18, 8, event.organization_id, 8, at, 8, event.epoch, 8, event.spend_seq, 8, event.units,
                8, event.spend,
            ),
            _BIGINT(8, event.spent),
            _TRUE if in_money(event) else _FALSE,
            json_field(unit_prices(event)),
            *_use(event, user_id),
        )
    )  # fmt: skip


def posting_row(event: Event, origin: Origin | None) -> bytes:
    """The `credit_posting` row of a grant: an addition or its expiry, or what its metadata calls it."""
    at = (event.at_ms - EPOCH_MS) * 1000
    signed = event.credits if event.flags & _INWARD else -event.credits
    credit_addition_id, kind = origin or (None, _posting_kind(event.metadata))
    return b"".join(
        (
            _FOUR(10, 8, event.organization_id, 8, at, 8, event.epoch, 8, event.credit_seq),
            _BIGINT(8, signed),
            _BIGINT(8, event.balance),
            bytes_field(kind.encode()),
            reference(credit_addition_id),
            uuid_field(event.source),
            json_field(event.metadata),
        )
    )


def is_uuid(text: str) -> bool:
    """Whether PostgreSQL takes the text as a UUID in its usual spelling."""
    return _UUID.fullmatch(text) is not None


def corrects(metadata: bytes) -> str:
    """The request an adjustment makes good, by its metadata; empty if it names none."""
    if b'"corrects"' not in metadata:
        return ""
    named = said_in(metadata).get("corrects")
    return named if isinstance(named, str) else ""


def _names(event: Event) -> tuple[bytes, bytes]:
    if event.kind == _CONSUMED:
        return uuid_field(event.source), NULL
    return uuid_field(corrects(event.metadata)), uuid_field(event.source)


def request_of(event: Event) -> str:
    """The request a use belongs to, or that an adjustment makes good; empty if it names none."""
    return event.source if event.kind == _CONSUMED else corrects(event.metadata)


def _was_for(event: Event) -> bytes:
    """The fields of content, project and version."""
    content, project, version = attributed(event.attribution)
    named = bytes_field(version.encode()) if version else NULL
    return number_field(content) + number_field(project) + named


def _use(event: Event, user_id: int | None) -> tuple[bytes, ...]:
    return (
        uuid_field(request_of(event)),
        reference(event.service_id),
        reference(event.tenant_id),
        reference(event.key_id),
        reference(user_id),
        _was_for(event),
        json_field(event.metadata),
    )


def _posting_kind(metadata: bytes) -> str:
    kind = said_in(metadata).get("kind")
    return str(kind) if kind in ("addition", "expiry") else "correction"


def said_in(metadata: bytes) -> dict[str, object]:
    """The metadata as an object; empty where it is none, which PostgreSQL may refuse by name."""
    try:
        facts = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def uuid_field(text: str) -> bytes:
    """A UUID's field, null where there is none; ValueError where it is no UUID."""
    if not text:
        return NULL
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return _UUID_LENGTH + raw


def reference(value: int | None) -> bytes:
    """An id's field, null where there is none."""
    return _BIGINT(8, value) if value else NULL


def number_field(digits: str) -> bytes:
    """A number's field, null where there are no digits; ValueError where they are none."""
    return _BIGINT(8, int(digits)) if digits else NULL


def bytes_field(raw: bytes) -> bytes:
    """A field of these bytes, as a text has them."""
    return _LENGTH(len(raw)) + raw


def json_field(document: bytes) -> bytes:
    """A JSON document's field, null where there is none."""
    return _LENGTH(len(document) + 1) + b"\1" + document if document else NULL
