"""Which backups of a database were taken and proven, noted in it; and a database to prove one in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from secrets import token_hex

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from gateway.errors import BackupFailed, StartError
from persistence.complaint import complaint
from persistence.engine import CONNECT_TIMEOUT_S, dialect_url, plain_url
from persistence.schema import version as schema

_NOTE = "INSERT INTO backup_run (file, taken_at, bytes, sha256) VALUES (%s, %s, %s, %s) RETURNING id"
_PROOF = "UPDATE backup_run SET proved_at = now() WHERE id = %s"
_PROVEN = """
SELECT file FROM backup_run WHERE proved_at IS NOT NULL AND file = ANY (%s)
 ORDER BY taken_at DESC LIMIT 1"""
_MAY_CREATE = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
_LEFT = """
SELECT datname FROM pg_database AS d WHERE starts_with(datname, %s)
   AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.datname = d.datname)"""
_NO_CREATEDB = "a database to prove the backup in cannot be made: ALTER ROLE … CREATEDB for its owner"
# Advisory lock class 7811: a proof beside a database, one at a time.
_LOCK = "SELECT pg_try_advisory_lock(7811, 1)"
_OID = "SELECT oid FROM pg_database WHERE datname = current_database()"


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
        if not _notes(connection):
            return 0
        row = connection.execute(_NOTE, astuple(taken)).fetchone()
        assert row is not None
        return int(str(row[0]))


def note_proof(url: str, number: int) -> None:
    """Note that a backup was restored and is right."""
    with _connected(url) as connection:
        connection.execute(_PROOF, (number,))


def last_proven(url: str, files: list[str]) -> str:
    """Of some backups the latest that was proven, by its name; empty for none."""
    with _connected(url) as connection:
        if not _notes(connection):
            return ""
        row = connection.execute(_PROVEN, (files,)).fetchone()
    return str(row[0]) if row is not None else ""


def refuse_unless_provable(url: str) -> None:
    """`BackupFailed` where no backup of this database could be proven: nothing needs to be written then."""
    with _connected(url) as connection:
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
            version, runs_from = connection.execute(schema.STATUS).fetchone() or (None, "")
            try:
                schema.refuse_other(schema.SchemaStatus(str(version) if version else None, str(runs_from)))
            except StartError as error:
                raise BackupFailed(f"no backup of it can be proven: {error}") from error
        if connection.execute(_MAY_CREATE).fetchone() != (True,):
            raise BackupFailed(_NO_CREATEDB)


@contextmanager
def database_beside(url: str) -> Iterator[str]:
    """The URL of an empty database on the same server, which is there for as long as it is lent.

    One at a time is lent beside a database. What a process that was killed left goes first.
    """
    with _connected(url, autocommit=True) as connection:
        if connection.execute(_LOCK).fetchone() != (True,):
            raise BackupFailed("another backup of this database is being proven")
        row = connection.execute(_OID).fetchone()
        assert row is not None
        prefix = f"tollkeeper_proof_{row[0]}_"
        _drop_left(connection, prefix)
        name = f"{prefix}{token_hex(8)}"
        created = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        try:
            try:
                connection.execute(created)
            except psycopg.errors.InsufficientPrivilege as error:
                raise BackupFailed(_NO_CREATEDB) from error
            yield _in(url, name)
        finally:
            # The other connection did nothing for as long as it took: something between may have cut it.
            with _connected(url, autocommit=True) as fresh:
                fresh.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _notes(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether a database's schema has a place for notes."""
    return connection.execute("SELECT to_regclass('backup_run')").fetchone() != (None,)


def _drop_left(connection: psycopg.Connection[tuple[object, ...]], prefix: str) -> None:
    """Drop databases that were lent and not given back, but for one that is in use or another role's."""
    for (name,) in connection.execute(_LEFT, (prefix,)).fetchall():
        with suppress(psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(str(name))))


def _in(url: str, name: str) -> str:
    """The address of another database of a server, however its own one is named in it."""
    address = make_url(dialect_url(url)).difference_update_query(["dbname"]).set(database=name)
    return plain_url(address.render_as_string(hide_password=False))


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
