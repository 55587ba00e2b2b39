"""Bring a database to the newest schema: in one transaction, under a lock, safe to repeat.

Two migrators at once wait for each other; the second finds nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from persistence import partitions
from persistence.engine import CONNECT_TIMEOUT_S, dialect_url

# Advisory lock classes of the project: 7800 the flusher's partitions, 7801 the schema.
SCHEMA_LOCK = (7801, 1)


def upgrade(url: str) -> str:
    """Migrate the database at `url` to the newest schema and make partitions; answers its version."""
    engine = create_engine(
        dialect_url(url), poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
    )
    with engine.begin() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, :key)"),
            {"class": SCHEMA_LOCK[0], "key": SCHEMA_LOCK[1]},
        )
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.execute(partitions.ENSURE, {"months_ahead": partitions.MONTHS_AHEAD})
        return _version(connection) or ""


def schema_version(url: str) -> str | None:
    """Version of the database at `url`; None where nothing was migrated yet."""
    engine = create_engine(
        dialect_url(url), poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
    )
    with engine.connect() as connection:
        return _version(connection)


def newest_version() -> str:
    """The version this program was written for."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
