"""The embedded PostgreSQL of a data directory, started for one command and without the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.local.announce import Voice
from gateway.local.data_directory import opened
from gateway.run.supervisor.servers import start_postgres
from gateway.run.supervisor.supervisor import Supervisor


@asynccontextmanager
async def postgres_alone(data_dir: Path) -> AsyncIterator[str]:
    """Start it, lend its URL, stop it."""
    with opened(data_dir) as data:
        supervisor = Supervisor(data, Voice())
        try:
            yield await start_postgres(supervisor, data.secrets()["database_password"])
        finally:
            await supervisor.stop()
