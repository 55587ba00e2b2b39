"""Which backups of a database were taken and proven, noted in it; and a database to prove one in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from secrets import token_hex
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from gateway.errors import BackupFailed
from persistence.complaint import complaint
from persistence.engine import CONNECT_TIMEOUT_S, plain_url

_NOTE = "INSERT INTO backup_run (file, taken_at, bytes, sha256) VALUES (%s, %s, %s, %s) RETURNING id"
_PROOF = "UPDATE backup_run SET proved_at = now() WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup as it was taken."""

    file: str
    taken_at: datetime
    bytes: int
    sha256: str


def note(url: str, taken: Taken) -> int:
    """Note a backup; the number of the note, 0 in a database whose schema has no place for it yet."""
    with _connected(url) as connection:
        if connection.execute("SELECT to_regclass('backup_run')").fetchone() == (None,):
            return 0
        row = connection.execute(_NOTE, astuple(taken)).fetchone()
        assert row is not None
        return int(str(row[0]))


def note_proof(url: str, number: int) -> None:
    """Note that a backup was restored and is right."""
    with _connected(url) as connection:
        connection.execute(_PROOF, (number,))


@contextmanager
def database_beside(url: str) -> Iterator[str]:
    """The URL of an empty database on the same server, which is there for as long as it is lent."""
    name = f"tollkeeper_proof_{token_hex(8)}"
    with _connected(url, autocommit=True) as connection:
        try:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise BackupFailed(
                "a database to prove the backup in cannot be made: ALTER ROLE … CREATEDB for its owner"
            ) from error
        try:
            yield urlsplit(url)._replace(path=f"/{quote(name)}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _connected(url: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection; what PostgreSQL says is told by its first line."""
    try:
        with psycopg.connect(
            plain_url(url), connect_timeout=CONNECT_TIMEOUT_S, autocommit=autocommit
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL: {complaint(error)}") from error
