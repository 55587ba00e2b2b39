"""Owner, writer and reader: each does what it is for, and PostgreSQL refuses the rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine

from persistence import engine as engines
from persistence.archive.months import BY_NAME
from persistence.engine import dialect_url
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate, partitions, standing
from persistence.schema import roles as schema_roles
from persistence.schema.standing import NEEDED, admit_writer
from tests.connections import connected
from tests.persistence.migrated import LEDGERS
from tests.persistence.scenario import Account, batch_of, broken, busy, rows_of, settle_in

APPEND_ONLY = (*LEDGERS, "audit_log")
# What stands there as it was given out.
CREDENTIALS = ("agent_sign_in", "console_session", "idempotency_key", "mail_consent", "webhook")
LATER = (("writer", "SELECT"), ("writer", "INSERT"), ("reader", "SELECT"))
BEYOND_ROWS = (
    "CREATE TABLE mine ()",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE c AS 'x', 'y'",
    "CREATE TRIGGER mine BEFORE INSERT ON tenant EXECUTE FUNCTION refuse_change()",
    "CREATE TABLE ahead PARTITION OF token_ledger FOR VALUES FROM ('2070-01-01Z') TO ('2070-02-01Z')",
    "ALTER TABLE token_ledger DETACH PARTITION token_ledger_default",
    "DROP TABLE webhook",
    "DROP TRIGGER append_only ON audit_log",
    "DROP FUNCTION refuse_change() CASCADE",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "ALTER FUNCTION ensure_partitions(timestamptz, integer) SECURITY INVOKER",
    "ALTER TABLE tenant OWNER TO CURRENT_USER",
    "ALTER VIEW invariant_chain RENAME TO another",
    "UPDATE alembic_version SET version_num = '0001'",
    "DELETE FROM lost_event",
    "DELETE FROM control_write",
    "SET session_replication_role = replica",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY gateway_worker FROM PROGRAM 'true'",
    "COPY tenant TO 'tenants'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT setval(pg_get_serial_sequence('tenant', 'id'), 1)",
    "SELECT lo_import('/etc/passwd')",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "SET ROLE postgres",
    "ALTER SYSTEM SET archive_command = 'true'",
    "CREATE ROLE another",
    "CREATE DATABASE another",
    "CREATE EXTENSION dblink",
)


@dataclass
class Roles:
    """A migrated database, and a URL of it for each of those who use it."""

    owner: str
    writer: str
    reader: str


def login(database: str, name: str, attributes: str = "") -> str:
    """Make a user; the database's URL for it."""
    user = f"{database.rpartition('/')[2]}_{name}"
    with connected(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {user} LOGIN {attributes}")
    return database.replace("postgres@", f"{user}@")


def role(database: str, name: str) -> str:
    return f"{database.rpartition('/')[2]}_{name}"


@pytest.fixture
def owner(database: str) -> str:
    """Somebody who owns the database and may do nothing beyond it."""
    url = login(database, "owner")
    with connected(database, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {database.rpartition('/')[2]} OWNER TO {role(database, 'owner')}")
    return url


@pytest.fixture
def roles(database: str, owner: str) -> Roles:
    with connected(database, autocommit=True) as admin:
        for name in ("writer", "reader"):
            admin.execute(f"CREATE ROLE {role(database, name)}")
    migrate.upgrade(owner, pytest.fail)
    return Roles(
        owner,
        login(database, "keeper", f"IN ROLE {role(database, 'writer')}"),
        login(database, "person", f"IN ROLE {role(database, 'reader')}"),
    )


def refused(url: str, statement: str) -> None:
    with connected(url) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement)


def test_every_table_and_view_says_who_writes_it(cloned: str) -> None:
    there = rows_of(
        cloned,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p', 'v') AND NOT relispartition",
    )
    defaults = {f"{name}_default" for name in BY_NAME}  # where months are looked for that nobody made
    assert {name for (name,) in there} | defaults == set(standing.writes())
    for table in APPEND_ONLY:
        assert standing.writes()[table] == {"INSERT"}


def test_whoever_runs_as_the_writer_owns_nothing(roles: Roles) -> None:
    owned = "SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole"
    power = "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
    for url in (roles.writer, roles.reader):
        assert rows_of(url, owned) == [(0,)]
        assert rows_of(url, power) == [(False,)]


def test_the_writer_changes_no_ledger(roles: Roles) -> None:
    found = rows_of(roles.owner, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relispartition")
    partitions = [(name,) for (name,) in found if not name.startswith("usage_rollup_")]
    assert len(found) > len(partitions) > len(LEDGERS)
    for (name,) in set(found) - set(partitions):  # roll-ups are moved, by their parent
        refused(roles.writer, f"DELETE FROM {name}")
    for table in (*APPEND_ONLY, *(name for (name,) in partitions)):
        for statement in (
            "UPDATE {} SET id = 7",
            "DELETE FROM {}",
            "TRUNCATE {}",
            "ALTER TABLE {} DISABLE TRIGGER USER",
        ):
            refused(roles.writer, statement.format(table))
    for (partition,) in partitions:
        refused(roles.writer, f"INSERT INTO {partition} SELECT * FROM {partition}")


def test_the_writer_changes_nothing_but_rows(roles: Roles) -> None:
    with connected(roles.writer, autocommit=True) as connection:
        for statement in BEYOND_ROWS:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


async def flush(url: str, account: Account) -> None:
    """Write movements of every kind."""
    busy(account)
    writer = LedgerWriter(url)
    try:
        report = await writer.write(batch_of(account))
    finally:
        writer.close()
    assert report.rows["token_ledger"] == 6


async def test_a_flush_runs_as_the_writer(roles: Roles) -> None:
    [account] = settle_in(roles.owner, 1_000)
    await flush(roles.writer, account)
    assert rows_of(roles.reader, "SELECT count(*) FROM token_ledger") == [(6,)]
    assert await broken(roles.writer) == []


def test_the_writer_makes_the_partitions_ahead_and_no_more(roles: Roles) -> None:
    made = rows_of(roles.writer, "SELECT ensure_partitions('2041-02-10Z', 1)")
    assert ("token_ledger_y2041m03",) in made
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename ~ '_y2041'"
    assert rows_of(roles.owner, owners) == rows_of(roles.owner, "SELECT current_user")
    refused(roles.writer, "TRUNCATE token_ledger_y2041m03")
    for arguments in (
        "now(), 25",
        "now(), -1",
        "now(), NULL",
        "NULL, 1",
        "'infinity', 1",
        "'1999-01-01Z', 1",
    ):
        with connected(roles.writer) as connection, pytest.raises(errors.InvalidParameterValue):
            connection.execute(f"SELECT ensure_partitions({arguments})")
    refused(roles.reader, "SELECT ensure_partitions(now(), 1)")


async def test_the_writer_drops_months_that_ended_and_no_more(roles: Roles) -> None:
    engine = engines.create(roles.writer)
    rows_of(roles.writer, "SELECT ensure_partitions(now() - interval '200 days', 1)")
    assert {name[:6] for name in await partitions.drop_calls(engine, 100)} == {"call_y"}
    assert any("_team_hour_y" in name for name in await partitions.drop_hours(engine, 100))
    await engine.dispose()
    there = rows_of(roles.owner, "SELECT ledger, since < now() - interval '100 days' FROM kept_since")
    assert dict(there) == dict.fromkeys(("call", *partitions.HOURS), True)
    refused(roles.writer, "DELETE FROM kept_since")
    refused(roles.writer, "DROP TABLE usage_rollup_hour_default")
    refused(roles.reader, "SELECT drop_months('call', now())")


def test_what_a_caller_has_lying_about_does_not_become_the_owners(roles: Roles) -> None:
    with connected(roles.writer) as connection:
        connection.execute("CREATE TEMP TABLE feature_usage_y2041m03 ()")
        connection.execute("CREATE TEMP TABLE taken (by text)")
        connection.execute(
            "CREATE FUNCTION pg_temp.format(text, text, text, text, text) RETURNS text LANGUAGE sql"
            " AS $$ INSERT INTO taken SELECT current_user RETURNING 'SELECT 1' $$"
        )
        connection.execute("SET search_path = pg_temp, public")
        made = connection.execute("SELECT public.ensure_partitions('2041-02-10Z', 1)").fetchall()
        assert ("feature_usage_y2041m03",) in made
        assert connection.execute("SELECT count(*) FROM taken").fetchone() == (0,)
        connection.execute("DROP TABLE pg_temp.feature_usage_y2041m03")
        schema = (
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'feature_usage_y2041m03'"
        )
        assert connection.execute(schema).fetchall() == [("public",)]


def test_the_reader_reads_everything_but_credentials(roles: Roles) -> None:
    for name, verbs in standing.writes().items():
        if name in CREDENTIALS:
            refused(roles.reader, f"SELECT * FROM {name}")
            continue
        rows_of(roles.reader, f"SELECT * FROM {name} LIMIT 0")
        if verbs:
            for statement in ("INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
                refused(roles.reader, statement.format(name))
    refused(roles.reader, "UPDATE tenant SET name = 'x'")
    refused(roles.reader, "CREATE TABLE mine ()")


def test_a_repeated_migrate_gives_nothing_again_and_takes_back_what_was_given_besides(roles: Roles) -> None:
    rights = "SELECT relname, relacl::text, xmin::text FROM pg_class WHERE relacl IS NOT NULL ORDER BY oid"
    before = rows_of(roles.owner, rights)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrate.upgrade, [roles.owner] * 2))
    assert migrate.upgrade(roles.writer, pytest.fail) == NEEDED  # nothing is left to do
    assert rows_of(roles.owner, rights) == before
    writer = role(roles.owner, "writer")
    with connected(roles.owner) as connection:
        connection.execute(f"GRANT UPDATE ON token_ledger TO {writer}")
        connection.execute(f"REVOKE INSERT ON tenant FROM {writer}")
        connection.execute("GRANT EXECUTE ON FUNCTION ensure_partitions(timestamptz, integer) TO PUBLIC")
    migrate.upgrade(roles.owner, pytest.fail)
    refused(roles.writer, "UPDATE token_ledger SET id = 7")
    refused(roles.reader, "SELECT ensure_partitions(now(), 1)")
    assert [row[:2] for row in rows_of(roles.owner, rights)] == [row[:2] for row in before]


def test_a_table_of_a_later_version_is_the_writers_once_it_is_named(
    roles: Roles,
) -> None:
    with connected(roles.owner) as connection:
        connection.execute("CREATE TABLE later (id bigint GENERATED BY DEFAULT AS IDENTITY, word text)")
    migrate.upgrade(roles.owner)
    refused(roles.writer, "INSERT INTO later (word) VALUES ('x')")
    later = {standing.RoleGrant(role, right, "TABLE", "later") for role, right in LATER}
    with create_engine(dialect_url(roles.owner)).begin() as connection:
        assert schema_roles.apply_grants(connection, standing.WANTED | later) == ""
    with connected(roles.writer) as connection:
        connection.execute("INSERT INTO later (word) VALUES ('x')")
    assert rows_of(roles.reader, "SELECT id, word FROM later") == [(1, "x")]


async def test_an_owner_who_makes_no_roles_says_so_and_goes_on_alone(database: str, owner: str) -> None:
    told: list[str] = []
    assert migrate.upgrade(owner, told.append) == NEEDED
    [said] = told
    assert f'CREATE ROLE "{role(database, "writer")}"; CREATE ROLE "{role(database, "reader")}"' in said
    [account] = settle_in(owner, 1_000)
    await flush(owner, account)
    with connected(database, autocommit=True) as admin:
        admin.execute(said.partition(": ")[2])
    migrate.upgrade(owner, pytest.fail)
    assert rows_of(
        login(database, "person", f"IN ROLE {role(database, 'reader')}"), "SELECT count(*) FROM tenant"
    )


def test_the_writer_of_one_database_is_nobody_in_another(roles: Roles, cloned: str) -> None:
    elsewhere = roles.writer.rpartition("/")[0] + "/" + cloned.rpartition("/")[2]
    refused(elsewhere, "SELECT * FROM tenant")


@pytest.mark.parametrize("name", ['we"ird %(x)s name', "n" * 56, "n" * 57])
def test_the_database_may_have_any_name(postgres: str, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    with connected(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {quoted}".encode())
    url = psycopg.conninfo.conninfo_to_dict(postgres)
    path = name.replace("%", "%25").replace('"', "%22").replace(" ", "%20")
    told: list[str] = []
    try:
        migrate.upgrade(f"postgresql://postgres@{url['host']}:{url['port']}/{path}", told.append)
        made = rows_of(postgres, "SELECT rolname FROM pg_roles WHERE rolname ~ '^(n{56}|we)'")
        assert ((f"{name}_writer",) in made) is (len(name) <= 56)
        assert (told == []) is (len(name) <= 56)
    finally:
        with connected(postgres, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {quoted} WITH (FORCE)".encode())


# --- roles ------------------------------------------------------------------------------
# The writer of a database of ours is let in by a password of its own.


def test_the_writer_is_let_in_by_the_owner(database: str) -> None:
    migrate.upgrade(database)
    url = admit_writer(database, "a:b/c@d")
    assert conninfo_to_dict(url)["password"] == "a:b/c@d"
    assert rows_of(url, "SELECT current_user || '' = current_database() || '_writer'") == [(True,)]
    with connected(database) as admin:
        kept = admin.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = current_database() || '_writer'"
        )
        assert str(kept.fetchone()).startswith("('SCRAM-SHA-256$")
