"""One entry of the late queue: where it is, whose it is, what was used. Of the outbox, place and owner."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import isfinite
from typing import cast

from gateway.core.accounts.holds import LateSettlement
from gateway.core.accounts.ledger import ENTRY, HEAD_BEFORE, LAYOUTS, is_newer
from gateway.core.accounts.outbox import StreamPlace, stream_place
from gateway.counters.layouts.table import KEPT
from gateway.counters.redis.calls import Reply
from gateway.counters.settlement_log.acknowledged import recovered
from gateway.counters.settlement_log.settlement_record import record_of, settlement_of

START: StreamPlace = (0, 0)
# Whose an outbox entry is; one that a newer version has written may be anybody's.
_OWNER, _OWNER_AT = ENTRY.part("organization_id", "organization_id"), ENTRY.offset("organization_id")
ANYBODYS = -1
# What every entry of the queue has; see `late` in lua/lib/settlement.lua.
_FIELDS = frozenset({b"a", b"u", b"c", b"m", b"charged"})


@dataclass(frozen=True, slots=True)
class LateEntry:
    """One entry of the queue, read as far as it takes to know whose it is."""

    place: StreamPlace
    organization_id: int
    request_id: str
    fields: dict[bytes, bytes]


def place_of(entry: Reply) -> StreamPlace:
    """The place of an entry as XRANGE answers it."""
    assert isinstance(entry, list)
    return stream_place(cast("bytes", entry[0]))


def id_of(place: StreamPlace) -> bytes:
    """A place as commands take it."""
    return b"%d-%d" % place


def next_of(place: StreamPlace) -> StreamPlace:
    """The first place after this one."""
    return place[0], place[1] + 1


def owner_of(entry: Reply) -> int:
    """The organization of an outbox entry, or `ANYBODYS`; 0 of one that nobody can read, in nobody's way."""
    assert isinstance(entry, list)
    fields = entry[1]
    packed = fields[1] if isinstance(fields, list) and len(fields) == 2 else None
    if isinstance(packed, bytes) and is_newer(packed):
        return ANYBODYS
    if not isinstance(packed, bytes) or len(packed) < HEAD_BEFORE.size or packed[0] not in LAYOUTS:
        return 0
    (owner,) = _OWNER.unpack_from(packed, _OWNER_AT)
    return int(owner) if isfinite(owner) else 0


def read_entry(raw: Reply) -> LateEntry | None:
    """One of the queue; None of one that no script of this version, or one before, has written."""
    assert isinstance(raw, list)
    flat = cast("list[bytes]", raw[1])
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if not fields.keys() >= _FIELDS:
        return None
    try:
        kept = KEPT.read(KEPT.today(fields[b"a"]))
        owner, request_id = kept["organization_id"], kept["request_id"].decode()
        int(fields[b"charged"])
        return LateEntry(place_of(raw), owner, request_id, fields)
    except (ValueError, OverflowError, struct.error):
        return None


def late_settlement(entry: LateEntry) -> LateSettlement:
    """What an entry says was used, by whom and of what."""
    fields = entry.fields
    settlement = settlement_of(
        fields[b"a"], fields[b"u"], fields[b"c"], fields[b"m"], fields.get(b"t", b""),
        paid=fields.get(b"b", b""),
    )  # fmt: skip
    moved = recovered(settlement.caller, fields.get(b"acknowledged", b""))
    charged, record = int(fields[b"charged"]), record_of(fields)
    return LateSettlement(id_of(entry.place), settlement, charged, moved, record)
