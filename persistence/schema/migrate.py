"""Migrates a database to the newest schema: in one transaction, under a lock, safe to repeat.

An empty database is created from the files of today's schema (`FILES`), another one by the migrations after
its version; both give the same result.

Concurrent migrators wait for each other; the second finds nothing to do. Keepers of the previous version keep
running, so the tables that migrations alter are locked first, all in one order. If a lock is not free, or a
deadlock occurs, all locks are released and the attempt is repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gateway.errors import SchemaUnavailable, StartError
from persistence.address import CONNECT_TIMEOUT_S, dialect_url, plain_url
from persistence.error_mapping import complaint, origin, quiet, sqlstate
from persistence.examining import certificate_ended, looked_at
from persistence.schema import roles
from persistence.schema.database import refuse_other
from persistence.schema.standing import (
    ENSURE_PARTITIONS,
    KNOWN,
    MONTHS_AHEAD,
    SCHEMA_LOCK,
    SERVER,
    STATUS,
    THERE,
    SchemaStatus,
    why_unusable,
)

HERE = Path(__file__).parent
MIGRATIONS = HERE / "migrations"
# The files of today's schema and its constant rows, in the order of execution.
FILES = tuple(HERE / f"{name}.sql" for name in ("tables", "functions", "views", "seed"))
_SCHEMA = "SELECT quote_literal(current_schema()), quote_ident(current_schema())"

# Running keepers that know only older versions; before 0079 they did not report their version.
OLDER = """
SELECT place, known FROM (
    SELECT place, coalesce(schema_version, '0078') AS known FROM keeper WHERE until > clock_timestamp()
) AS there WHERE known < :since ORDER BY place"""
PLACES_TOLD_MAX = 5
LOOKS_AGAIN_S = 0.2
# Sessions queue up behind a waiting lock. So there is a maximum wait in seconds for one lock, then others
# proceed, and one for all attempts together.
LOCK_S_MAX, LOCKS_S_MAX = 2.0, 120.0
PAUSES_S = 0.5, 1.0, 2.0, 4.0
_NAMED = {"fallback_application_name": "tollkeeper-migrate"}
# lock_not_available, deadlock_detected
BUSY = frozenset({"55P03", "40P01"})
TABLES = """
SELECT format('%I', relname) FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
 ORDER BY relname"""
BLOCKING = """
SELECT 'pid ' || pid || ' ' || coalesce(nullif(application_name, ''), 'without a name')
       || coalesce(', ' || state, '')
       || coalesce(to_char(query_start AT TIME ZONE 'UTC', '", its query began "HH24:MI:SS" UTC"'), '')
  FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids(%s)) ORDER BY query_start, pid"""


class SchemaInUse(SchemaUnavailable):
    """Other sessions have locked tables that the migrations alter."""


def upgrade(
    url: str,
    report: Callable[[str], object] = lambda _: None,
    *,
    end_older: bool = False,
    wait_s: float = 0.0,
    migrations: Path = MIGRATIONS,
    locks_s_max: float = LOCKS_S_MAX,
) -> str:
    """Migrate the database at `url` to the newest schema, with partitions and grants; return its version.

    `report` is called with a line for the administrator if something is left to do. A newer schema is kept if
    this program can run on it. `StartError` is raised if it cannot, if tables stay locked beyond
    `locks_s_max` seconds, or if keepers that the new schema does not support still run after `wait_s` seconds
    (unless `end_older`); a killed keeper stays listed for a while. `SchemaUnavailable` states in one line why
    PostgreSQL or the migrations failed.
    """
    until, tries, last = time.monotonic() + locks_s_max, 0, ""
    while True:
        blocking = BlockerWatch(url)
        try:
            return _upgrade_once(
                url, report, blocking, end_older=end_older, wait_s=wait_s, migrations=migrations
            )
        except SchemaInUse as error:
            by = f"by {blocking.who}" if blocking.who else f"by others ({error.message})"
            if time.monotonic() >= until:
                raise StartError(
                    f"the schema was not changed: its tables are in use {by}; end that session, or try again"
                ) from error
            if by != last:
                report(f"tables of the schema are in use {by}: trying again")
            last = by
            time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1


def _upgrade_once(
    url: str,
    report: Callable[[str], object],
    blocking: BlockerWatch,
    *,
    end_older: bool,
    wait_s: float,
    migrations: Path,
) -> str:
    """Migrate the schema in one transaction, as `upgrade`; raise SchemaInUse if a table is locked."""
    with _migration_connection(url) as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, :key)"),
            {"class": SCHEMA_LOCK[0], "key": SCHEMA_LOCK[1]},
        )
        at = _status(connection)
        if at.unusable:
            refuse_other(at)
        if at.version is not None and at.version not in KNOWN:
            refuse_other(at)
            report(
                f"the schema is a newer one, on which programs from {at.runs_from} on run: nothing is to do"
            )
            return at.version
        config = Config()
        config.set_main_option("script_location", str(migrations).replace("%", "%%"))
        config.attributes["connection"] = connection
        scripts = ScriptDirectory.from_config(config)
        if older := _older_keepers(connection, runs_from(scripts), 0.0 if end_older else wait_s):
            if not end_older:
                raise StartError(f"{older}: stop them first, or run tollkeeper migrate --end-older-keepers")
            report(f"{older}: they end within seconds")
        if at.version is None:
            make(connection)
            command.stamp(config, "head")
        else:
            with blocking.watched(connection):
                # Lock them for this transaction, in one order. Afterwards nothing waits for a lock.
                tables = altered_tables(connection, scripts, at.version)
                connection.execute(text(f"SET LOCAL lock_timeout = {round(LOCK_S_MAX * 1000)}"))
                if tables:
                    connection.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
                command.upgrade(config, "head")
        since = runs_from(scripts)
        if _status(connection).runs_from != since:
            connection.execute(text(f"COMMENT ON TABLE alembic_version IS 'runs from {since}'"))
        connection.exec_driver_sql(ENSURE_PARTITIONS, {"months_ahead": MONTHS_AHEAD, "by": ""})
        if missing := roles.apply_grants(connection):
            report(missing)
        return _version(connection) or ""


def schema_status(url: str) -> SchemaStatus:
    """Return the schema status of the database at `url`, with the server's clock."""
    with looked_at(url) as connection:

        def row(statement: str) -> Any:
            return connection.execute(statement.encode()).fetchone()

        [clock] = row("SELECT extract(epoch FROM clock_timestamp())::float8")
        unusable = why_unusable(*row(SERVER))
        version = row(STATUS) if row(THERE)[0] else None
        return SchemaStatus(*(version or (None,)))._replace(clock=clock, unusable=unusable)


def runs_from(scripts: ScriptDirectory) -> str:
    """Return the lowest schema version that a program must know to run on the newest schema.

    Each migration states it as `runs_from`, or requires its own version; the latest of them counts.
    """
    return max(getattr(one.module, "runs_from", one.revision) for one in scripts.walk_revisions())


def make(connection: Connection, files: Sequence[Path] = FILES) -> None:
    """Create today's schema in an empty database, without its version."""
    home, schema = connection.exec_driver_sql(_SCHEMA).one()
    for file in files:
        sql = file.read_text(encoding="utf-8").replace(":home", home).replace(":schema", schema)
        connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def altered_tables(connection: Connection, scripts: ScriptDirectory, version: str) -> list[str]:
    """Return the existing tables that migrations after `version` alter, by their `alters`.

    If a migration has no `alters`, all tables are returned.
    """
    there = list(connection.scalars(text(TABLES)))
    waiting = [revision.module for revision in scripts.iterate_revisions("head", version)]
    if not all(hasattr(one, "alters") for one in waiting):
        return there
    said = {table for one in waiting for table in one.alters}
    return [one for one in there if one in said]


class BlockerWatch:
    """Finds the sessions that block another one, by a thread that queries PostgreSQL; `who` is one line."""

    def __init__(self, url: str) -> None:
        self.who = ""
        self._url, self._is_over = plain_url(url), threading.Event()

    @contextmanager
    def watched(self, connection: Connection) -> Iterator[None]:
        """Watch the session of this connection for blockers while the context is active."""
        looking = threading.Thread(
            target=self._look, args=(connection.scalar(text("SELECT pg_backend_pid()")),), daemon=True
        )
        looking.start()
        try:
            yield
        finally:
            self._is_over.set()
            looking.join(CONNECT_TIMEOUT_S)

    def _look(self, pid: int) -> None:
        with (
            suppress(psycopg.Error),
            psycopg.connect(
                self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, prepare_threshold=None
            ) as connection,
        ):
            while not self._is_over.wait(LOOKS_AGAIN_S):
                if rows := connection.execute(BLOCKING, (pid,)).fetchall():
                    self.who = "; ".join(row[0] for row in rows[:PLACES_TOLD_MAX])


def _older_keepers(connection: Connection, since: str, wait_s: float) -> str:
    """Return a line on running keepers that do not support schema `since`; "" once none run.

    It waits up to `wait_s` seconds for them to end.
    """
    if not connection.scalar(text("SELECT to_regclass('keeper') IS NOT NULL")):
        return ""
    until = time.monotonic() + wait_s
    while (rows := connection.execute(text(OLDER), {"since": since}).all()) and time.monotonic() < until:
        time.sleep(LOOKS_AGAIN_S)
    found = [f"{place} (knows {known})" for place, known in rows]
    more = len(found) - PLACES_TOLD_MAX
    told = ", ".join(found[:PLACES_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")
    return told and f"keepers run which the schema serves no longer, it serves those who know {since}: {told}"


def _status(connection: Connection) -> SchemaStatus:
    unusable = why_unusable(*connection.execute(text(SERVER)).one())
    if not connection.scalar(text(THERE)):
        return SchemaStatus(None, unusable=unusable)
    result = connection.execute(text(STATUS)).one_or_none()
    return SchemaStatus(*(result or (None,)))._replace(unusable=unusable)


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _migration_connection(url: str) -> Iterator[Connection]:
    """Yield a connection with one transaction; errors are reduced to their first line, without values."""
    engine = create_engine(
        dialect_url(url),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "UTF8"} | _NAMED,
    )
    quiet(engine)
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, CommandError) as error:
        cause = origin(error)
        if cause is not None and cause.sqlstate in BUSY:
            raise SchemaInUse(complaint(error)) from error
        first = complaint(error) + certificate_ended(str(getattr(error, "orig", None) or error), url)
        is_away = cause is not None and cause.sqlstate is None
        what = "PostgreSQL" if is_away else "the schema of PostgreSQL"
        raise SchemaUnavailable(f"{what} cannot be used: {first}", sqlstate=sqlstate(error)) from error
