"""Logs say when Redis goes and when it is back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.run.health import tell_of_redis


async def test_it_is_said_when_redis_goes_and_when_it_is_back() -> None:
    """Of a cluster also when more or fewer partitions are away."""
    said: list[tuple[str, str, int, str]] = []
    seen = iter([0, 21, 21, 64, 43, 0, 0])

    class Seen:
        trouble = "refused"

        @property
        def away(self) -> int:
            try:
                return next(seen)
            except StopIteration:
                raise asyncio.CancelledError from None

    def say(event: str, *, level: str, partitions: int = 0, why: str = "") -> None:
        said.append((event, level, partitions, why))

    with suppress(asyncio.CancelledError):
        await tell_of_redis(Seen(), say, look_s=0.0)
    assert said == [
        *(("redis is away", "error", away, "refused") for away in (21, 64, 43)),
        ("redis is back", "info", 0, ""),
    ]
