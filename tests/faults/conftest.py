"""The deployment that the rows of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.short import Shared


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    one = Shared()
    yield one
    one.drop()
