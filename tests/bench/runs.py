"""How many bytes a run takes in Redis and in each gateway worker: `python -m tests.bench.runs [RUNS]`.

A tree of runs, 8 to each parent, opened one after another by a worker that remembers them. What Redis keeps
besides for a minute, the entry of the outbox, is counted apart.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import tracemalloc
from typing import cast

from gateway.core.accounts.runs import read_run
from gateway.counters.admission.runs import Runs
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from tests.bench.scripts import served
from tests.builders import World, driven

RUNS = 2_000


async def measure(url: str, count: int) -> None:
    """Open the runs and print what they took."""
    world = World(url)
    world.plan(None)
    wire = RedisConnection(parse_url(url), time.monotonic)
    await wire.open()
    runs = Runs(wire, time.monotonic, time.time, os.urandom)
    fields = [f"agent-{n}; max=5.00" + (f"; parent=agent-{(n - 1) // 8}" if n else "") for n in range(count)]
    outbox = keys.outbox(world.p)
    await driven(runs.find(world.caller, read_run("first")))
    before, entries = _bytes(world), cast("int", world.client.memory_usage(outbox, samples=0))
    tracemalloc.start()
    for field in fields:
        await driven(runs.find(world.caller, read_run(field)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    entries = cast("int", world.client.memory_usage(outbox, samples=0)) - entries
    print("| runs | Redis, bytes a run | its entry | worker, bytes a run |\n|---:|---:|---:|---:|")
    stored = _bytes(world) - before - entries
    print(f"| {count} | {stored / count:.0f} | {entries / count:.0f} | {held / count:.0f} |")
    await wire.close()
    world.client.close()


def _bytes(world: World) -> int:
    return int(world.client.info("memory")["used_memory"])


if __name__ == "__main__":
    with served(loopback=True) as url:
        asyncio.run(measure(url + "1", int(sys.argv[1]) if len(sys.argv) > 1 else RUNS))
