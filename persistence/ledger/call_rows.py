"""The journal's row of a call, as COPY reads it: what it used, what it cost, whose it was.

Pure. A text of an upstream or a caller never keeps a charge from being stored: it is cut and cleaned here.
"""

from __future__ import annotations

from struct import Struct

import msgspec

from gateway.core.accounts.facts import (
    NONE,
    TEXT_CHARACTERS_MAX,
    UNKNOWN_BYTES_MAX,
    CallFacts,
    facts_in,
    reclaimed_in,
)
from gateway.core.accounts.ledger import Event, EventKind, EventNote, attributed, in_money
from gateway.core.billing.vector import KINDS
from gateway.core.model import INTEGER_MAX
from persistence.ledger.guard import CREDITS, TOKENS, USAGE
from persistence.ledger.rows import (
    EPOCH_MS,
    NULL,
    bytes_field,
    json_field,
    number_field,
    reference,
    uuid_field,
)
from persistence.ledger.sums import bounded

# Why a call failed whose gateway died.
RECLAIMED = "reclaimed"

CALL_COLUMNS = (
    "organization_id, tenant_id, api_key_id, created_at, tokens, credits, units, status, duration_ms,"
    f" streamed, estimated, {', '.join(KINDS)}, request_id, service_id, user_id, content_id, project_id,"
    " feature_version, session, route, model, response_model, service_tier, tools, cost, currency, price_id,"
    " first_token_ms, upstream_request_id, unknown_usage, reason, unpriced"
)
FIELDS = CALL_COLUMNS.count(",") + 1

_FIXED = Struct(">h" + "iq" * 9 + "iB" * 2 + "iq" * len(KINDS)).pack
_BIGINT = Struct(">iq").pack


def call_row(event: Event, user_id: int | None) -> bytes:
    """The `call` row of a use."""
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
        )
    )  # fmt: skip


def facts_of(event: Event) -> CallFacts:
    """What an entry says of its call, also where it was written before entries had facts."""
    return event.facts or facts_in(event.metadata)


def used_at(event: Event, facts: CallFacts) -> int:
    """When a call was, in ms: what did not pass the gateway says it itself, its account moved later."""
    return facts.used_ms or event.at_ms


def reclaimed_facts(event: Event, currency: str) -> CallFacts:
    """What is known of a call that was taken back and cost something: its entry has no facts."""
    facts = facts_in(event.metadata)
    facts.total = amounts_of(event, facts)[0] or event.raw_tokens
    facts.cost, facts.currency = event.money, currency
    return facts


def counts_of(facts: CallFacts) -> list[int]:
    """Tokens by kind as they are stored: what no count can be is none."""
    return [count if 0 <= count <= INTEGER_MAX else 0 for count in facts.counts]


def stored_text(value: str) -> str:
    """A text as it is stored."""
    return value[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").replace(b"\0", b"").decode()


def amounts_of(event: Event, facts: CallFacts) -> tuple[int, int, int]:
    """Tokens a call used, credits and units it was charged: one where it is charged what it costs."""
    flags = event.flags
    tokens, units = facts.total, facts.units
    if event.facts is None:
        told = None
        if event.note == EventNote.RECLAIMED:
            told, units = reclaimed_in(event.metadata)
        if flags & TOKENS:
            tokens = event.amount if told is None else told
    if _moves_units(event):
        units = event.units
    return tokens, event.credits if flags & CREDITS else 0, units


def _moves_units(event: Event) -> bool:
    """Whether an entry's own units are the call's."""
    return bool(event.flags & USAGE) and not in_money(event)


def correction(event: Event) -> dict[str, object]:
    """What a call really was that its row knows by what was seen of it, for `statements.CORRECT_CALL`."""
    facts, flags = facts_of(event), event.flags
    settled = event.kind == EventKind.CONSUME
    content, project, version = attributed(event.attribution)
    return {
        **dict(zip(KINDS, counts_of(facts), strict=True)),
        "request_id": event.source if settled else facts.corrects,
        "content_id": int(content) if content else None,
        "project_id": int(project) if project else None,
        "feature_version": stored_text(version) or None,
        "session": stored_text(facts.session) or None,
        "route": stored_text(facts.route) or None,
        "service_tier": stored_text(facts.service_tier) or None,
        "tools": _tools_of(facts.tools).decode() if facts.tools else None,
        "first_token_ms": facts.first_token_ms,
        "upstream_request_id": stored_text(facts.upstream_request_id) or None,
        "unknown_usage": None if facts.unknown == NONE else _cut(bytes(facts.unknown)).decode(),
        # Of a correction it says why the row is corrected.
        "reason": (stored_text(facts.reason) or None) if settled else None,
        "tokens": facts.total,
        "credits": event.credits if flags & CREDITS else 0,
        # More than there were where they are charged, else all there are.
        "units": event.units if _moves_units(event) else facts.units,
        "more_units": _moves_units(event),
        "status": facts.status,
        "duration_ms": facts.duration_ms,
        "streamed": facts.streamed,
        "estimated": facts.estimated,
        "unpriced": stored_text(facts.unpriced) or None,
        "model": stored_text(facts.model) or None,
        "response_model": stored_text(facts.response_model) or None,
        "cost": None if facts.cost is None else bounded(facts.cost),
        "currency": stored_text(facts.currency) or None,
        "price_id": facts.price_id or None,
    }


def _text(value: str) -> bytes:
    return bytes_field(stored_text(value).encode()) if value else NULL


def _cut(raw: bytes) -> bytes:
    """As much as is kept of it, without a piece of a character."""
    return raw[:UNKNOWN_BYTES_MAX].decode("utf-8", "ignore").encode().replace(b"\0", b"")


def _tools_of(counts: dict[str, int]) -> bytes:
    return msgspec.json.encode(
        {name: count for name, count in counts.items() if name.isascii() and name.isprintable()}
    )
