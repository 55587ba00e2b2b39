"""Segments and heads of the ledger proof, and the rows that they cover, hashed by PostgreSQL.

One writer at a time stores an account's rows in the order of their sequence numbers. So all rows up to the
account's last sequence number are stored, and no running transaction adds one. The one exception is a dead
letter, which fills a number that was skipped before: such rows are searched for separately.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from struct import Struct
from typing import Any

import psycopg
from psycopg.rows import class_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.times import rfc3339
from gateway.errors import LedgerProofFailed
from gateway.features.ledger_proof.tree import (
    LEDGERS,
    MARK_BYTES,
    NO_MARK,
    NONE,
    LedgerHead,
    LedgerKey,
    LedgerSegment,
    ProvenRow,
    SignedLedger,
    cut,
    root,
    text_of_head,
)
from persistence.address import CONNECT, plain_url
from persistence.error_mapping import complaint
from persistence.queries import insert_rows
from persistence.tables import ledger_segment

# Seconds between two signed heads.
HEAD_S = 3_600
# Maxima of one transaction of a keeper: accounts, and sequence numbers of all of them.
ACCOUNTS_AT_ONCE, PLACES_AT_ONCE = 1_000, 65_536
# Advisory lock class 7815: the ledger proof, one at a time.
_LOCK = text("SELECT pg_try_advisory_xact_lock(7815, 1)")
_PLACE = Struct(">q32s")
# By kind of account: the query for the last sequence number of each.
_STANDS = {
    "tenant": "SELECT tenant_id AS id, last_seq FROM tenant_quota",
    "credits": "SELECT id, credit_last_seq AS last_seq FROM organization",
    "spend": "SELECT id, spend_last_seq AS last_seq FROM organization",
}
_NEXT_HEAD = text("SELECT coalesce(max(number), 0) + 1 FROM ledger_head")
# Accounts with new rows. For an account without a segment, archived rows are not covered.
_DUE = """
SELECT s.id, s.last_seq, g.number, g.first_seq, g.last_seq AS segment_last, g.root, g.previous,
       coalesce(g.up_to, a.last_seq, 0) AS up_to
  FROM ({stands}) AS s
  LEFT JOIN LATERAL (SELECT * FROM ledger_segment WHERE kind = '{kind}' AND owner_id = s.id
                      ORDER BY number DESC LIMIT 1) AS g ON true
  LEFT JOIN LATERAL (SELECT max(last_seq) AS last_seq FROM archived_run
                      WHERE account = '{kind}:' || s.id AND g.number IS NULL) AS a ON true
 WHERE s.id > :after AND s.last_seq > coalesce(g.up_to, a.last_seq, 0) ORDER BY s.id LIMIT :count"""
_FOUND = """
SELECT w.id, string_agg(int8send(r.seq) || r.leaf, '') AS places
  FROM unnest(cast(:ids AS bigint[]), cast(:firsts AS bigint[]), cast(:lasts AS bigint[]))
       AS w (id, first, last)
 CROSS JOIN LATERAL ({rows}) AS r GROUP BY 1"""
# Sequence numbers that were signed as empty and have a row now, by account.
_LATE = """
SELECT d.id, d.seq, g.number, g.first_seq, g.last_seq AS segment_last, g.root, g.previous, g.up_to
  FROM (SELECT {owner} AS id, {seq} AS seq FROM dead_letter WHERE resolution = 'redriven' AND {seq} > 0) AS d
 CROSS JOIN LATERAL (SELECT * FROM ledger_segment WHERE kind = '{kind}' AND owner_id = d.id
                      ORDER BY number DESC LIMIT 1) AS g
 WHERE EXISTS (SELECT FROM ({covering}) AS c WHERE c.is_empty)
   AND NOT EXISTS (SELECT FROM ({covering}) AS c WHERE NOT c.is_empty)
 ORDER BY 1, 2 LIMIT 1"""
_COVERING = f"""
SELECT substr(marks, ((d.seq - first_seq) * {MARK_BYTES} + 1)::integer, {MARK_BYTES})
       = '\\x{NO_MARK.hex()}' AS is_empty FROM ledger_segment
 WHERE kind = '{{kind}}' AND owner_id = d.id AND d.seq BETWEEN first_seq AND last_seq"""
_LETTERS = {
    "tenant": ("tenant_id", "token_seq"),
    "credits": ("organization_id", "credit_seq"),
    "spend": ("organization_id", "spend_seq"),
}
_SEGMENT = ("kind", "owner_id", "number", "head", "first_seq", "last_seq", "up_to", "root", "previous")
_IN_ORDER = 'kind COLLATE "C", owner_id, number'
_HEAD = "number, body AS text, key, signature, created_at"
_LAST_HEAD = text(f"SELECT {_HEAD} FROM ledger_head ORDER BY number DESC LIMIT 1")
_SEGMENTS = f"SELECT {', '.join(_SEGMENT)} FROM ledger_segment WHERE head = "
_PUT_HEAD = text("""
INSERT INTO ledger_head (number, body, key, signature, created_at)
VALUES (:number, :text, :key, :signature, :at)""")
_AGE = text("SELECT extract(epoch FROM now() - max(created_at))::float8 FROM ledger_head")


def text_in_sql(ledger: SignedLedger, row: str) -> str:
    kinds = dict.fromkeys(ledger.texts, "{}::text")
    kinds[ledger.at] = "(extract(epoch FROM {}) * 1000000)::bigint"
    named = (f'{kinds.get(name, "{}").format(f"{row}.{name}")} AS "{name}"' for name in ledger.columns)
    cells = ", ".join(named)
    return f"row_to_json((SELECT cells FROM (SELECT '{ledger.name}' AS ledger, {cells}) AS cells))::text"


def _rows(kind: str, where: str, more: str = "") -> str:
    """Return SQL for the hashed rows of a kind of account; `where` and `more` may use the alias `r`."""
    return " UNION ALL ".join(
        f"SELECT r.{each.owner} AS owner_id, r.seq,"
        f" sha256('\\x00'::bytea || convert_to({text_in_sql(each, 'r')}, 'UTF8')) AS leaf{more}"
        f" FROM {each.name} AS r WHERE {where.format(owner=each.owner)}"
        for each in LEDGERS[kind]
    )


_DUES = {kind: text(_DUE.format(kind=kind, stands=stands)) for kind, stands in _STANDS.items()}
_BETWEEN = "r.{owner} = w.id AND r.seq BETWEEN w.first AND w.last"
# An order within keeps the planner from a join that reads whole ledgers.
_FOUNDS = {kind: text(_FOUND.format(rows=f"{_rows(kind, _BETWEEN)} ORDER BY seq")) for kind in LEDGERS}
_LATES = {
    kind: text(_LATE.format(kind=kind, owner=owner, seq=seq, covering=_COVERING.format(kind=kind)))
    for kind, (owner, seq) in _LETTERS.items()
}


class LedgerSigner:
    """Covers new ledger rows by segments, and signs heads over the segments."""

    def __init__(
        self, engine: AsyncEngine, key: LedgerKey, log: Callable[..., None], *, head_s: float = HEAD_S,
        places_at_once: int = PLACES_AT_ONCE,
    ) -> None:  # fmt: skip
        self._engine, self._key, self._log = engine, key, log
        self._head_s, self._places_at_once = head_s, places_at_once

    async def sign_if_due(self) -> LedgerHead | None:
        """Sign the ledger's new rows as a head, if the last head is older than `head_s` seconds.

        Return the head, or None if none is due or another keeper is signing.
        """
        async with self._engine.connect() as connection:
            age = await connection.scalar(_AGE)
        if age is not None and age < self._head_s:
            return None
        for kind in LEDGERS:
            while await self._late(kind):
                pass
            after: int | None = 0
            while after is not None:
                after = await self._cut(kind, after)
        return await self._sign()

    async def _cut(self, kind: str, after: int) -> int | None:
        """Store segments, ranges of rows to sign, for up to `ACCOUNTS_AT_ONCE` accounts above the id `after`.

        Return the id of the last account, or None if it was the last of all.
        """
        async with self._engine.begin() as connection:
            if not await connection.scalar(_LOCK):
                return None
            head = int(await connection.scalar(_NEXT_HEAD) or 0)
            here = {"after": after, "count": ACCOUNTS_AT_ONCE}
            rows = (await connection.execute(_DUES[kind], here)).all()
            spans, left = list[tuple[LedgerSegment, int, int]](), self._places_at_once
            for row in rows:
                last = min(row.last_seq, row.up_to + left)
                spans.append((_before(kind, row), row.up_to + 1, last))
                left -= last - row.up_to
                after = row.id if last == row.last_seq else row.id - 1
                if not left:
                    break
            await self._store(connection, kind, head, spans)
        return after if rows else None

    async def _late(self, kind: str) -> int | None:
        """Store a segment for one sequence number that was signed as empty and has a row now.

        Return None if there is no such number.
        """
        async with self._engine.begin() as connection:
            if not await connection.scalar(_LOCK):
                return None
            head = int(await connection.scalar(_NEXT_HEAD) or 0)
            row = (await connection.execute(_LATES[kind])).first()
            if row is None:
                return None
            return await self._store(connection, kind, head, [(_before(kind, row), row.seq, row.seq)])

    async def _store(
        self,
        connection: AsyncConnection,
        kind: str,
        head: int,
        spans: Sequence[tuple[LedgerSegment, int, int]],
    ) -> int:
        """Store segments for these spans of sequence numbers; return their number.

        A span is the account's last segment, the first and the last sequence number.
        """
        here = {
            "ids": [before.owner_id for before, _, _ in spans], "firsts": [first for _, first, _ in spans],
            "lasts": [last for _, _, last in spans],
        }  # fmt: skip
        if not spans:
            return 0
        found = {row.id: row.places for row in await connection.execute(_FOUNDS[kind], here)}
        made = await asyncio.to_thread(_cut_segments, spans, head, found)
        if made:
            await connection.execute(insert_rows(ledger_segment, [_row(one) for one in made]))
        return len(made)

    async def _sign(self) -> LedgerHead | None:
        """Sign a head over the new segments; return None if none is due, or another keeper signs."""
        async with self._engine.begin() as connection:
            if not await connection.scalar(_LOCK):
                return None
            last = (await connection.execute(_LAST_HEAD)).first()
            at = datetime.now(UTC)
            if last is not None and (at - last.created_at).total_seconds() < self._head_s:
                return None
            number, previous = (1, NONE) if last is None else (last.number + 1, LedgerHead(*last).digest())
            rows = await connection.execute(text(f"{_SEGMENTS}:head ORDER BY {_IN_ORDER}"), {"head": number})
            leaves = [LedgerSegment(*row).leaf() for row in rows]
            top = await asyncio.to_thread(root, leaves)
            said = text_of_head(number, rfc3339(at), len(leaves), top, previous)
            head = LedgerHead(number, said, self._key.public, self._key.sign(said.encode()), at)
            here = {"number": number, "text": said, "key": head.key, "signature": head.signature, "at": at}
            await connection.execute(_PUT_HEAD, here)
        self._log("ledger head signed", number=number, sha256=head.digest().hex())
        return head


def _before(kind: str, row: Any) -> LedgerSegment:
    """Return the last signed segment (range of rows) of an account, with number 0 if it has none."""
    if row.number is None:
        return LedgerSegment(kind, row.id, 0, 0, 0, 0, row.up_to, NONE, NONE)
    return LedgerSegment(
        kind, row.id, row.number, 0, row.first_seq, row.segment_last, row.up_to, bytes(row.root),
        bytes(row.previous),
    )  # fmt: skip


def _cut_segments(
    spans: Sequence[tuple[LedgerSegment, int, int]], head: int, found: Mapping[int, bytes]
) -> list[LedgerSegment]:
    return [
        one
        for before, first, last in spans
        for one in cut(before, head, first, last, dict(_PLACE.iter_unpack(found.get(before.owner_id, b""))))
    ]


def _row(segment: LedgerSegment) -> dict[str, Any]:
    return {name: getattr(segment, name) for name in (*_SEGMENT, "marks")}


async def age_of_head(engine: AsyncEngine) -> dict[str, object]:
    """Return, as a metric, the seconds since the ledger was last signed; no metric before the first time."""
    async with engine.connect() as connection:
        age = await connection.scalar(_AGE)
    return {} if age is None else {"ledger_head_age_seconds": age}


# Reads rows, segments and heads for verification and proofs, all as of one moment.

Connection = psycopg.Connection[tuple[Any, ...]]
ROWS_AT_ONCE = 10_000
_STREAM = "SELECT r.owner_id, r.seq, r.leaf, r.seq > coalesce(s.last_seq, 0) AS beyond FROM ({rows}) AS r"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of an archive that contains one month of a ledger."""

    ledger: str
    month: date
    url: str
    file: str
    sha256: str


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """Yield a read-only connection with one snapshot; raise `LedgerProofFailed` if PostgreSQL fails."""
    try:
        with psycopg.connect(plain_url(url), **CONNECT) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield connection
    except psycopg.Error as error:
        raise LedgerProofFailed(f"PostgreSQL: {complaint(error)}") from error


def heads(connection: Connection) -> list[LedgerHead]:
    with connection.cursor(row_factory=class_row(LedgerHead)) as cursor:
        statement = f"SELECT {_HEAD} FROM ledger_head ORDER BY number"
        return cursor.execute(statement.encode()).fetchall()


def segments_by_head(connection: Connection) -> Iterator[LedgerSegment]:
    """Return all signed segments (ranges of rows) without their marks, in the order of the signed trees."""
    statement = f"SELECT {', '.join(_SEGMENT)} FROM ledger_segment ORDER BY head, {_IN_ORDER}"
    return _segments(connection, statement)


def segments_of_head(connection: Connection, number: int) -> list[LedgerSegment]:
    return list(_segments(connection, f"{_SEGMENTS}%s ORDER BY {_IN_ORDER}", (number,)))


def segments_by_place(connection: Connection, kind: str) -> Iterator[LedgerSegment]:
    """Return the signed segments (ranges of rows) of a kind of account, in the order of accounts and rows."""
    statement = f"SELECT {', '.join(_SEGMENT)}, marks FROM ledger_segment WHERE kind = %s"
    return _segments(connection, f"{statement} ORDER BY owner_id, first_seq, number", (kind,))


def segment_at(connection: Connection, kind: str, owner_id: int, seq: int) -> LedgerSegment | None:
    """Return the latest signed segment (range of rows) with a sequence number of an account, or None."""
    statement = f"SELECT {', '.join(_SEGMENT)}, marks FROM ledger_segment WHERE (kind, owner_id) = (%s, %s)"
    statement += " AND %s BETWEEN first_seq AND last_seq ORDER BY number DESC LIMIT 1"
    segments = list(_segments(connection, statement, (kind, owner_id, seq)))
    return segments[0] if segments else None


def _segments(
    connection: Connection, statement: str, values: tuple[object, ...] = ()
) -> Iterator[LedgerSegment]:
    with connection.cursor("ledger_segments", row_factory=class_row(LedgerSegment)) as cursor:
        cursor.itersize = ROWS_AT_ONCE
        yield from cursor.execute(statement.encode(), values)


def read_rows(connection: Connection, kind: str) -> Iterator[ProvenRow]:
    """Yield all rows of a kind of account, in order."""
    statement = _STREAM.format(rows=_rows(kind, "true"))
    statement += f" LEFT JOIN ({_STANDS[kind]}) AS s ON s.id = r.owner_id ORDER BY 1, 2"
    with connection.cursor("ledger_rows") as cursor:
        cursor.itersize = ROWS_AT_ONCE
        for owner_id, seq, leaf_, is_beyond in cursor.execute(statement.encode()):
            yield ProvenRow(owner_id, seq, leaf_, beyond=is_beyond)


def leaves_between(connection: Connection, segment: LedgerSegment) -> Iterator[tuple[int, bytes]]:
    statement = _rows(segment.kind, "r.{owner} = %(owner)s AND r.seq BETWEEN %(first)s AND %(last)s")
    here = {"owner": segment.owner_id, "first": segment.first_seq, "last": segment.last_seq}
    for _, seq, leaf_ in connection.execute(statement.encode(), here):
        yield seq, leaf_


def texts_of_request(connection: Connection, request_id: str) -> dict[tuple[str, int, int], str]:
    """Return the hashed texts of a request's rows by kind of account, owner and sequence number."""
    texts = {}
    for kind, ledgers in LEDGERS.items():
        for ledger in ledgers:
            if "request_id" in ledger.columns:
                statement = (
                    f"SELECT r.{ledger.owner}, r.seq, {text_in_sql(ledger, 'r')} FROM {ledger.name} AS r"
                    " WHERE request_id = %s::text::uuid ORDER BY seq"
                )
                for owner_id, seq, hashed in connection.execute(statement.encode(), (request_id,)).fetchall():
                    texts[kind, owner_id, seq] = hashed
    return texts


def archived_files(connection: Connection) -> list[ArchivedFile]:
    with connection.cursor(row_factory=class_row(ArchivedFile)) as cursor:
        statement = "SELECT ledger, month, url, file, sha256 FROM archived_month ORDER BY month, ledger"
        return cursor.execute(statement.encode()).fetchall()
