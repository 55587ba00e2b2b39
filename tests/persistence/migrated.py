"""A migrated database a test, cloned from one template a session."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

from persistence import migrate

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    name = f"template_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name}")
    migrate.upgrade(postgres.rsplit("/", 1)[0] + "/" + name)
    return name


@pytest.fixture
def migrated(postgres: str, template: str) -> Iterator[str]:
    name = f"m{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}")
    yield postgres.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)")
