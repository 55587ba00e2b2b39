"""The version of a schema, its grants, and the writer's login, by psycopg alone.

A start that finds everything up to date loads neither SQLAlchemy nor the migrations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psycopg
from psycopg import sql

from persistence.address import CONNECT, plain_url
from persistence.schema import completion

HERE = Path(__file__).parent
# The versions this program knows, oldest first: it runs on the newest.
VERSIONS = HERE / "migrations" / "versions"
MIGRATIONS = {path.name[1:5]: path for path in VERSIONS.glob("v????_*.py")}
KNOWN = tuple(sorted(MIGRATIONS))
NEEDED = KNOWN[-1]
# The program version that introduced a schema, in the text of its migration.
_VERSION = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
# Baselines of earlier programs, and the program version that migrates all older schemas to each.
_BASELINES = {"0097": "1.0.0rc1"}
_RUNS_FROM = re.compile(r'^runs_from = "([0-9]{4})"$', re.MULTILINE)

# A comment has the lowest schema version that a program must know: backups keep it, and every user can read
# it.
THERE = "SELECT to_regclass('alembic_version') IS NOT NULL"
STATUS = """
SELECT version_num,
       coalesce(substring(obj_description('alembic_version'::regclass) FROM '^runs from ([0-9]{4})$'), '')
  FROM alembic_version"""
ENSURE_PARTITIONS = "SELECT ensure_partitions(now(), %(months_ahead)s, %(by)s)"
MONTHS_AHEAD = 3
# The name of the database for which rights were granted, in a comment that backups keep: under another name,
# after a restore or a rename, the roles have other names.
RIGHTS_OF = "SELECT coalesce(col_description('alembic_version'::regclass, 1), '')"
# Whether a database can be used at all: queried before its schema.
SERVER = """
SELECT quote_ident(current_database()), current_setting('server_encoding'), pg_is_in_recovery(),
       current_setting('transaction_read_only') = 'on', quote_ident(current_user)"""
ENCODING = "UTF8"
# Advisory lock classes of the project: 7800 the flusher's partitions, 7801 the schema,
# 7802 allocation, 7803 invoices, 7804 the count of losses, 7805 prices,
# 7806 budgets, 7807 checkpoints, 7808 invoices on schedule, 7809 configuration,
# 7810 archiving, 7811 a proof of a backup, 7812 what an organization makes,
# 7813 a comparison of everybody, 7814 addresses that are asked,
# 7815 heads of the ledger, 7816 moves of ids, 7817 amendments of prices.
SCHEMA_LOCK = (7801, 1)


class SchemaStatus(NamedTuple):
    """The version of a database's schema (None: not migrated), and the programs that may run on it.

    `runs_from` is the lowest schema version that such a program must know, or "" if the schema does not state
    it. `clock` is the server's Unix time. `unusable` is why the database cannot be used at any version, or
    "".
    """

    version: str | None
    runs_from: str = ""
    clock: float | None = None
    unusable: str = ""

    def is_newer(self, known: Sequence[str] = KNOWN) -> bool:
        return self.version is not None and self.version not in known and self.version > known[0]


# The grants in PostgreSQL, from `grants.sql`: each migrate grants and revokes only differences.
#
# Writer and reader are roles named after the database, since a server shares its roles among databases.

WRITER, READER = "writer", "reader"
EVERYBODY = ""


class RoleGrant(NamedTuple):
    """A right of a role, or of everybody, on a table or view, a function, or the schema."""

    role: str
    right: str
    kind: str
    name: str


def _read(text: str) -> Iterator[RoleGrant]:
    for rights, kind, names, roles in _STATEMENT.findall(text):
        for name, right, role in product(_NAMES.split(names.strip()), rights.split(", "), roles.split(", ")):
            object_ = "" if kind == "SCHEMA" else name
            yield RoleGrant(role.removeprefix(":"), right, kind or "TABLE", object_)


_STATEMENT = re.compile(
    r"^GRANT ([A-Z, ]+) ON\s+(?:(SCHEMA|FUNCTION)\s+)?([^;]+?)\s+TO ([^;]+);", re.MULTILINE
)
# Commas between names, not within the arguments of a function.
_NAMES = re.compile(r",\s+(?![^(]*\))")
# Everything writer and reader may do.
WANTED = frozenset(_read((HERE / "grants.sql").read_text(encoding="utf-8")))
FOUND = """
SELECT coalesce(r.rolname, ''), a.privilege_type, o.kind, o.name FROM (
    SELECT 'TABLE' AS kind, relname::text AS name, relacl AS acl FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')
    UNION ALL
    SELECT 'FUNCTION', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
     WHERE pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'SCHEMA', '', nspacl FROM pg_namespace WHERE oid = current_schema()::regnamespace) AS o,
  aclexplode(o.acl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee"""


def why_unusable(database: str, encoding: str, follows: bool, reads_only: bool, user: str) -> str:
    """Return why a server cannot have our schema, with the remedy; "" if it can.

    The arguments are the columns of the query `SERVER`.
    """
    if encoding != ENCODING:
        made = f"CREATE DATABASE {database} ENCODING '{ENCODING}' TEMPLATE template0"
        return f"database {database} has encoding {encoding}, {ENCODING} is needed: make it again by {made}"
    if follows:
        return (
            "the server is a standby, which takes no writes: name the primary in TOLLKEEPER_DATABASE_URL,"
            " of several hosts by ?target_session_attrs=read-write, or run SELECT pg_promote() there"
        )
    if reads_only:
        mended = f"ALTER ROLE {user} SET default_transaction_read_only = off"
        return (
            "the server lets this user read only (default_transaction_read_only is on): set it off where that"
            f" is set, by {mended}, ALTER DATABASE {database} RESET default_transaction_read_only,"
            " or in postgresql.conf"
        )
    return ""


def roles_of(database: str) -> dict[str, str]:
    return {role: f"{database}_{role}" for role in (WRITER, READER)}


def rights_note(database: str) -> str:
    return f"rights of {database}"


def writes(wanted: Iterable[RoleGrant] = WANTED) -> dict[str, frozenset[str]]:
    rights: dict[str, frozenset[str]] = {}
    for grant in wanted:
        if (grant.role, grant.kind) == (WRITER, "TABLE"):
            rights[grant.name] = rights.get(grant.name, frozenset()) | {grant.right} - {"SELECT"}
    return rights


def found_grants(
    rows: Iterable[Iterable[str]], database: str, wanted: frozenset[RoleGrant] = WANTED
) -> set[RoleGrant]:
    """Return the rights that the roles of a database have, from the rows of the query `FOUND`.

    Rights of all roles together are included only for functions that run as their owner.
    """
    roles = {name: role for role, name in roles_of(database).items()}
    ours = {(grant.kind, grant.name) for grant in wanted}
    grants = set()
    for grantee, right, kind, name in rows:
        role = EVERYBODY if (grantee, kind) == ("", "FUNCTION") else roles.get(grantee)
        if role is not None and (kind, name) in ours:
            grants.add(RoleGrant(role, right, kind, name))
    return grants


def version_of(schema: str) -> str:
    """Return the program version that introduced a schema; "" if its migration does not state it."""
    match = _VERSION.search(MIGRATIONS[schema].read_text(encoding="utf-8"))
    return match[1] if match else ""


def versions_between(schema: str) -> list[str]:
    """Return the program versions whose `migrate`, in order, brings an older schema to the baseline."""
    baselines = _BASELINES | {KNOWN[0]: version_of(KNOWN[0])}
    return [version for baseline, version in baselines.items() if schema < baseline]


def runs_from(versions: Path = VERSIONS) -> str:
    """Return the lowest schema version that a program must know to run on the newest of the schema `versions`.

    Each migration states it as `runs_from`, or requires its own version; the latest of them counts. It is read from
    their text, without importing them.
    """
    texts = {path.name[1:5]: path.read_text(encoding="utf-8") for path in versions.glob("v????_*.py")}
    return max(match[1] if (match := _RUNS_FROM.search(text)) else own for own, text in texts.items())


def is_current(url: str) -> bool:
    """Return whether a database is as `upgrade` of `migrate.py` would leave it, partitions included.

    False if anything differs or the database does not answer: `upgrade` then reports the reason.
    """
    try:
        with psycopg.connect(plain_url(url), **CONNECT) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", SCHEMA_LOCK)
            there = connection.execute(f"SELECT current_database(), ({THERE})").fetchone()
            server = connection.execute(SERVER).fetchone()
            if there is None or not there[1] or server is None or why_unusable(*server):
                return False
            versions = connection.execute(STATUS).fetchall()
            grants = found_grants(connection.execute(FOUND), str(there[0]))
            noted = connection.execute(RIGHTS_OF).fetchone() == (rights_note(str(there[0])),)
            if versions != [(NEEDED, runs_from())] or grants != WANTED or not noted:
                return False
            if connection.execute(completion.STEPS, completion.INDEXES).fetchone():
                return False
            connection.execute(ENSURE_PARTITIONS, {"months_ahead": MONTHS_AHEAD, "by": ""})
            return True
    except psycopg.Error:
        return False


def admit_writer(url: str, password: str) -> str:
    """Set the password of the writer's role in the database at `url` and let it log in; return its URL."""
    with psycopg.connect(plain_url(url), **CONNECT) as connection:
        user = writer_of(connection)
        # Hashed here, so that the server, which may log the statement, never gets the password.
        digest = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256")
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), digest.decode())
        connection.execute(statement)
    place = re.sub(r"^postgresql://([^/?#]*@)?", "", plain_url(url))
    return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{place}"


def writer_of(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """Return the name of the writer's role, from the server's name of the database: a pooler's may differ."""
    row = connection.execute("SELECT current_database()").fetchone()
    assert row is not None
    return roles_of(str(row[0]))[WRITER]
