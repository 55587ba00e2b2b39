"""Users of a database of ours: what one may do besides a keeper's work, and a login for the writer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import SchemaUnavailable, StartError
from persistence.complaint import complaint
from persistence.engine import CONNECT, plain_url
from persistence.schema.grants import WANTED, WRITER, roles_of, writes
from persistence.schema.version import refuse_other, status

_WHO = """
SELECT current_user, r.rolsuper,
       EXISTS (SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                  AND relname = ANY(%(tables)s) AND pg_has_role(relowner, 'USAGE')),
       has_schema_privilege(current_schema(), 'CREATE'),
       EXISTS (SELECT FROM unnest(%(kept)s::text[]) AS t
                WHERE has_table_privilege(t, 'UPDATE, DELETE, TRUNCATE')),
       EXISTS (SELECT FROM pg_roles WHERE rolname = ANY(%(outside)s) AND pg_has_role(oid, 'USAGE')),
       (SELECT pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = %(writer)s)
  FROM pg_roles AS r WHERE r.rolname = current_user"""
_LACKING = """
SELECT w.verb || ' on ' || w.name FROM unnest(%(rights)s::text[], %(names)s::text[]) AS w (verb, name)
 WHERE NOT has_table_privilege(w.name, w.verb)
UNION ALL
SELECT 'EXECUTE on ' || split_part(f, '(', 1) FROM unnest(%(functions)s::text[]) AS f
 WHERE NOT has_function_privilege(f, 'EXECUTE')"""
# Predefined roles that lead out of the database.
OUTSIDE = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")


@dataclass(frozen=True, slots=True)
class Privileges:
    """What a user is in a database: `beyond` is what no keeper has to be able to do, `lacking` what one has.

    `writer` is the role to be in, `has_writer` whether it is there, `is_writer` whether the user is in it.
    """

    user: str
    writer: str
    owns: bool
    has_writer: bool
    is_writer: bool
    beyond: tuple[str, ...]
    lacking: tuple[str, ...]

    def complaint(self) -> str:
        """What is lacking and what gives it, on one line; empty where nothing is."""
        if not self.lacking:
            return ""
        others = f" and {len(self.lacking) - 1} more" if len(self.lacking) > 1 else ""
        hint = "run tollkeeper migrate as the owner"
        if self.has_writer and not self.is_writer:
            hint = f'GRANT "{self.writer}" TO "{self.user}"'
        return f"{self.user} may not do what a keeper does ({self.lacking[0]}{others}): {hint}"


def privileges(url: str) -> Privileges:
    """Ask a database of the newest schema what the user of this URL may do in it; `SchemaUnavailable`."""
    tables = [grant for grant in sorted(WANTED) if (grant.role, grant.kind) == (WRITER, "TABLE")]
    functions = [grant.name for grant in sorted(WANTED) if grant.kind == "FUNCTION"]
    try:
        with psycopg.connect(plain_url(url), **CONNECT) as connection:
            writer = _writer_of(connection)
            kept = [table for table, verbs in writes().items() if verbs == {"INSERT"}]
            who = {"tables": list(writes()), "kept": kept, "outside": list(OUTSIDE), "writer": writer}
            row = connection.execute(_WHO, who).fetchone()
            asked = {"rights": [each.right for each in tables], "names": [each.name for each in tables]}
            lacking = connection.execute(_LACKING, asked | {"functions": functions}).fetchall()
    except psycopg.Error as error:
        raise SchemaUnavailable(complaint(error)) from error
    assert row is not None
    user, superuser, owns, creates, changes, leaves, is_writer = row
    beyond = (
        (superuser, "is superuser"), (owns and not superuser, "owns the tables"),
        (creates and not owns, "may create objects in addition to the tables"),
        (changes and not owns, "may change what is only to be added to"),
        (leaves and not superuser, "may reach files and programs of the server"),
    )  # fmt: skip
    return Privileges(
        str(user), writer, bool(owns), is_writer is not None, bool(is_writer),
        tuple(what for true, what in beyond if true), tuple(str(name) for (name,) in lacking),
    )  # fmt: skip


async def refuse_unfit(engine: AsyncEngine) -> None:
    """StartError where the schema is another program's, or the user may not do what a keeper does."""
    try:
        refuse_other(await status(engine))
        found = await asyncio.to_thread(privileges, engine.url.render_as_string(hide_password=False))
    except (DBAPIError, SchemaUnavailable) as error:
        raise StartError(f"PostgreSQL: {complaint(error)} (tollkeeper doctor says what to do)") from error
    if found.lacking:
        raise StartError(f"PostgreSQL: {found.complaint()}")


def admit_writer(url: str, password: str) -> str:
    """Let the writer of the database at `url`, its owner's, log in with this password; the URL for it."""
    with psycopg.connect(plain_url(url), **CONNECT) as connection:
        user = _writer_of(connection)
        # Hashed here: what the server is told, and might log, is not the password.
        digest = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256")
        told = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), digest.decode())
        connection.execute(told)
    parts = urlsplit(plain_url(url))
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()


def _writer_of(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """By the name the server has for it: a pooler's may be another."""
    row = connection.execute("SELECT current_database()").fetchone()
    assert row is not None
    return roles_of(str(row[0]))[WRITER]
