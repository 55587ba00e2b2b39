"""The facts of a database that a backup stores, and the checks that a restored one must pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from secrets import token_hex

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from gateway.errors import BackupFailed, StartError
from persistence.address import CONNECT_TIMEOUT_S, dialect_url, plain_url
from persistence.engine import ASK_OWNER, Engine, create
from persistence.error_mapping import complaint
from persistence.ledger import checkpoints
from persistence.poolers import shares_sessions
from persistence.queries import query
from persistence.schema import database as schema
from persistence.schema import standing
from persistence.tables import metadata

TABLES = tuple(table.name for table in metadata.sorted_tables)
# Tables whose ids are named outside of PostgreSQL: in the counters, in credentials, by people.
NUMBERED = tuple(
    table.name for table in metadata.sorted_tables if "id" in table.c and table.c["id"].identity is not None
)

# Environment variables of libpq, so that no command line shows a password.
LIBPQ = {
    "host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
}  # fmt: skip

_OTHERS = """
SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%' LIMIT 1"""
_AHEAD = """
SELECT setval(s::regclass, nextval(s::regclass) + %(ahead)s)
  FROM pg_get_serial_sequence(%(table)s, 'id') AS s"""


@dataclass(frozen=True, slots=True)
class Moment:
    """A database at one moment: `snapshot` is its name for pg_dump, `rows` the number of rows by table."""

    snapshot: str
    schema_version: str
    server_version: str
    rows: Mapping[str, int]


@contextmanager
def moment(url: str) -> Iterator[Moment]:
    """Yield one consistent moment of a database, whose snapshot stays valid while the database is dumped.

    Raise `BackupFailed` if the database has no schema of Tollkeeper.
    """
    _refuse_pooler(url)
    with _connected(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        result = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
        if not result or not result[0]:
            raise BackupFailed("this database has no schema of Tollkeeper: there is nothing to back up")
        snapshot, version, server = _read_row(
            connection,
            "SELECT pg_export_snapshot(), (SELECT version_num FROM alembic_version),"
            " current_setting('server_version')",
        )
        yield Moment(str(snapshot), str(version), str(server), _rows(connection))


def environment(url: str) -> dict[str, str]:
    """Return the environment variables with which libpq's programs connect to this database."""
    address = conninfo_to_dict(plain_url(url))
    return {LIBPQ[name]: str(value) for name, value in address.items() if name in LIBPQ}


def refuse_unless_empty(url: str) -> str:
    """Return the server's version; raise `BackupFailed` if the database has any relation."""
    _refuse_pooler(url)
    with _connected(url) as connection:
        result = connection.execute(_OTHERS).fetchone()
        if result is not None:
            raise BackupFailed(f"the database is not empty ({result[0]} is there): restore into an empty one")
        return str(_read_row(connection, "SELECT current_setting('server_version')")[0])


def compare(url: str, rows: Mapping[str, int]) -> None:
    """Raise `BackupFailed` unless the restored database has these numbers of rows, by table."""
    with _connected(url) as connection:
        found = _rows(connection)
    wrong = [
        f"{name}: {found.get(name)} of {count}" for name, count in rows.items() if found.get(name) != count
    ]
    if wrong:
        raise BackupFailed(f"not every row is there: {', '.join(wrong)}")


def move_ids_ahead(url: str, ahead: int) -> None:
    """Advance the id sequences of tables by `ahead`, after a restore.

    Ids that were assigned after the backup are then not used twice: counters and credentials may still refer
    to them.
    """
    tables = NUMBERED if ahead else ()
    with _connected(url) as connection:
        for table in tables:
            connection.execute(_AHEAD, {"table": table, "ahead": ahead})


async def contradictions(url: str) -> list[str]:
    """Return the violated invariants between the rows of a database as messages; none if all hold."""
    engine = create(url)
    try:
        async with engine.connect() as connection:
            violations = await checkpoints.violations(connection)
    finally:
        await engine.dispose()
    return [f"{violation.invariant} {violation.account}: {violation.detail}" for violation in violations]


def _rows(connection: psycopg.Connection[tuple[object, ...]]) -> dict[str, int]:
    counted = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {}, count(*) FROM {}").format(sql.Literal(name), sql.Identifier(name))
        for name in TABLES
    )
    return {str(name): int(str(count)) for name, count in connection.execute(counted)}


def _read_row(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> tuple[object, ...]:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row


def _refuse_pooler(url: str) -> None:
    """Raise `BackupFailed` if a pooler at `url` shares sessions: pg_dump and pg_restore need their own."""
    try:
        shared = shares_sessions(url)
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL: {complaint(error)}") from error
    if shared:
        raise BackupFailed(ASK_OWNER)


@contextmanager
def _connected(url: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Yield a connection with one transaction, or with `autocommit` one for each statement.

    Raise `BackupFailed` with the first line of PostgreSQL's error.
    """
    try:
        with psycopg.connect(
            plain_url(url), connect_timeout=CONNECT_TIMEOUT_S, autocommit=autocommit
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL: {complaint(error)}") from error


# Backups of a database that were taken and proven, stored in the database itself; and a database for a proof.

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
class BackupRow:
    file: str
    taken_at: datetime
    bytes: int
    sha256: str


def note_backup(url: str, taken: BackupRow) -> int:
    """Store a backup, `taken`, and return its id; return 0 if the schema has no table for it yet."""
    with _connected(url) as connection:
        if not _notes(connection):
            return 0
        row = connection.execute(_NOTE, astuple(taken)).fetchone()
        assert row is not None
        return int(str(row[0]))


def note_proof(url: str, number: int) -> None:
    with _connected(url) as connection:
        connection.execute(_PROOF, (number,))


def last_proven(url: str, files: list[str]) -> str:
    """Return the latest of the backups in `files` that was proven by a restore; "" if none was."""
    with _connected(url) as connection:
        if not _notes(connection):
            return ""
        row = connection.execute(_PROVEN, (files,)).fetchone()
    return str(row[0]) if row is not None else ""


def refuse_unless_provable(url: str) -> None:
    """Raise `BackupFailed` if a backup of this database could not be proven by a test restore.

    This is checked before a backup is written.
    """
    with _connected(url) as connection:
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
            version, runs_from = connection.execute(standing.STATUS).fetchone() or (None, "")
            try:
                schema.refuse_other(standing.SchemaStatus(str(version) if version else None, str(runs_from)))
            except StartError as error:
                raise BackupFailed(f"no backup of it can be proven: {error}") from error
        if connection.execute(_MAY_CREATE).fetchone() != (True,):
            raise BackupFailed(_NO_CREATEDB)


@contextmanager
def database_beside(url: str) -> Iterator[str]:
    """Create an empty database on the server of `url` and yield its URL; drop the database at the end.

    Databases that killed processes left are dropped first. Raise `BackupFailed` if another process has such a
    database at the moment.
    """
    with _connected(url, autocommit=True) as connection:
        if connection.execute(_LOCK).fetchone() != (True,):
            raise BackupFailed("another backup of this database is being proven")
        row = connection.execute(_OID).fetchone()
        assert row is not None
        prefix = f"tollkeeper_proof_{row[0]}_"
        _drop_abandoned(connection, prefix)
        name = f"{prefix}{token_hex(8)}"
        created = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        try:
            try:
                connection.execute(created)
            except psycopg.errors.InsufficientPrivilege as error:
                raise BackupFailed(_NO_CREATEDB) from error
            yield _database_url(url, name)
        finally:
            # The other connection did nothing for as long as it took: something between may have cut it.
            with _connected(url, autocommit=True) as fresh:
                fresh.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _notes(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    return connection.execute("SELECT to_regclass('backup_run')").fetchone() != (None,)


def _drop_abandoned(connection: psycopg.Connection[tuple[object, ...]], prefix: str) -> None:
    """Drop databases of this prefix that killed processes left, unless in use or owned by another role."""
    for (name,) in connection.execute(_LEFT, (prefix,)).fetchall():
        with suppress(psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(str(name))))


def _database_url(url: str, name: str) -> str:
    """Return the address of the database `name` on the server of `url`."""
    address = make_url(dialect_url(url)).difference_update_query(["dbname"]).set(database=name)
    return plain_url(address.render_as_string(hide_password=False))


# Metrics of backups.

_BACKED_UP = query("backup.backed_up", "Select when backups were made and proven", """
SELECT extract(epoch FROM max(taken_at)) AS taken, extract(epoch FROM max(proved_at)) AS proved,
       extract(epoch FROM now() - (SELECT min(created_at) FROM organization)) AS alone
  FROM backup_run""")  # fmt: skip


async def backed_up(engine: Engine) -> dict[str, object]:
    """Return metrics: the Unix times of the last backup and of the last proven one, if they exist.

    `backup_missing_seconds` is the age of the oldest organization if no backup exists, else 0.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_BACKED_UP)).one()
    found = {"backup_timestamp_seconds": row.taken, "backup_proof_timestamp_seconds": row.proved}
    alone_s = 0.0 if row.taken is not None else float(row.alone or 0)
    there = {name: float(value) for name, value in found.items() if value is not None}
    return {"backup_missing_seconds": alone_s, **there}
