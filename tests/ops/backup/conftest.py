"""Where a backup is restored to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

_numbers = itertools.count(1)


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """A database of nothing."""
    name = f"restored_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        yield postgres.rsplit("/", 1)[0] + "/" + name
        admin.execute(f"drop database {name} with (force)")
