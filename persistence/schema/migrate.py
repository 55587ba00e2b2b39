"""Migrates a database to the newest schema: in one transaction, under a lock, safe to repeat.

Indexes of existing tables, and constraints that the migrations left `NOT VALID`, are made behind that transaction,
while programs read and write (`completion`).

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
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gateway.errors import SchemaUnavailable, StartError
from persistence.address import CONNECT, CONNECT_TIMEOUT_S, dialect_url, plain_url
from persistence.error_mapping import complaint, origin, quiet, sqlstate
from persistence.examining import certificate_ended, looked_at
from persistence.schema import completion, roles
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
    runs_from,
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
LOCK_TIMEOUT = f"SET LOCAL lock_timeout = {round(LOCK_S_MAX * 1000)}"
PAUSES_S = 0.5, 1.0, 2.0, 4.0
_AS_IT_STANDS = {"no_parameters": True}
_NAMED = {"fallback_application_name": "tollkeeper-migrate"}
# lock_not_available, deadlock_detected
BUSY = frozenset({"55P03", "40P01"})
# undefined_table, undefined_object: a keeper dropped the partition meanwhile.
GONE = frozenset({"42P01", "42704"})
# One lock over a whole run. Earlier programs do not know it: they take SCHEMA_LOCK, as each transaction does.
TRY_RUN_LOCK = f"SELECT pg_try_advisory_xact_lock({SCHEMA_LOCK[0]}, 3)"
# An index of a partition, or a constraint, made while others write: measured at 1,500,000 rows of `call`.
SECONDS_A_MILLION = 2.0
TABLES = """
SELECT format('%I', relname) FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
 ORDER BY relname"""
LOCKED_ROWS = f"""
SELECT string_agg(name || coalesce(' (' || nullif(rows, 0) || ' rows)', ''), ', ' ORDER BY name) FROM (
    SELECT name, sum({completion.ROWS}) AS rows
      FROM unnest(:tables ::text[]) AS name
     CROSS JOIN LATERAL (SELECT relid FROM pg_partition_tree(name::regclass) UNION SELECT name::regclass) AS leaves
      JOIN pg_class AS t ON t.oid = relid GROUP BY name) AS found"""
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
    until, tries, lines = 0.0, 0, set[str]()

    def tell(line: str) -> None:
        if line not in lines:
            lines.add(line)
            report(line)

    with _alone(url, tell):
        while True:
            blocking = BlockerWatch(url)
            try:
                version = _upgrade_once(
                    url, tell, blocking, end_older=end_older, wait_s=wait_s, migrations=migrations
                )
                break
            except SchemaInUse as error:
                until = until or time.monotonic() + locks_s_max
                by = f"by {blocking.who}" if blocking.who else f"by others ({error.message})"
                if time.monotonic() >= until:
                    raise StartError(
                        f"the schema was not changed: its tables are in use {by}; end that session, or try again"
                    ) from error
                tell(f"tables of the schema are in use {by}: trying again")
                time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                tries += 1
        if version in KNOWN:  # what a newer one lacks is its own program's to know
            _complete(url, tell)
        return version


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
        since = runs_from(migrations / "versions")
        if older := _older_keepers(connection, since, 0.0 if end_older else wait_s):
            if not end_older:
                raise StartError(f"{older}: stop them first, or run tollkeeper migrate --end-older-keepers")
            report(f"{older}: they end within seconds")
        if at.version is None:
            make(connection)
            command.stamp(config, "head")
        else:
            for revision in scripts.iterate_revisions("head", at.version):
                if prepare := getattr(revision.module, "prepare", None):
                    report("copies rows whose columns change, while programs read and write")
                    with _migration_connection(url, "AUTOCOMMIT") as beside, blocking.watched(beside):
                        prepare(beside)
            with blocking.watched(connection):
                # Lock them for this transaction, in one order. Afterwards nothing waits for a lock.
                tables = altered_tables(connection, scripts, at.version)
                connection.execute(text(LOCK_TIMEOUT))
                if tables:
                    rows = connection.execute(text(LOCKED_ROWS), {"tables": tables}).scalar_one()
                    report(f"locks these tables until they are changed, for about a second: {rows}")
                    connection.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
                command.upgrade(config, "head")
                while steps := [step.statement for step in _steps(connection) if step.within]:
                    connection.exec_driver_sql(steps[0], execution_options=_AS_IT_STANDS)
        if _status(connection).runs_from != since:
            connection.execute(text(f"COMMENT ON TABLE alembic_version IS 'runs from {since}'"))
        connection.exec_driver_sql(ENSURE_PARTITIONS, {"months_ahead": MONTHS_AHEAD, "by": ""})
        if missing := roles.apply_grants(connection):
            report(missing)
        return _status(connection).version or ""


def schema_status(url: str) -> SchemaStatus:
    """Return the schema status of the database at `url`, with the server's clock."""
    with looked_at(url) as connection:

        def row(statement: str) -> Any:
            return connection.execute(statement.encode()).fetchone()

        [clock] = row("SELECT extract(epoch FROM clock_timestamp())::float8")
        unusable = why_unusable(*row(SERVER))
        version = row(STATUS) if row(THERE)[0] else None
        return SchemaStatus(*(version or (None,)))._replace(clock=clock, unusable=unusable)


def make(connection: Connection, files: Sequence[Path] = FILES) -> None:
    """Create today's schema in an empty database, without its version."""
    home, schema = connection.exec_driver_sql(_SCHEMA).one()
    for file in files:
        sql = file.read_text(encoding="utf-8").replace(":home", home).replace(":schema", schema)
        connection.exec_driver_sql(sql, execution_options=_AS_IT_STANDS)


def altered_tables(connection: Connection, scripts: ScriptDirectory, version: str) -> list[str]:
    """Return the existing tables that migrations after `version` alter, by their `alters`.

    If a migration has no `alters`, all tables are returned.
    """
    there = list(connection.scalars(text(TABLES)))
    waiting = [revision.module for revision in scripts.iterate_revisions("head", version)]
    if not all(hasattr(migration, "alters") for migration in waiting):
        return there
    altered = {table for migration in waiting for table in migration.alters}
    return [table for table in there if table in altered]


@contextmanager
def _alone(url: str, report: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a whole run while the context is active: that of an open transaction, for poolers.

    An index that is made concurrently waits for each transaction with a snapshot. This transaction has none. A
    statement with parameters would leave a snapshot until the next statement.
    """
    with _migration_connection(url) as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        while not connection.exec_driver_sql(TRY_RUN_LOCK, execution_options=_AS_IT_STANDS).scalar_one():
            report("another migrate is at work: waiting for its end")
            time.sleep(LOOKS_AGAIN_S)
        yield


def _complete(url: str, report: Callable[[str], object]) -> None:
    """Execute the steps behind the migrations, one at a time; each is derived from what exists by then."""
    done = None
    with (
        _migration_connection(url, "AUTOCOMMIT") as connection,
        BlockerWatch(url, report).watched(connection),
    ):
        while steps := [step for step in _steps(connection) if not step.within]:
            if done is None:
                rows = sum(step.rows for step in steps)
                report(
                    f"indexes and checks, while programs read and write: {rows} rows to read,"
                    f" about {rows * SECONDS_A_MILLION / 1e6:.0f} s ({SECONDS_A_MILLION:g} s a million)"
                )
            step = steps[0]
            if step.statement == done:
                raise SchemaUnavailable(f"{step.statement}: PostgreSQL did this, and it is still to do")
            if step.rows:
                report(f"{step.statement}, {step.rows} rows; {len(steps)} steps to do")
            # A statement with CONCURRENTLY waits for others' transactions, and keeps nobody waiting.
            bound = "" if "CONCURRENTLY" in step.statement else f"{LOCK_TIMEOUT}; "
            try:
                connection.exec_driver_sql(bound + step.statement, execution_options=_AS_IT_STANDS)
                done = step.statement
            except SQLAlchemyError as error:
                if sqlstate(error) not in BUSY | GONE:
                    raise
                time.sleep(PAUSES_S[0])


def _steps(connection: Connection) -> list[Any]:
    return list(connection.exec_driver_sql(completion.STEPS, completion.INDEXES))


class BlockerWatch:
    """Finds the sessions that block another one, by a thread that queries PostgreSQL; `who` is one line.

    `report` is called with sessions that block it for `LOCK_S_MAX` seconds.
    """

    def __init__(self, url: str, report: Callable[[str], object] = lambda _: None) -> None:
        self.who = ""
        self._report, self._looks = report, 0
        self._url = plain_url(url)

    @contextmanager
    def watched(self, connection: Connection) -> Iterator[None]:
        """Watch the session of this connection for blockers while the context is active."""
        pid, is_over = connection.scalar(text("SELECT pg_backend_pid()")), threading.Event()
        looking = threading.Thread(target=self._look, args=(pid, is_over), daemon=True)
        looking.start()
        try:
            yield
        finally:
            is_over.set()
            looking.join(CONNECT_TIMEOUT_S)

    def _look(self, pid: int, is_over: threading.Event) -> None:
        with (
            suppress(psycopg.Error),
            psycopg.connect(
                self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, prepare_threshold=None
            ) as connection,
        ):
            while not is_over.wait(LOOKS_AGAIN_S):
                rows = connection.execute(BLOCKING, (pid,)).fetchall()
                who = "; ".join(row[0] for row in rows[:PLACES_TOLD_MAX])
                self._looks = self._looks + 1 if who == self.who else 0
                self.who = who or self.who
                if who and self._looks * LOOKS_AGAIN_S >= LOCK_S_MAX:
                    self._report(f"waits for {who}")


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


@contextmanager
def _migration_connection(url: str, isolation: Any = "READ COMMITTED") -> Iterator[Connection]:
    """Yield a connection with one transaction; errors are reduced to their first line, without values."""
    engine = create_engine(
        dialect_url(url),
        poolclass=NullPool,
        isolation_level=isolation,
        hide_parameters=True,
        connect_args=CONNECT | _NAMED,
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
