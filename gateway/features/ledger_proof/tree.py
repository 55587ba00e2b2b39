"""The trees over rows of accounts, and the texts that are hashed and signed. Pure.

Every row is a leaf. A segment is the tree over consecutive seqs of one account, and has the hash of the
account's previous segment. A head is the tree over all new segments, and has the hash of the previous head.
Source of the tree: RFC 6962, section 2.1. This module must not know where rows are stored, or who signs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

FORMAT: Final = 1
# Seqs of one segment at most: a proof reads the rows of one segment.
SEGMENT_PLACES_MAX: Final = 8_192
# The leaf of a seq without a row, and the previous hash in the first text.
NONE: Final = bytes(32)
# Bytes of each leaf that are stored, to find the row that was changed. The proof itself is the root.
MARK_BYTES: Final = 4
NO_MARK: Final = bytes(MARK_BYTES)


@dataclass(frozen=True, slots=True)
class SignedLedger:
    """A table whose rows are proven: its columns of owner and time, and the hashed columns of `FORMAT`."""

    name: str
    owner: str
    at: str
    columns: tuple[str, ...]
    # Columns that are hashed as texts.
    texts: frozenset[str] = frozenset({"request_id", "control_write_id", "metadata", "unit_prices"})


_USE = ("organization_id", "feature_id", "tenant_id", "api_key_id", "user_id", "content_id", "project_id")
# By kind of account, as in `account_checkpoint`.
LEDGERS: Final[Mapping[str, tuple[SignedLedger, ...]]] = {
    "tenant": (
        SignedLedger("token_ledger", "tenant_id", "created_at", (
            "id", "tenant_id", "transaction_type", "amount", "total_remaining", "direction", "created_at",
            "epoch", "seq", "cycle", "request_id", "control_write_id", "service_id", "api_key_id", "user_id",
            "metadata", "content_id", "project_id", "feature_version",
        )),
    ),
    "credits": (
        SignedLedger("credit_transaction", "organization_id", "timestamp", (
            "id", *_USE, "timestamp", "credits_used", "feature_version", "metadata", "request_id",
            "balance_after", "epoch", "seq", "carried",
        )),
        SignedLedger("credit_posting", "organization_id", "created_at", (
            "id", "organization_id", "kind", "credit_addition_id", "amount", "balance_after", "created_at",
            "epoch", "seq", "control_write_id", "metadata",
        )),
    ),
    "spend": (
        SignedLedger("feature_usage", "organization_id", "timestamp", (
            "id", *_USE, "timestamp", "usage_amount", "feature_version", "metadata", "request_id", "spend",
            "spent_after", "epoch", "seq", "in_money", "unit_prices",
        )),
    ),
}  # fmt: skip


def row_text(ledger: SignedLedger, cells: Mapping[str, Any]) -> str:
    """Return the text of a row for hashing, as PostgreSQL's `row_to_json`; its time is in microseconds."""
    named = {"ledger": ledger.name} | {name: cells[name] for name in ledger.columns}
    return json.dumps(named, ensure_ascii=False, separators=(",", ":"))


def leaf(content: bytes) -> bytes:
    return sha256(b"\0" + content).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root hash of a tree. Without leaves it is the hash of no bytes."""
    *_, top = _levels(leaves)
    return top[0] if top else sha256().digest()


def path(leaves: Sequence[bytes], index: int) -> list[tuple[str, str]]:
    """Return the hashes that prove a leaf, up to the root: the sibling's side and its hex digest."""
    steps = []
    for level in _levels(leaves):
        other = index ^ 1
        if other < len(level):
            steps.append(("left" if other < index else "right", level[other].hex()))
        index //= 2
    return steps


def _levels(leaves: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the levels of a Merkle tree, from the leaves to the root."""
    level = leaves
    yield level
    while len(level) > 1:
        above = [
            sha256(b"\1" + left + two).digest() for left, two in zip(level[::2], level[1::2], strict=False)
        ]
        level = [*above, level[-1]] if len(level) % 2 else above
        yield level


@dataclass(frozen=True, slots=True)
class LedgerSegment:
    """Consecutive seqs of an account, from `first_seq` to `last_seq`, in the tree of a head.

    `number` counts the account's segments, and `up_to` is the last seq signed so far. A row that arrives late
    at a seq that was empty gets a later segment. `previous` is the hash of the segment before.
    """

    kind: str
    owner_id: int
    number: int
    head: int
    first_seq: int
    last_seq: int
    up_to: int
    root: bytes
    previous: bytes
    marks: bytes = b""

    @property
    def account(self) -> str:
        return f"{self.kind}:{self.owner_id}"

    def text(self) -> str:
        return _text(
            account=self.account, number=self.number, first=self.first_seq, last=self.last_seq,
            root=self.root.hex(), previous=self.previous.hex(),
        )  # fmt: skip

    def leaf(self) -> bytes:
        return leaf(self.text().encode())

    def mark(self, seq: int) -> bytes:
        at = (seq - self.first_seq) * MARK_BYTES
        return self.marks[at : at + MARK_BYTES]


class ProvenRow(NamedTuple):
    """A row as it was found: its account, its seq, its leaf, and where it was found.

    `beyond`: its seq is higher than that of its account.
    """

    owner_id: int
    seq: int
    leaf: bytes
    where: str = "the database"
    beyond: bool = False


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """A signed head: the text from `text_of_head`, its public key and the signature."""

    number: int
    text: str
    key: bytes
    signature: bytes
    created_at: datetime

    def digest(self) -> bytes:
        return sha256(self.text.encode()).digest()


@dataclass(frozen=True, slots=True)
class LedgerKey:
    """A function that signs a text, and the public key that verifies the signature."""

    public: bytes
    sign: Callable[[bytes], bytes]


def text_of_head(number: int, at: str, segments: int, top: bytes, previous: bytes) -> str:
    """Return the text of a head that is signed.

    It has the number of new `segments`, the root hash `top` of their tree, and the hash of the `previous`
    head.
    """
    return _text(
        format=FORMAT, number=number, at=at, segments=segments, root=top.hex(), previous=previous.hex()
    )


def _text(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"))


def cut(
    before: LedgerSegment, head: int, first_seq: int, last_seq: int, roots: Mapping[int, bytes]
) -> Iterator[LedgerSegment]:
    """Yield the segments for an account's rows `first_seq` to `last_seq`, after its last segment `before`.

    `roots` are the hashes of the rows by sequence number.
    """
    for first in range(first_seq, last_seq + 1, SEGMENT_PLACES_MAX):
        last = min(first + SEGMENT_PLACES_MAX - 1, last_seq)
        leaves = [roots.get(seq, NONE) for seq in range(first, last + 1)]
        before = LedgerSegment(
            before.kind, before.owner_id, before.number + 1, head, first, last, max(before.up_to, last),
            root(leaves), before.leaf() if before.number else NONE,
            b"".join(one[:MARK_BYTES] for one in leaves),
        )  # fmt: skip
        yield before
