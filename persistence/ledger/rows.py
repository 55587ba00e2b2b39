"""Packs ledger rows in PostgreSQL's binary COPY format, one row at a time.

Pure. Source of the layout: PostgreSQL documentation, COPY, "Binary Format": a count of fields, then each
field's length (-1 is null) and bytes, big-endian.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec
from psycopg import Connection

from gateway.core.accounts.call_facts import (
    NONE,
    TEXT_CHARACTERS_MAX,
    UNKNOWN_BYTES_MAX,
    CallFacts,
    facts_in,
    reclaimed_in,
)
from gateway.core.accounts.outbox import (
    PRICED,
    EventFlag,
    EventKind,
    EventNote,
    OutboxEntry,
    attributed,
    in_money,
)
from gateway.core.accounts.runs import is_run, run_of
from gateway.core.billing.money import DECIMALS, MICRO, PriceTier, are_money, read_tiers, spread
from gateway.core.billing.price_book import KINDS
from gateway.core.model import INTEGER_MAX
from gateway.core.times import moment_of
from persistence.keeper.retention import times_of
from persistence.ledger import statements
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed, event_of
from persistence.ledger.statements import bounded

# The price of an entry's units, by tier: as in roll-ups and ledger rows. Pure.

PRICES_MAX = 1_024


def portions(event: OutboxEntry) -> Iterator[tuple[int, int, Decimal]]:
    """Yield, for each price tier of an event's units: the first unit's number, the units and the price.

    Units are numbered from the start of the month.
    """
    if not event.priced:
        # An older entry without prices: its cost divided by its units.
        each = Decimal(event.spend) / (MICRO * event.units) if event.units else Decimal(0)
        yield 0, event.units, round(each, DECIMALS)
        return
    at = int(PRICED.struct.unpack_from(event.priced)[0])
    tiers = _tiers(event.priced[PRICED.size :]) or (PriceTier(None, Decimal(0)),)
    for portion in spread(tiers, at, event.units):
        yield at, portion.quantity, portion.unit_price
        at += portion.quantity


def unit_prices(event: OutboxEntry) -> bytes:
    """Return the unit price as JSON, or a list by tier; empty if the event has no units or they are money."""
    packed = event.priced[PRICED.size :]
    if not event.units or are_money(packed):
        return b""
    if event.priced and (flat := _flat(packed)):
        return flat
    found = [(units, f"{price:f}") for _, units, price in portions(event)]
    return msgspec.json.encode(found[0][1] if len(found) == 1 else found)


@lru_cache(maxsize=PRICES_MAX)
def _tiers(packed: bytes) -> tuple[PriceTier, ...]:
    return read_tiers(packed)


@lru_cache(maxsize=PRICES_MAX)
def _flat(packed: bytes) -> bytes:
    """Return the price as JSON if all units have the same price; else empty."""
    tiers = _tiers(packed)
    return msgspec.json.encode(f"{tiers[0].unit_price:f}") if len(tiers) == 1 else b""


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

# The addition of a posting, and whether the posting is the addition itself or its expiry.
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


def token_row(event: OutboxEntry, user_id: int | None) -> bytes:
    """Pack an entry with tokens as a `token_ledger` row; raise ValueError if its source is no UUID."""
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


def credit_row(event: OutboxEntry, user_id: int | None) -> bytes:
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


def usage_row(event: OutboxEntry, user_id: int | None) -> bytes:
    """Return the row of a metered use, in the binary format of COPY: 18 columns, each after its length."""
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


def posting_row(event: OutboxEntry, origin: Origin | None) -> bytes:
    """Pack a movement of credits as a `credit_posting` row: addition, expiry, or the kind in the metadata."""
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
    """Return whether a text is a UUID in its usual form, with hyphens."""
    return _UUID.fullmatch(text) is not None


def corrects(metadata: bytes) -> str:
    """Return the id of the request that an adjustment corrects, from its metadata; "" if there is none."""
    if b'"corrects"' not in metadata:
        return ""
    named = metadata_in(metadata).get("corrects")
    return named if isinstance(named, str) else ""


def _names(event: OutboxEntry) -> tuple[bytes, bytes]:
    if event.kind == _CONSUMED:
        return uuid_field(event.source), NULL
    return uuid_field(corrects(event.metadata)), uuid_field(event.source)


def request_of(event: OutboxEntry) -> str:
    """Return the id of a use's request, or of the request that an adjustment corrects; "" if none."""
    return event.source if event.kind == _CONSUMED else corrects(event.metadata)


def _was_for(event: OutboxEntry) -> bytes:
    content, project, version = attributed(event.attribution)
    named = bytes_field(version.encode()) if version else NULL
    return number_field(content) + number_field(project) + named


def _use(event: OutboxEntry, user_id: int | None) -> tuple[bytes, ...]:
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
    kind = metadata_in(metadata).get("kind")
    return str(kind) if kind in ("addition", "expiry") else "correction"


def metadata_in(metadata: bytes) -> dict[str, object]:
    """Parse metadata as a JSON object; return an empty object if the metadata is something else."""
    try:
        facts = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def uuid_field(text: str) -> bytes:
    """Pack a UUID, or null if the text is empty; raise ValueError if it is no UUID."""
    if not text:
        return NULL
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return _UUID_LENGTH + raw


def reference(value: int | None) -> bytes:
    """Pack an id, or null if there is none."""
    return _BIGINT(8, value) if value else NULL


def number_field(digits: str) -> bytes:
    """Pack a number, or null if there are no digits; raise ValueError if they are no digits."""
    return _BIGINT(8, int(digits)) if digits else NULL


def bytes_field(raw: bytes) -> bytes:
    return _LENGTH(len(raw)) + raw


# An escaped NUL, which jsonb refuses, after complete pairs of backslashes.
_ESCAPED_NUL = re.compile(rb"((?<!\\)(?:\\\\)*)\\u0000")


def json_field(document: bytes) -> bytes:
    """Pack a JSON document, without escaped NULs."""
    if b"u0000" in document:
        document = _ESCAPED_NUL.sub(rb"\1", document)
    return _LENGTH(len(document) + 1) + b"\1" + document if document else NULL


# The journal's row of a call, packed for COPY: its use, cost and owner.
#
# Pure. Texts of an upstream or a caller never prevent a charge from being stored: they are cut and cleaned
# here.

# The failure of a call whose gateway died.
RECLAIMED = "reclaimed"

FIELDS = len(statements.CALL_COLUMNS)

_FIXED = Struct(">h" + "iq" * 9 + "iB" * 2 + "iq" * len(KINDS)).pack


def call_row(event: OutboxEntry, user_id: int | None) -> bytes:
    """Return the journal's row for a call, packed for COPY in binary."""
    facts = facts_of(event)
    content, project, version = attributed(event.attribution)
    tokens, credits_, units = amounts_of(event, facts)
    counted: list[int] = []
    for count in counts_of(facts):
        counted += (8, count)
    return b"".join(
        (
            _FIXED(
                FIELDS, 8, event.organization_id, 8, event.tenant_id, 8, event.key_id,
                8, (used_at(event, facts) - EPOCH_MS) * 1000, 8, tokens, 8, credits_,
                8, units, 8, facts.status, 8, facts.duration_ms, 1, facts.streamed, 1, facts.estimated,
                *counted,
            ),
            uuid_field(event.source),
            reference(event.service_id),
            reference(user_id),
            number_field(content),
            number_field(project),
            _text(version),
            _text(facts.session),
            _text(facts.route),
            _text(facts.model),
            _text(facts.response_model),
            _text(facts.service_tier),
            json_field(_tools_of(facts.tools)) if facts.tools else NULL,
            NULL if facts.cost is None else _BIGINT(8, bounded(facts.cost)),
            _text(facts.currency),
            reference(facts.price_id),
            NULL if facts.first_token_ms is None else _BIGINT(8, facts.first_token_ms),
            _text(facts.upstream_request_id),
            NULL if facts.unknown == NONE else bytes_field(_cut(bytes(facts.unknown))),
            _text(facts.reason or (RECLAIMED if event.note == EventNote.RECLAIMED else "")),
            _text(facts.unpriced),
            _text(facts.exchange_rate),
            reference(_run(event)),
            _BIGINT(8, (facts.priced_ms - EPOCH_MS) * 1000) if facts.priced_ms else NULL,
            _text(facts.hour_factor),
            json_field(msgspec.json.encode(facts.tags)) if facts.tags else NULL,
            json_field(_groups_of(facts)) if facts.groups else NULL,
            *(_NOT_SUBSTITUTED if facts.step is None else _substitution(facts.step)),
        )
    )  # fmt: skip


_NOT_SUBSTITUTED = (NULL, NULL, NULL)


def _substitution(step: tuple[str, int, str, int | None]) -> tuple[bytes, bytes, bytes]:
    asked, budget_id, name, saved = step
    written = NULL if saved is None else _BIGINT(8, bounded(saved))
    return _text(asked), json_field(_budget_json(budget_id, name)), written


def _budget_json(budget_id: int, name: str) -> bytes:
    return msgspec.json.encode({"id": budget_id, "name": stored_text(name)})


def _groups_of(facts: CallFacts) -> bytes:
    return msgspec.json.encode(facts.groups)


def _run(event: OutboxEntry) -> int | None:
    """Return the id of the run (a task's own budget) that a call belongs to, or None."""
    return next((run_of(budget.budget_id) for budget in event.budgets if is_run(budget.budget_id)), None)


def facts_of(event: OutboxEntry) -> CallFacts:
    """Return an entry's facts about its call, such as model and cost; older ones have them in metadata."""
    return event.facts or facts_in(event.metadata)


def used_at(event: OutboxEntry, facts: CallFacts) -> int:
    """Return the time of use of a call in Unix ms: the reported one, else the time of the entry."""
    return facts.used_ms or event.at_ms


def reclaimed_facts(event: OutboxEntry, currency: str) -> CallFacts:
    """Return the facts of a reclaimed call (expired unsettled), whose entry has only tokens and money."""
    facts = facts_in(event.metadata)
    facts.total = amounts_of(event, facts)[0] or event.raw_tokens
    facts.cost, facts.currency = event.money, currency
    return facts


def counts_of(facts: CallFacts) -> list[int]:
    """Return a call's tokens by kind for storing; impossible counts become 0."""
    return [count if 0 <= count <= INTEGER_MAX else 0 for count in facts.counts]


def stored_text(value: str) -> str:
    return value[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").replace(b"\0", b"").decode()


def amounts_of(event: OutboxEntry, facts: CallFacts) -> tuple[int, int, int]:
    """Return the tokens that a call used, and the credits and units charged; a call at cost is one unit."""
    tokens, units = facts.total, facts.units
    if event.facts is None:
        reclaimed_tokens = None
        if event.note == EventNote.RECLAIMED:
            reclaimed_tokens, units = reclaimed_in(event.metadata)
        if event.flags & TOKENS:
            tokens = event.amount if reclaimed_tokens is None else reclaimed_tokens
    charged_credits = event.credits if event.flags & CREDITS else 0
    return tokens, charged_credits, event.units if _moves_units(event) else units


def _moves_units(event: OutboxEntry) -> bool:
    """Return whether the units of an entry are the call's units, not money."""
    return bool(event.flags & USAGE) and not in_money(event)


# Facts of a call that are stored unchanged, and those that are texts.
_FACTS = ("first_token_ms", "status", "duration_ms", "streamed", "estimated")
_TEXTS = (
    "session", "route", "service_tier", "upstream_request_id", "unpriced", "exchange_rate", "model",
    "response_model", "currency", "hour_factor",
)  # fmt: skip


def correction(event: OutboxEntry) -> dict[str, object]:
    """Return the parameters of `statements.CORRECT_CALL`, which stores a call's real use over estimates."""
    facts, flags = facts_of(event), event.flags
    settled = event.kind == EventKind.CONSUME
    content, project, version = attributed(event.attribution)
    return {
        **dict(zip(KINDS, counts_of(facts), strict=True)),
        **{name: getattr(facts, name) for name in _FACTS},
        **{name: stored_text(getattr(facts, name)) or None for name in _TEXTS},
        "request_id": event.source if settled else facts.corrects,
        "content_id": int(content) if content else None,
        "project_id": int(project) if project else None,
        "feature_version": stored_text(version) or None,
        "tools": _tools_of(facts.tools).decode() if facts.tools else None,
        "unknown_usage": None if facts.unknown == NONE else _cut(bytes(facts.unknown)).decode(),
        # For a correction, the reason of the correction.
        "reason": (stored_text(facts.reason) or None) if settled else None,
        "tokens": facts.total,
        "credits": event.credits if flags & CREDITS else 0,
        # The additional units if they are charged, else all of them.
        "units": event.units if _moves_units(event) else facts.units,
        "more_units": _moves_units(event),
        "cost": None if facts.cost is None else bounded(facts.cost),
        "price_id": facts.price_id or None,
        "priced_at": moment_of(facts.priced_ms) if facts.priced_ms else None,
        "tags": msgspec.json.encode(facts.tags).decode() if facts.tags else None,
        "groups": _groups_of(facts).decode() if facts.groups else None,
        **_substitution_values(facts.step),
    }


def _substitution_values(step: tuple[str, int, str, int | None] | None) -> dict[str, object]:
    if step is None:
        return {"model_asked": None, "substituted_by": None, "saved": None}
    asked, budget_id, name, saved = step
    return {
        "model_asked": stored_text(asked), "substituted_by": _budget_json(budget_id, name).decode(),
        "saved": None if saved is None else bounded(saved),
    }  # fmt: skip


def _text(value: str) -> bytes:
    return bytes_field(stored_text(value).encode()) if value else NULL


def _cut(raw: bytes) -> bytes:
    """Cut raw text to `UNKNOWN_BYTES_MAX` bytes, without a partial character."""
    return raw[:UNKNOWN_BYTES_MAX].decode("utf-8", "ignore").encode().replace(b"\0", b"")


def _tools_of(counts: dict[str, int]) -> bytes:
    return msgspec.json.encode(
        {name: count for name, count in counts.items() if name.isascii() and name.isprintable()}
    )


# Selects the entries that become rows of the journal: one row for each call, however often it is delivered.
#
# An entry that moves an account is recognized by its seq. One that moves none, such as a failed or free call,
# is recognized by its stored row. A late settlement, or a correction, changes the stored row.

_JOURNAL_CONSUMED, _ADJUSTED, _LATE = int(EventKind.CONSUME), int(EventKind.ADJUST), int(EventNote.LATE)


def journal_of(
    connection: Connection[Any], fresh: Sequence[Placed], noted: Sequence[Placed]
) -> tuple[list[Placed], list[OutboxEntry]]:
    """Return the entries that become new rows of calls, and those that change a stored row.

    Entries in `noted` move no account; those stored before are skipped.
    """
    made, changing = [], []
    for placed in fresh:
        event = placed[1][2]
        assert event is not None
        if event.kind == _JOURNAL_CONSUMED and event.note != _LATE:
            made.append(placed)
        elif event.kind == _JOURNAL_CONSUMED or _corrects(event):
            changing.append(placed)
    told = [placed for placed in noted if event_of(placed).kind == _JOURNAL_CONSUMED]
    stored = _stored(connection, [one for one in map(event_of, told) if one.note != _LATE])
    made += [
        one for one in told if event_of(one).note != _LATE and event_of(one).source.lower() not in stored
    ]
    changing += [one for one in noted if _corrects(event_of(one)) or event_of(one).note == _LATE]
    late = [one for one in changing if event_of(one).kind == _JOURNAL_CONSUMED]
    there = _stored_ids(connection, map(event_of, late)) if late else frozenset()
    made += [one for one in late if event_of(one).source.lower() not in there]
    return made, [
        event_of(one)
        for one in changing
        if event_of(one).kind != _JOURNAL_CONSUMED or event_of(one).source.lower() in there
    ]


def _corrects(event: OutboxEntry) -> bool:
    return event.kind == _ADJUSTED and event.facts is not None


def _stored(connection: Connection[Any], events: Sequence[OutboxEntry]) -> frozenset[str]:
    if not events:
        return frozenset()
    times = [moment_of(event.at_ms) for event in events]
    values = (_ids(events), min(times), max(times))
    return frozenset(request for (request,) in connection.execute(statements.STORED_CALLS, values))


def _stored_ids(connection: Connection[Any], events: Iterable[OutboxEntry]) -> frozenset[str]:
    ids = _ids(events)
    found = connection.execute(statements.KNOWN_CALLS, {"ids": ids, **times_of(ids)})
    return frozenset(request for (request,) in found)


def _ids(events: Iterable[OutboxEntry]) -> list[str]:
    return [event.source for event in events if is_uuid(event.source)]
