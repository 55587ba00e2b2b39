"""What reserve + settle cost the Redis core: CPU microseconds a call, next to an empty script.

`python -m tests.bench.scripts [--against REVISION] [--loopback] [--runs N]`. A server of its own, append-only
file on and reached by a socket, as shipped; key, user, tenant and organization limits, a token quota and a
ledger entry a call; the same with credits, and with units by tiers under a cap. Pipelined in batches of 4
and 16.
Variants take turns within every run, so what slows the machine for a moment slows them alike;
minimum and median over the runs.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import redis

from gateway.core.billing.pricing import Pricing, Tier
from gateway.core.model import HoldRequest, Limits, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.redis import keys, scripts
from gateway.local.embedded.valkey import ENVIRONMENT
from tests.builders import CHAT, TTL_MS, World
from tests.conftest import ValkeyServer

BATCHES = (4, 16)
CALLS_A_RUN = 800
NUMBERS = count(1)
WIDE = Limits(requests_per_minute=10**6, tokens_per_minute=10**9, concurrency=10**5)
DONE = (struct.pack("<d", 1), struct.pack("<q", 1))
PAID = Service(id=2, key="images", meter="consumption", counts_tokens=True, credits=1)
TIERED = Service(
    id=4, key="search", meter="pay_per_use", counts_tokens=True,
    pricing=Pricing(tiers=(Tier(10_000, Decimal("0.001")), Tier(None, Decimal("0.0008")))),
)  # fmt: skip
ASSEMBLE = """
import json
from dataclasses import asdict
from gateway.counters.redis.scripts import library
print(json.dumps(asdict(library())))
"""
EMPTY = "#!lua name=empty\nredis.register_function('empty', function() return 1 end)"
Commands = list[tuple[Any, ...]]


@dataclass(slots=True)
class Cost:
    """One variant's runs: CPU and script time a pair, in microseconds."""

    cpu_us: list[float]
    script_us: list[float]

    def __str__(self) -> str:
        return (
            f"CPU {min(self.cpu_us):6.1f} {median(self.cpu_us):6.1f}   "
            f"script {min(self.script_us):6.1f} {median(self.script_us):6.1f}"
        )


class Variant:
    """A pair of commands a call: first all of a batch's first ones, then all the second ones."""

    def __init__(self, name: str, pair: Callable[[int], tuple[tuple[Any, ...], tuple[Any, ...]]]) -> None:
        self.name = name
        self._pair = pair

    def batches(self, size: int) -> list[tuple[Commands, Commands]]:
        """The commands of one run, made before its clock starts."""
        made = []
        for _ in range(CALLS_A_RUN // size):
            number = next(NUMBERS)
            pairs = [self._pair(number) for _ in range(size)]
            made.append(([first for first, _ in pairs], [second for _, second in pairs]))
        return made


def of_scripts(
    world: World, name: str, library: scripts.Library, service: Service = CHAT, credits_: int = 0
) -> Variant:
    """reserve and settle of a library."""
    if not world.client.function_list(library.name):
        world.client.function_load(library.text)
    reserve, settle = library.functions["reserve"], library.functions["settle"]

    def pair(batch: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        request = HoldRequest(world.caller, str(uuid.uuid4()), "ann", service, 300, 300, credits_)
        used = Settlement(
            world.caller, request.request_id, "ann", service, charge=True, tokens=270, credits=credits_,
            metadata=b'{"model":"m","streamed":false,"status":200,"duration_ms":812,"input":20,"output":250}',
        )  # fmt: skip
        first = packing.reserve(world.run_id, 1, TTL_MS, request, 2 * batch)
        second = packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=2 * batch + 1)
        return _fcall(reserve, first), _fcall(settle, second)

    return Variant(name, pair)


def empty(world: World) -> Variant:
    """Two scripts that do nothing: what calling any script costs."""
    world.client.function_load(EMPTY)
    return Variant("return 1, twice", lambda _: (("FCALL", "empty", 0), ("FCALL", "empty", 0)))


def _fcall(function: str, call: packing.Call) -> tuple[Any, ...]:
    names, arguments = call
    return ("FCALL", function, len(names), *names, *arguments)


def measure(world: World, variants: list[Variant], size: int, runs: int) -> dict[str, Cost]:
    """Take turns `runs` times; the first turn warms up and is not counted."""
    costs = {variant.name: Cost([], []) for variant in variants}
    for run in range(runs + 1):
        for variant in variants:
            batches = variant.batches(size)
            cpu, script = _spent(world.client)
            for first, second in batches:
                _send(world.client, first)
                _send(world.client, second)
            cpu_after, script_after = _spent(world.client)
            if run:
                costs[variant.name].cpu_us.append((cpu_after - cpu) / CALLS_A_RUN)
                costs[variant.name].script_us.append((script_after - script) / CALLS_A_RUN)
            world.client.delete(keys.outbox(world.p))
    return costs


def _send(client: redis.Redis, commands: Commands) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py
        answers = pipeline.execute()
    assert all(answer == 1 or answer[:8] in DONE for answer in answers)


def _spent(client: redis.Redis) -> tuple[float, float]:
    """CPU and script microseconds of the server so far."""
    cpu = client.info("cpu")
    stats = client.info("commandstats")
    return (
        1e6 * (float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])),
        float(stats.get("cmdstat_fcall", {}).get("usec", 0)),
    )


@contextmanager
def bench_world(*, loopback: bool = False) -> Iterator[World]:
    """A server as shipped, reached by its socket unless `loopback`; one caller, limited at every scope."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/valkey.sock"
        server = ValkeyServer(
            Path(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--unixsocket", path
        )
        server.environment = dict(ENVIRONMENT)
        server.start()
        try:
            world = World(server.url if loopback else f"unix://{path}?db=0")
            world.define_organization(WIDE, cap=10**15)
            world.define_tenant(WIDE, users=WIDE)
            world.define_key(WIDE)
            world.plan(10**15, reset_interval="monthly")
            world.grant("credits", 10**12)
            yield world
            world.client.close()
        finally:
            server.stop()


def at_revision(revision: str) -> scripts.Library:
    """The scripts of a git revision, as its own assembler has them; its layouts must be of this tree."""
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "archive", revision, "gateway", "lua"]
        packed = subprocess.run(archive, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        made = subprocess.run(
            [sys.executable, "-c", ASSEMBLE], cwd=folder, capture_output=True, text=True, check=True
        )
    return scripts.Library(**json.loads(made.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REVISION", help="scripts of this git revision take turns too")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--loopback", action="store_true", help="by TCP, as a Redis elsewhere is reached")
    options = parser.parse_args()
    with bench_world(loopback=options.loopback) as world:
        variants = [
            empty(world),
            of_scripts(world, "reserve + settle", scripts.library()),
            of_scripts(world, "and credits", scripts.library(), PAID, 1),
            of_scripts(world, "and units by tiers", scripts.library(), TIERED),
        ]
        if options.against:
            variants.append(of_scripts(world, options.against, at_revision(options.against)))
        print("Redis microseconds a pair: minimum and median")
        for size in BATCHES:
            for name, cost in measure(world, variants, size, options.runs).items():
                print(f"batch of {size:2}  {name:20} {cost}")


if __name__ == "__main__":
    main()
