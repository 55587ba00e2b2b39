"""The data plane runs on uvloop, so its tests do."""

from __future__ import annotations

import pytest
import uvloop


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()
