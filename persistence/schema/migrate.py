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
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gateway.core.certificate import UnreadableCertificate
from gateway.errors import SchemaUnavailable
from persistence.complaint import complaint, quiet
from persistence.engine import CONNECT_TIMEOUT_S, dialect_url
from persistence.keeper.watch import certificate_end
from persistence.schema import grants, partitions

# Advisory lock classes of the project: 7800 the flusher's partitions, 7801 the schema,
# 7802 allocation, 7803 invoices, 7804 the count of losses, 7805 prices,
# 7806 budgets, 7807 checkpoints, 7808 invoices on schedule, 7809 configuration,
# 7810 archiving, 7811 a proof of a backup.
SCHEMA_LOCK = (7801, 1)
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(url: str, told: Callable[[str], object] = lambda _: None) -> str:
    """Migrate the database at `url` to the newest schema, its partitions and rights; answers its version.

    What an administrator should do besides is `told` in one line.
    `SchemaUnavailable` says in one line what PostgreSQL, or the migrations, do not allow.
    """
    with _connected(url) as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, :key)"),
            {"class": SCHEMA_LOCK[0], "key": SCHEMA_LOCK[1]},
        )
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.execute(partitions.ENSURE, {"months_ahead": partitions.MONTHS_AHEAD})
        if missing := grants.apply(connection):
            told(missing)
        return _version(connection) or ""


def schema_version(url: str) -> str | None:
    """Version of the database at `url`; None where nothing was migrated yet."""
    with _connected(url) as connection:
        return _version(connection)


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
