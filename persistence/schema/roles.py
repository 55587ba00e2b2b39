"""Database roles: the rights of keepers' users, and a login for the writer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from persistence.error_mapping import origin
from persistence.examining import looked_at
from persistence.schema.standing import (
    EVERYBODY,
    FOUND,
    RIGHTS_OF,
    WANTED,
    WRITER,
    RoleGrant,
    found_grants,
    rights_note,
    roles_of,
)

# PostgreSQL cuts off a longer name, which could then equal another database's role.
NAME_BYTES_MAX = 63
# Errors of creating a role: it was created meanwhile, or this user may not.
DUPLICATE, UNIQUE, FORBIDDEN = "42710", "23505", "42501"


_FOUND = text(FOUND)
_THERE = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
# Members of an earlier role, and the role itself if it can log in, without members of today's role.
_MEMBERS = text("""
SELECT DISTINCT m.rolname FROM pg_roles AS r
  LEFT JOIN pg_auth_members AS a ON a.roleid = r.oid
  JOIN pg_roles AS m ON m.oid = a.member OR (m.oid = r.oid AND m.rolcanlogin)
 WHERE r.rolname = :earlier AND m.rolname <> current_user
   AND NOT pg_has_role(m.oid, cast(:role AS name), 'MEMBER')
   AND NOT pg_has_role(cast(:role AS name), m.oid, 'MEMBER')
 ORDER BY m.rolname""")
# The roles among these with a right on a table of this database.
_HELD = text("""
SELECT DISTINCT r.rolname
  FROM pg_class AS c, aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
 WHERE c.relnamespace = current_schema()::regnamespace AND r.rolname = ANY (:names)""")
_AS_IT_STANDS = {"no_parameters": True}
_HERE = text("SELECT current_database(), quote_ident(current_schema())")


def apply_grants(connection: Connection, wanted: frozenset[RoleGrant] = WANTED) -> str:
    """Create the roles and grant their rights; return what an administrator must do first, or "".

    Only differences are granted or revoked: a repeated migrate writes nothing and needs no rights. The caller
    holds the locks of the schema and of the partitions.
    """
    database, schema = connection.execute(_HERE).one()
    names = roles_of(database)
    if any(len(name.encode()) > NAME_BYTES_MAX for name in names.values()):
        return (
            f"the database's name is too long to have roles of its own: {NAME_BYTES_MAX} bytes with _{WRITER}"
        )
    missing = [_quoted(name) for name in names.values() if not _create_role(connection, name)]
    if missing:
        todo = " ".join(f"CREATE ROLE {name};" for name in missing)
        return f"there are no roles for a keeper that owns nothing; an administrator makes them: {todo}"
    quoted = {EVERYBODY: "PUBLIC"} | {role: _quoted(name) for role, name in names.items()}
    found = found_grants(connection.execute(_FOUND), database, wanted)
    for statement in _statements(found, wanted, quoted, schema):
        connection.exec_driver_sql(statement, execution_options=_AS_IT_STANDS)
    return _admit_members(connection, database, names, schema)


def _admit_members(connection: Connection, database: str, names: dict[str, str], schema: str) -> str:
    """Grant the roles of a renamed database to the members of its earlier roles, and revoke the old rights.

    Return the statements for an administrator if this user may not grant, else "".
    """
    noted = rights_note(database)
    before = str(connection.exec_driver_sql(RIGHTS_OF).scalar_one())
    if before == noted:
        return ""
    earlier = roles_of(before.removeprefix(rights_note(""))) if before else {}
    members = [
        (names[role], str(user))
        for role, name in earlier.items()
        for user in connection.execute(_MEMBERS, {"earlier": name, "role": names[role]}).scalars()
    ]
    statements = [f"GRANT {_quoted(role)} TO {_quoted(user)}" for role, user in members]
    if not all(_allowed(connection, statement) for statement in statements):
        todo = " ".join(f"{statement};" for statement in statements)
        return f"the database had another name when its users got their rights; an administrator runs: {todo}"
    for role in connection.execute(_HELD, {"names": list(earlier.values())}).scalars():
        for kind in ("ALL TABLES IN SCHEMA", "ALL FUNCTIONS IN SCHEMA", "SCHEMA"):
            statement = f"REVOKE ALL ON {kind} {schema} FROM {_quoted(str(role))}"
            connection.exec_driver_sql(statement, execution_options=_AS_IT_STANDS)
    note = noted.replace("'", "''")
    told = f"COMMENT ON COLUMN alembic_version.version_num IS '{note}'"
    connection.exec_driver_sql(told, execution_options=_AS_IT_STANDS)
    return ""


def _create_role(connection: Connection, name: str) -> bool:
    """Create a role if it is missing; return whether the role exists now."""
    there = connection.execute(_THERE, {"name": name}).scalar_one()
    return bool(there) or _allowed(connection, f"CREATE ROLE {_quoted(name)}")


def _allowed(connection: Connection, statement: str) -> bool:
    """Run a statement, treating an existing object as success; return False if this user may not."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(statement, execution_options=_AS_IT_STANDS)
    except DBAPIError as error:
        cause = origin(error)
        if cause is None or cause.sqlstate not in {DUPLICATE, UNIQUE, FORBIDDEN}:
            raise
        return cause.sqlstate != FORBIDDEN
    return True


def _statements(
    role_grants: set[RoleGrant], wanted: frozenset[RoleGrant], quoted: dict[str, str], schema: str
) -> Iterator[str]:
    """Yield the statements that turn the `role_grants` rights into the `wanted` ones."""
    for verb, to, grants in (("REVOKE", "FROM", role_grants - wanted), ("GRANT", "TO", wanted - role_grants)):
        for (role, right, kind), some in groupby(sorted(grants), lambda grant: grant[:3]):
            objects = [f"{schema}.{grant.name}" if grant.name else schema for grant in some]
            yield f"{verb} {right} ON {kind} {', '.join(objects)} {to} {quoted[role]}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Rules that limit a call to its hold, so that a call without a token maximum is sent with one.
_BINDING = """
SELECT 'plans with admission: strict' WHERE EXISTS (
    SELECT FROM token_plan WHERE admission = 'strict' AND deleted_at IS NULL)
UNION ALL SELECT 'budgets with hold: maximum' WHERE EXISTS (
    SELECT FROM budget WHERE hold = 'maximum' AND mode = 'enforce' AND deleted_at IS NULL)
UNION ALL SELECT 'services with credits by token' WHERE EXISTS (
    SELECT FROM service WHERE jsonb_typeof(pricing -> 'per_million') = 'object' AND deleted_at IS NULL
    UNION ALL SELECT FROM organization_service WHERE jsonb_typeof(pricing -> 'per_million') = 'object')"""


def binding_rules(url: str) -> list[str]:
    """Return the kinds of rules that limit a call to its held amount; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        return [str(row[0]) for row in connection.execute(_BINDING).fetchall()]
