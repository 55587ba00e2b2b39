"""Bring a database to the newest schema: in one transaction, under a lock, safe to repeat.

Two migrators at once wait for each other; the second finds nothing left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gateway.core.certificate import UnreadableCertificate
from gateway.errors import SchemaUnavailable, StartError
from persistence.complaint import complaint, quiet
from persistence.engine import CONNECT_TIMEOUT_S, dialect_url
from persistence.keeper.watch import certificate_end
from persistence.schema import grants, partitions
from persistence.schema.version import STATUS, THERE, SchemaStatus, refuse_other

# Advisory lock classes of the project: 7800 the flusher's partitions, 7801 the schema,
# 7802 allocation, 7803 invoices, 7804 the count of losses, 7805 prices,
# 7806 budgets, 7807 checkpoints, 7808 invoices on schedule, 7809 configuration,
# 7810 archiving, 7811 a proof of a backup, 7812 what an organization makes,
# 7813 a comparison of everybody, 7814 addresses that are asked.
SCHEMA_LOCK = (7801, 1)
MIGRATIONS = Path(__file__).parent / "migrations"


# Keepers that are there and do not know so much; before 0079 nobody said it, before 0070 nobody was listed.
OLDER = """
SELECT place, known FROM (
    SELECT place, coalesce(to_jsonb(k) ->> 'schema_version', '0078') AS known
      FROM keeper AS k WHERE until > clock_timestamp()
) AS there WHERE known < :since ORDER BY place"""
PLACES_TOLD_MAX = 5
LOOKS_AGAIN_S = 0.2


def upgrade(
    url: str,
    told: Callable[[str], object] = lambda _: None,
    *,
    end_older: bool = False,
    wait_s: float = 0.0,
    migrations: Path = MIGRATIONS,
) -> str:
    """Migrate the database at `url` to the newest schema, its partitions and rights; answers its version.

    What an administrator should do besides is `told` in one line. A newer schema on which this program runs
    is left as it is; `StartError` where it does not run on it, or, unless they may end (`end_older`), where
    keepers are there, and still after `wait_s`, that would not run on the newest one: one that was killed
    is listed for a while.
    `SchemaUnavailable` says in one line what PostgreSQL, or the migrations, do not allow.
    """
    with _connected(url) as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, :key)"),
            {"class": SCHEMA_LOCK[0], "key": SCHEMA_LOCK[1]},
        )
        at = _status(connection)
        if at.version is not None and at.is_newer():
            refuse_other(at)
            told(f"the schema is a newer one, on which programs from {at.runs_from} on run: nothing is to do")
            return at.version
        config = Config()
        config.set_main_option("script_location", str(migrations).replace("%", "%%"))
        config.attributes["connection"] = connection
        scripts = ScriptDirectory.from_config(config)
        if older := _older_keepers(connection, runs_from(scripts), 0.0 if end_older else wait_s):
            if not end_older:
                raise StartError(f"{older}: stop them first, or run tollkeeper migrate --end-older-keepers")
            told(f"{older}: they end within seconds")
        command.upgrade(config, "head")
        _say_runs_from(connection, scripts)
        connection.execute(partitions.ENSURE, {"months_ahead": partitions.MONTHS_AHEAD, "by": ""})
        if missing := grants.apply(connection):
            told(missing)
        return _version(connection) or ""


def schema_status(url: str) -> SchemaStatus:
    """Where the database at `url` stands, and what time it is there."""
    with _connected(url) as connection:
        clock = connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
        return _status(connection)._replace(clock=clock)


def runs_from(scripts: ScriptDirectory) -> str:
    """Since which version of the schema programs run on the newest one: the latest that a migration states.

    One that states none serves no program but its own and later ones.
    """
    return max(getattr(one.module, "runs_from", one.revision) for one in scripts.walk_revisions())


def _older_keepers(connection: Connection, since: str, wait_s: float) -> str:
    """Which keepers are there that a schema serves no longer, on one line; empty once there are none."""
    if not connection.scalar(text("SELECT to_regclass('keeper') IS NOT NULL")):
        return ""
    until = time.monotonic() + wait_s
    while (rows := connection.execute(text(OLDER), {"since": since}).all()) and time.monotonic() < until:
        time.sleep(LOOKS_AGAIN_S)
    found = [f"{place} (knows {known})" for place, known in rows]
    more = len(found) - PLACES_TOLD_MAX
    told = ", ".join(found[:PLACES_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")
    return told and f"keepers run which the schema serves no longer, it serves those who know {since}: {told}"


def _say_runs_from(connection: Connection, scripts: ScriptDirectory) -> None:
    since = runs_from(scripts)
    if _status(connection).runs_from != since:
        connection.execute(text(f"COMMENT ON TABLE alembic_version IS 'runs from {since}'"))


def _status(connection: Connection) -> SchemaStatus:
    if not connection.scalar(text(THERE)):
        return SchemaStatus(None)
    found = connection.execute(text(STATUS)).one_or_none()
    return SchemaStatus(None) if found is None else SchemaStatus(*found)


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """One transaction; whatever goes wrong in it is told by its first line, which has no values in it."""
    engine = create_engine(
        dialect_url(url),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )
    quiet(engine)
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, CommandError) as error:
        first = complaint(error) + _ended(str(getattr(error, "orig", None) or error), url)
        raise SchemaUnavailable(f"the schema of PostgreSQL cannot be used: {first}") from error


def _ended(said: str, url: str) -> str:
    """Libpq says that it does not trust a certificate, but not that it has ended."""
    if "certificate verify failed" in said:
        with suppress(OSError, UnreadableCertificate):
            end = certificate_end(url)
            if end is not None and end < time.time():
                return f" (it ended on {datetime.fromtimestamp(end, UTC):%Y-%m-%d})"
    return ""
