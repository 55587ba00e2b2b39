"""The process for people says what is away, to everybody who asks whether it is ready."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.conftest import ValkeyServer
from tests.databases import own_database
from tests.deploy.processes import get
from tests.persistence.migrated import template_of
from tests.stage import Stage
from tests.waiting import wait_until


def allow_connections(postgres: str, name: str, allowed: str) -> None:
    """Set whether a database takes connections, and end those that it has."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )


def test_readyz_of_a_keeper_names_the_database_and_the_server_that_are_away(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], postgres: str
) -> None:
    server, name = own_valkey(), f"keeper_readiness_{os.getpid()}"
    with own_database(postgres, name, template_of(postgres)) as database:
        stage = Stage(tmp_path / "data", server.url, database)

        def reasons() -> Any:
            return json.loads(get(urlsplit(stage.admin_url).port or 0, "/readyz")[1]).get("reasons", {})

        try:
            wait_until(lambda: not reasons())
            allow_connections(postgres, name, "false")
            said = wait_until(lambda: reasons().get("postgresql"))
            assert said == (
                "it cannot be used: let it take connections: ALTER DATABASE … ALLOW_CONNECTIONS true"
            )
            allow_connections(postgres, name, "true")
            wait_until(lambda: not reasons())
            assert server.process
            server.process.send_signal(signal.SIGSTOP)
            try:
                said = wait_until(lambda: reasons().get("redis"))
                assert said == f"127.0.0.1:{server.port}: does not answer in time"
                assert reasons()["every_partition"] == said
            finally:
                server.process.send_signal(signal.SIGCONT)
            wait_until(lambda: not reasons())
        finally:
            stage.stop()
