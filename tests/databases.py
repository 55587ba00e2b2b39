"""Databases that tests have for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def own_database(postgres: str, name: str, template: str = "") -> Iterator[str]:
    """The URL of a new database of this server, like the template where one is named; it goes afterwards."""
    like = f" template {template}" if template else ""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name}{like}".encode())
    yield postgres.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)".encode())
