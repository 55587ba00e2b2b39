"""What a backup has to know of a database, and what a restored one has to show before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from gateway.errors import BackupFailed
from persistence.complaint import complaint
from persistence.engine import CONNECT_TIMEOUT_S, create, plain_url
from persistence.ledger import invariants
from persistence.pooler import ASK_OWNER, shares_sessions
from persistence.tables import metadata

TABLES = tuple(table.name for table in metadata.sorted_tables)
# Tables whose ids are named outside of PostgreSQL: in the counters, in credentials, by people.
NUMBERED = tuple(
    table.name for table in metadata.sorted_tables if "id" in table.c and table.c["id"].identity is not None
)

# Environment names of libpq, so that no password stands in a command line.
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
    """A database as of one moment: `snapshot` names it to pg_dump, `rows` counts by table."""

    snapshot: str
    schema_version: str
    server_version: str
    rows: Mapping[str, int]


@contextmanager
def moment(url: str) -> Iterator[Moment]:
    """Hold one moment of a database for as long as it is dumped."""
    _refuse_pooler(url)
    with _connected(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
        if not found or not found[0]:
            raise BackupFailed("this database has no schema of Tollkeeper: there is nothing to back up")
        snapshot, version, server = _one(
            connection,
            "SELECT pg_export_snapshot(), (SELECT version_num FROM alembic_version),"
            " current_setting('server_version')",
        )
        yield Moment(str(snapshot), str(version), str(server), _rows(connection))


def environment(url: str) -> dict[str, str]:
    """A database's address as PostgreSQL's own programs read it from their environment."""
    address = conninfo_to_dict(plain_url(url))
    return {LIBPQ[name]: str(value) for name, value in address.items() if name in LIBPQ}


def refuse_unless_empty(url: str) -> str:
    """`BackupFailed` where anything is in a database: nothing is overwritten. Else its server's version."""
    _refuse_pooler(url)
    with _connected(url) as connection:
        found = connection.execute(_OTHERS).fetchone()
        if found is not None:
            raise BackupFailed(f"the database is not empty ({found[0]} is there): restore into an empty one")
        return str(_one(connection, "SELECT current_setting('server_version')")[0])


def compare(url: str, rows: Mapping[str, int]) -> None:
    """`BackupFailed` where a restored database does not hold as many rows as were backed up."""
    with _connected(url) as connection:
        found = _rows(connection)
    wrong = [
        f"{name}: {found.get(name)} of {count}" for name, count in rows.items() if found.get(name) != count
    ]
    if wrong:
        raise BackupFailed(f"not every row is there: {', '.join(wrong)}")


def move_ids_ahead(url: str, ahead: int) -> None:
    """Give out no id again that was given out after the backup: counters and credentials may know it."""
    with _connected(url) as connection:
        for table in NUMBERED if ahead else ():
            connection.execute(_AHEAD, {"table": table, "ahead": ahead})


async def contradictions(url: str) -> list[str]:
    """What the rows of a database say against each other; empty is right."""
    engine = create(url)
    try:
        async with engine.connect() as connection:
            found = await invariants.violations(connection)
    finally:
        await engine.dispose()
    return [f"{one.invariant} {one.account}: {one.detail}" for one in found]


def _rows(connection: psycopg.Connection[tuple[object, ...]]) -> dict[str, int]:
    counted = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {}, count(*) FROM {}").format(sql.Literal(name), sql.Identifier(name))
        for name in TABLES
    )
    return {str(name): int(str(count)) for name, count in connection.execute(counted)}


def _one(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> tuple[object, ...]:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row


def _refuse_pooler(url: str) -> None:
    """`BackupFailed` where pg_dump and pg_restore would have no session of their own."""
    try:
        shared = shares_sessions(url)
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL: {complaint(error)}") from error
    if shared:
        raise BackupFailed(ASK_OWNER)


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """One transaction; what PostgreSQL says is told by its first line."""
    try:
        with psycopg.connect(plain_url(url), connect_timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL: {complaint(error)}") from error
