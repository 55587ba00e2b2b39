"""Who may do what in PostgreSQL, as `grants.sql` says: each migrate grants and revokes what differs.

Writer and reader are roles named after the database, since a server shares its roles among databases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from persistence.complaint import origin

WRITER, READER = "writer", "reader"
EVERYBODY = ""
# A longer name would be cut off by PostgreSQL, and be that of another database's role too.
NAME_BYTES_MAX = 63
# What keeps a role from being made: it is there since a moment ago, or this user may not.
DUPLICATE, UNIQUE, FORBIDDEN = "42710", "23505", "42501"


class Grant(NamedTuple):
    """A right of a role, or of everybody, on a table or view, a function, or the schema."""

    role: str
    right: str
    kind: str
    name: str


def _read(said: str) -> Iterator[Grant]:
    """The rights that statements of `grants.sql` give."""
    for rights, kind, names, roles in _STATEMENT.findall(said):
        for name, right, role in product(_NAMES.split(names.strip()), rights.split(", "), roles.split(", ")):
            object_ = "" if kind == "SCHEMA" else name
            yield Grant(role.removeprefix(":"), right, kind or "TABLE", object_)


_STATEMENT = re.compile(
    r"^GRANT ([A-Z, ]+) ON\s+(?:(SCHEMA|FUNCTION)\s+)?([^;]+?)\s+TO ([^;]+);", re.MULTILINE
)
# Between names, not within the arguments of a function.
_NAMES = re.compile(r",\s+(?![^(]*\))")
# Everything writer and reader may do.
WANTED = frozenset(_read((Path(__file__).parent / "grants.sql").read_text(encoding="utf-8")))
_FOUND = text("""
SELECT coalesce(r.rolname, ''), a.privilege_type, o.kind, o.name FROM (
    SELECT 'TABLE' AS kind, relname::text AS name, relacl AS acl FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')
    UNION ALL
    SELECT 'FUNCTION', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
     WHERE pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'SCHEMA', '', nspacl FROM pg_namespace WHERE oid = current_schema()::regnamespace) AS o,
  aclexplode(o.acl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee""")
_THERE = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
_AS_IT_STANDS = {"no_parameters": True}
_HERE = text("SELECT current_database(), quote_ident(current_schema())")


def roles_of(database: str) -> dict[str, str]:
    """The names of writer and reader of a database."""
    return {role: f"{database}_{role}" for role in (WRITER, READER)}


def writes(wanted: Iterable[Grant] = WANTED) -> dict[str, frozenset[str]]:
    """What the writer may do with each table and view, besides reading it."""
    found: dict[str, frozenset[str]] = {}
    for grant in wanted:
        if (grant.role, grant.kind) == (WRITER, "TABLE"):
            found[grant.name] = found.get(grant.name, frozenset()) | {grant.right} - {"SELECT"}
    return found


def apply(connection: Connection, wanted: frozenset[Grant] = WANTED) -> str:
    """Make the roles and give them what they may do; what an administrator has to do first, else empty.

    Only what differs is granted or revoked: a repeated migrate writes nothing, and needs no right to. Runs
    under the locks of the schema and of the partitions.
    """
    database, schema = connection.execute(_HERE).one()
    names = roles_of(database)
    if any(len(name.encode()) > NAME_BYTES_MAX for name in names.values()):
        return (
            f"the database's name is too long to have roles of its own: {NAME_BYTES_MAX} bytes with _{WRITER}"
        )
    missing = [_quoted(name) for name in names.values() if not _made(connection, name)]
    if missing:
        todo = " ".join(f"CREATE ROLE {name};" for name in missing)
        return f"there are no roles for a keeper that owns nothing; an administrator makes them: {todo}"
    quoted = {EVERYBODY: "PUBLIC"} | {role: _quoted(name) for role, name in names.items()}
    for statement in _statements(_found(connection, names, wanted), wanted, quoted, schema):
        connection.exec_driver_sql(statement, execution_options=_AS_IT_STANDS)
    return ""


def _made(connection: Connection, name: str) -> bool:
    """Whether a role is there, now if not before; another database's migrate may be as far at this moment."""
    there = connection.execute(_THERE, {"name": name}).scalar_one()
    if not there:
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"CREATE ROLE {_quoted(name)}", execution_options=_AS_IT_STANDS)
        except DBAPIError as error:
            found = origin(error)
            if found is None or found.sqlstate not in {DUPLICATE, UNIQUE, FORBIDDEN}:
                raise
            return found.sqlstate != FORBIDDEN
    return True


def _found(connection: Connection, names: dict[str, str], wanted: frozenset[Grant]) -> set[Grant]:
    """What the roles may do now; of everybody's rights only those to functions that act as their owner."""
    roles = {name: role for role, name in names.items()}
    ours = {(grant.kind, grant.name) for grant in wanted}
    found = set()
    for grantee, right, kind, name in connection.execute(_FOUND):
        role = EVERYBODY if (grantee, kind) == ("", "FUNCTION") else roles.get(grantee)
        if role is not None and (kind, name) in ours:
            found.add(Grant(role, right, kind, name))
    return found


def _statements(
    found: set[Grant], wanted: frozenset[Grant], quoted: dict[str, str], schema: str
) -> Iterator[str]:
    """What makes of the rights that are found those that are wanted, many objects at once."""
    for verb, to, grants in (("REVOKE", "FROM", found - wanted), ("GRANT", "TO", wanted - found)):
        for (role, right, kind), some in groupby(sorted(grants), lambda grant: grant[:3]):
            objects = [f"{schema}.{grant.name}" if grant.name else schema for grant in some]
            yield f"{verb} {right} ON {kind} {', '.join(objects)} {to} {quoted[role]}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
