"""What a gateway worker says of itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway import app


async def test_a_worker_says_when_redis_goes_and_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "REDIS_LOOK_S", 0.0)
    seen, said = iter([True, False, False, True, True]), []

    def connected() -> bool:
        try:
            return next(seen)
        except StopIteration:
            raise asyncio.CancelledError from None

    with suppress(asyncio.CancelledError):
        await app.tell_of_redis(connected, lambda event, level: said.append((event, level)))
    assert said == [("redis is away", "error"), ("redis is back", "info")]
