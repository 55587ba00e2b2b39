"""What a database user may do, and the refusal of one that may too little or too much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import SchemaUnavailable, StartError
from persistence.error_mapping import complaint, origin, sqlstate
from persistence.examining import looked_at
from persistence.schema.database import refuse_other, status
from persistence.schema.roles import FORBIDDEN
from persistence.schema.standing import (
    WANTED,
    WRITER,
    writer_of,
    writes,
)

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
# Predefined roles that reach files and programs outside of the database.
OUTSIDE = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")


@dataclass(frozen=True, slots=True)
class Privileges:
    """The rights of a user in a database: `beyond` no keeper needs, `lacking` are missing.

    `writer` is the role that it should have, `has_writer` whether that role exists, `is_writer` whether the
    user has it.
    """

    user: str
    writer: str
    owns: bool
    has_writer: bool
    is_writer: bool
    beyond: tuple[str, ...]
    lacking: tuple[str, ...]

    def complaint(self) -> str:
        """Return the missing rights and the statement that grants them, on one line; "" if none."""
        if not self.lacking:
            return ""
        others = f" and {len(self.lacking) - 1} more" if len(self.lacking) > 1 else ""
        hint = "run tollkeeper migrate as the owner"
        if self.has_writer and not self.is_writer:
            hint = f'GRANT "{self.writer}" TO "{self.user}"'
        return f"{self.user} may not do what a keeper does ({self.lacking[0]}{others}): {hint}"


def privileges(url: str) -> Privileges:
    """Return the rights of this URL's user in a database of the newest schema; raise `SchemaUnavailable`."""
    tables = [grant for grant in sorted(WANTED) if (grant.role, grant.kind) == (WRITER, "TABLE")]
    functions = [grant.name for grant in sorted(WANTED) if grant.kind == "FUNCTION"]
    with looked_at(url) as connection:
        writer = writer_of(connection)
        kept = [table for table, verbs in writes().items() if verbs == {"INSERT"}]
        who = {"tables": list(writes()), "kept": kept, "outside": list(OUTSIDE), "writer": writer}
        row = connection.execute(_WHO, who).fetchone()
        asked = {"rights": [table.right for table in tables], "names": [table.name for table in tables]}
        lacking = connection.execute(_LACKING, asked | {"functions": functions}).fetchall()
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


async def refuse_unfit(
    engine: AsyncEngine, hint: Callable[[str, str], str] = lambda *_: "tollkeeper doctor says what to do"
) -> None:
    """Raise `StartError` if the server is read-only, the schema is unsupported, or the user lacks rights.

    `hint` returns a remedy for an error message and its SQLSTATE.
    """
    url = engine.url.render_as_string(hide_password=False)
    try:
        try:
            refuse_other(await status(engine))
        except DBAPIError as error:  # a user without rights gets the name of the role to have
            refused = origin(error)
            if refused is None or refused.sqlstate != FORBIDDEN:
                raise
        found = await asyncio.to_thread(privileges, url)
    except (DBAPIError, SchemaUnavailable) as error:
        code = error.sqlstate if isinstance(error, SchemaUnavailable) else sqlstate(error)
        raise StartError(f"PostgreSQL: {complaint(error)}; {hint(complaint(error), code)}") from error
    if found.lacking:
        raise StartError(f"PostgreSQL: {found.complaint()}")
