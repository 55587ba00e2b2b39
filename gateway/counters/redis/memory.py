"""How much memory Redis uses, of how much it may."""

from __future__ import annotations

from gateway.core.wait import in_task
from gateway.counters.redis.wire import Wire, encode


async def memory(wire: Wire) -> tuple[int, int]:
    """Bytes used and the most bytes allowed (0: no limit). May raise CountersUnavailable."""
    answer = await in_task(wire.send(encode(b"INFO", b"memory")))
    lines = answer.decode(errors="replace").splitlines() if isinstance(answer, bytes) else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
