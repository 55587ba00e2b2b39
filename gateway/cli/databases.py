"""Finds the database for a command: by options, a configuration file, or a running `up`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.errors import StartError

if TYPE_CHECKING:
    from gateway.settings.settings import Settings

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Data directory of a running `up`, if no database is named.")
]
Database = Annotated[str | None, typer.Option("--database-url", help="The PostgreSQL in question.")]


def settings_of(config: Path | None, database_url: str | None, data_dir: Path | None) -> Settings:
    from gateway.run.serving import find_home, resolved  # each command loads what it needs

    find_home()
    return resolved(config, database_owner_url=database_url, data_dir=str(data_dir) if data_dir else None)


def owner_url(config: Path | None, database_url: str | None, data_dir: Path | None) -> str:
    """Return the URL for connecting to the database as its owner, from the settings or a running `up`."""
    from gateway.local.data_directory import known_values  # each command loads what it needs
    from gateway.settings.settings import PREFIX

    settings = settings_of(config, database_url, data_dir)
    known = known_values(Path(settings.data_dir), settings.named())
    url = settings.owner_url or known.get("database_owner_url", "")
    if not url:
        raise StartError(
            f"I do not know which database: set {PREFIX}DATABASE_URL, or name the data directory of an `up`"
        )
    return url
