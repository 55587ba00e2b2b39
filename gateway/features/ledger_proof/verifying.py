"""Compares rows with their signed hashes, and names rows that were changed, removed or added. Pure.

Rows come from the database and from files of an archive, each sorted by account and seq. The root of its
segment proves a row, and the head proves a segment. Marks only help to find the row.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from gateway.features.ledger_proof.tree import (
    MARK_BYTES,
    NO_MARK,
    NONE,
    LedgerHead,
    LedgerSegment,
    ProvenRow,
    root,
    text_of_head,
)


class LedgerForgery(NamedTuple):
    """A difference from what was signed: the account or head, the seq there, and the fault."""

    account: str
    seq: int | None
    detail: str


@dataclass(slots=True)
class LedgerVerification:
    """The numbers of compared rows, of rows that no head has signed yet, and all faults."""

    heads: int = 0
    segments: int = 0
    rows: int = 0
    unsigned: int = 0
    last_head: str = ""
    wrong: list[LedgerForgery] = field(default_factory=list)

    def say(self, account: str, seq: int | None, detail: str) -> None:
        self.wrong.append(LedgerForgery(account, seq, detail))


# Whether a key signed a text: the key, the signature, the text.
Verifies = Callable[[bytes, bytes, bytes], bool]


def check_heads(
    heads: Sequence[LedgerHead], segments: Iterable[LedgerSegment], keys: Collection[bytes],
    verification: LedgerVerification, *, verifies: Verifies, kept: Mapping[int, str],
) -> None:  # fmt: skip
    """Check that each head is signed by one of `keys`, follows the one before it, and has its segments.

    `kept` are hashes of heads that were stored elsewhere. Segments must be sorted by head, and then in the
    order of the head's tree. Faults are added to `verification`.
    """
    trees = _trees(segments, verification)
    expected, previous = 1, NONE
    for head in heads:
        name = f"head {head.number}"
        for number in range(expected, head.number):
            verification.say(f"head {number}", None, "is missing")
        if head.key not in keys:
            verification.say(name, None, "is signed by another key than those that were named")
        elif not verifies(head.key, head.signature, head.text.encode()):
            verification.say(name, None, "has a signature that is not of its text")
        if head.text != text_of_head(
            head.number, _at(head), *trees.pop(head.number, (0, root(()))), previous
        ):
            verification.say(name, None, "was changed, or its segments or the head before it were")
        if (noted := kept.get(head.number)) and noted != head.digest().hex():
            verification.say(name, None, "is another one than was kept")
        expected, previous = head.number + 1, head.digest()
        verification.heads, verification.last_head = verification.heads + 1, f"{head.number}={previous.hex()}"
    for number in sorted({*kept, *trees}):
        # Segments of the next head may exist before that head.
        if number > expected or (number == expected and number in kept):
            verification.say(f"head {number}", None, "is missing")


def _trees(
    segments: Iterable[LedgerSegment], verification: LedgerVerification
) -> dict[int, tuple[int, bytes]]:
    """Return, by head, the number of its segments and the root hash of their tree.

    Segments that do not follow the account's previous one are added to `verification`.
    """
    trees, last = dict[int, tuple[int, bytes]](), dict[tuple[str, int], tuple[int, bytes]]()
    for number, head_segments in groupby(segments, key=attrgetter("head")):
        leaves = list[bytes]()
        for row in head_segments:
            account = (row.kind, row.owner_id)
            if last.get(account, (0, NONE)) != (row.number - 1, row.previous):
                verification.say(
                    row.account, row.first_seq, f"segment {row.number} does not follow the one before it"
                )
            leaves.append(row.leaf())
            last[account] = row.number, leaves[-1]
        verification.segments += len(leaves)
        trees[number] = len(leaves), root(leaves)
    return trees


def _at(head: LedgerHead) -> str:
    try:
        return str(json.loads(head.text)["at"])
    except (ValueError, KeyError, TypeError):
        return ""


def check_rows(
    kind: str, segments: Iterable[LedgerSegment], streams: Sequence[Iterable[ProvenRow]],
    verification: LedgerVerification,
) -> None:  # fmt: skip
    """Check every row of a kind of accounts against the signed segments; add faults to `verification`.

    Segments and rows must be sorted by account and seq.
    """
    items: Iterable[LedgerSegment | ProvenRow] = heapq.merge(segments, *streams, key=_order_key)
    for owner_id, owner_items in groupby(items, key=attrgetter("owner_id")):
        _check_account(f"{kind}:{owner_id}", owner_items, verification)


def _order_key(node: LedgerSegment | ProvenRow) -> tuple[int, int, int, int]:
    """Return a sort key by which a segment comes before its rows.

    Of two segments for the same rows, the later one comes second.
    """
    if isinstance(node, LedgerSegment):
        return node.owner_id, node.first_seq, 0, node.number
    return node.owner_id, node.seq, 1, 0


@dataclass(slots=True)
class _Open:
    """A segment whose rows are being read. `late` has the segments of single rows that arrived late."""

    segment: LedgerSegment
    late: dict[int, LedgerSegment] = field(default_factory=dict)
    rows: dict[int, list[ProvenRow]] = field(default_factory=dict)


def _check_account(
    account: str, items: Iterator[LedgerSegment | ProvenRow], verification: LedgerVerification
) -> None:
    """Compare an account's rows with the segments that heads signed; `items` are in order of their places."""
    now: _Open | None = None
    behind: ProvenRow | None = None
    for item in items:
        if isinstance(item, ProvenRow):
            verification.rows += 1
            if now is not None and item.seq <= now.segment.last_seq:
                same = now.rows.setdefault(item.seq, [])
                # A row that stayed when its month was archived is there, and in the file.
                if not any(other.leaf == item.leaf and other.where != item.where for other in same):
                    same.append(item)
                continue
            verification.unsigned += 1
            if item.beyond:
                verification.say(
                    account, item.seq, f"was added to {item.where}: the account stands before it"
                )
            elif behind is not None and (behind.seq, behind.where) == (item.seq, item.where):
                verification.say(
                    account, item.seq, f"two rows have this place in {item.where}, and no head signed either"
                )
            behind = item
        elif now is not None and item.last_seq <= now.segment.last_seq:
            now.late[item.first_seq] = item
        else:
            if now is not None:
                _check_segment(account, now, verification)
                if item.first_seq != now.segment.last_seq + 1:
                    places = f"no segment has the places up to {item.first_seq - 1}"
                    verification.say(account, now.segment.last_seq + 1, places)
            now, behind = _Open(item), None
    if now is not None:
        _check_segment(account, now, verification)


def _check_segment(account: str, now: _Open, verification: LedgerVerification) -> None:
    """Compare the hash of a segment's rows with the signed one.

    If they differ, find the wrong rows by the marks, which are the first bytes of each row's hash.
    """
    segment, late, rows = now.segment, now.late, now.rows
    places = range(segment.first_seq, segment.last_seq + 1)
    leaves = [rows[seq][0].leaf if seq in rows and seq not in late else NONE for seq in places]
    named = [
        fault for seq, due in late.items() for fault in _compared(account, seq, rows.get(seq, ()), due.root)
    ]
    if (
        all(len(same_place) == 1 for seq, same_place in rows.items() if seq not in late)
        and root(leaves) == segment.root
    ):
        if b"".join(leaf[:MARK_BYTES] for leaf in leaves) != segment.marks:
            verification.say(account, segment.first_seq, f"the marks up to {segment.last_seq} were changed")
    else:
        for seq in (place for place in places if place not in late):
            named += _compared(account, seq, rows.get(seq, ()), segment.mark(seq))
        if not named:
            verification.say(
                account, segment.first_seq, f"some row up to {segment.last_seq} is not what was signed"
            )
    verification.wrong += named


def _compared(account: str, seq: int, rows: Sequence[ProvenRow], due: bytes) -> Iterator[LedgerForgery]:
    """Yield the forgeries among the rows of a seq; `due` is the signed leaf or its prefix."""
    right = [row for row in rows if due != NO_MARK and row.leaf.startswith(due)]
    if not rows and due != NO_MARK:
        yield LedgerForgery(account, seq, "is missing")
    elif rows and not right and due != NO_MARK:
        yield LedgerForgery(account, seq, f"was changed in {rows[0].where}")
    else:
        for row in [row for row in rows if row not in right] + right[1:]:
            yield LedgerForgery(account, seq, f"was added to {row.where}")
