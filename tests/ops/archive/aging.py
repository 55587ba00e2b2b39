"""Databases whose months become old."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import pytest

from tests.persistence.scenario import rows_of

Clones = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def clones(postgres: str, template: str) -> Clones:
    """Databases of their own: archiving changes the schema."""
    numbers = itertools.count(1)

    @contextmanager
    def clone() -> Iterator[str]:
        name = f"aging{os.getpid()}_{next(numbers)}"
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute(f"create database {name} template {template}")
            yield postgres.rsplit("/", 1)[0] + "/" + name
            admin.execute(f"drop database {name} with (force)")

    return clone


def months_made(url: str, first: str, months: int) -> None:
    """Partitions as a keeper would have made them ahead."""
    rows_of(url, "SELECT ensure_partitions(%s::timestamptz, %s)", [first, months])
