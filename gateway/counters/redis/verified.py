"""The word of a server that a keeper has verified all that it has: whatever is not there does not exist."""

from __future__ import annotations

from contextlib import suppress

from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable


def ask_word(wire: Wire) -> Wait[Reply]:
    """Ask for the history under which all of it was verified."""
    return wire.send(encode(b"GET", keys.verified(wire.part.anchor).encode()), upkeep=True)


async def says_verified(wire: Wire, word: Wait[Reply]) -> bool:
    """Whether its word names the history it has now; False where it does not answer."""
    with suppress(CountersUnavailable):
        return await in_task(word) == wire.run_id
    return False
