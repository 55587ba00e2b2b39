"""What the flusher hands to the writer: entries decoded, in order, none left out."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.accounts.ledger import HEAD, EventKind, EventNote, decode
from gateway.core.accounts.outbox import FlushReport, control_id, fan_out
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
    for broken in (b"", b"\x03" + packed[1:], packed[:-1], packed + b"x", packed[:100]):
        assert fan_out({0: [(id_, broken)]}) == {0: [(id_, broken, None)]}


def test_entries_of_the_layout_before_are_read() -> None:
    account = Account(1, 1, 100)
    event = replace(account.reset(), user="ann", attribution="1\t2\tv3", metadata=b"{}")
    packed = encode(event)
    texts = b"".join(bytes([len(each)]) + each for each in (event.source.encode(), b"ann", b"1\t2\tv3"))
    before = b"\x01" + packed[1 : HEAD.size] + texts + b"\x02\x00{}"
    assert decode(packed) == decode(before) == event


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
