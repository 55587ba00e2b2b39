"""Where a backup is restored to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.databases import own_database

_numbers = itertools.count(1)


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """A database of nothing."""
    with own_database(postgres, f"restored_{os.getpid()}_{next(_numbers)}") as url:
        yield url
