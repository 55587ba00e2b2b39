"""What the flusher hands to the writer: entries decoded, in order, none left out."""

from __future__ import annotations

import struct
from dataclasses import replace

from gateway.core.accounts.outbox import (
    BUDGETED,
    HEAD,
    HEAD_BEFORE,
    EventKind,
    EventNote,
    FlushReport,
    WindowKey,
    control_id,
    decode,
    fan_out,
)
from tests.builders import encode
from tests.persistence.scenario import Account, entry_id


def test_entries_keep_their_order_and_bytes() -> None:
    account = Account(1, 1, 100)
    events = [account.reset(), account.consume(1), account.credit(5)]
    entries = account.take()
    assert fan_out({7: entries, 8: []}) == {
        7: [(id_, packed, event) for (id_, packed), event in zip(entries, events, strict=True)]
    }


def test_what_cannot_be_decoded_is_handed_over_without_an_event() -> None:
    account = Account(1, 1, 100)
    account.reset()
    [(id_, packed)] = account.take()
    for broken in (b"", b"\x04" + packed[1:], b"\x02" + packed[1:], packed[:-1], packed + b"x", packed[:100]):
        assert fan_out({0: [(id_, broken)]}) == {0: [(id_, broken, None)]}


def test_entries_of_layouts_before_are_read() -> None:
    account = Account(1, 1, 100)
    event = replace(account.reset(), user="ann", attribution="1\t2\tv3", metadata=b"{}")
    packed, texts = encode(event), (b"ann", b"1\t2\tv3")
    head = packed[1 : HEAD_BEFORE.size] + bytes([len(event.source)]) + event.source.encode()
    first = b"\x01" + head + b"".join(bytes([len(each)]) + each for each in texts) + b"\x02\x00{}"
    second = b"\x02" + head + b"".join(struct.pack("<H", len(each)) + each for each in (*texts, b"{}"))
    assert decode(packed) == decode(first) == decode(second) == event


def test_an_entry_says_which_windows_it_moves_and_by_how_much() -> None:
    windows = WindowKey(7, 1_700_000), WindowKey(8, 0, "0123456789abcdef01234567"), WindowKey(9, 5, "other")
    moves = replace(Account(1, 1, 100).reset(), money=-3, raw_tokens=4, requests=1, budgets=windows)
    packed = encode(moves)
    assert decode(packed) == moves
    lengths = packed[HEAD.size :].rindex(struct.pack("<H", 3 * BUDGETED.size))
    cut = packed[: HEAD.size + lengths] + struct.pack("<H", BUDGETED.size + 1) + bytes(BUDGETED.size + 1)
    assert fan_out({0: [(b"1-0", cut)]})[0][0][2] is None


def test_grants_and_late_posts_are_remembered_by_their_source() -> None:
    account = Account(1, 1, 100)
    assert control_id(account.reset()) == ""
    assert control_id(account.consume(1)) == ""
    assert control_id(account.consume(1, note=EventNote.RECLAIMED)) == ""
    late = account.consume(1, note=EventNote.LATE)
    assert control_id(late) == late.source
    grant = account.grant(EventKind.RECHARGE, 5)
    assert control_id(grant) == grant.source


def test_a_report_counts_what_may_be_deleted() -> None:
    report = FlushReport(acknowledged={1: [entry_id(), entry_id()], 2: [entry_id()]})
    assert report.entries() == 3
