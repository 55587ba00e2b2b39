"""How long nobody is served behind a failover, beyond what its servers take, by the number of tenants.

A keeper, a gateway worker, an upstream, the embedded PostgreSQL. Redis is a cluster of three primaries with
a replica each, or a primary and a replica that a sentinel watches. The primary is killed, or hands over as
planned. Each caller of a partition that it had, one of each, calls again and again.

- *servers*: from the kill, or the command, until they name another primary.
- *first*, *last*: from that moment until the first of these callers was served, and the last.
- *CPU*: of the keeper from the kill until then, which a busy machine tells no lies about.

Prints a line a round and the medians. Usage: python -m tests.bench.failover [--tenants 20 4000] [--rounds 5]
[--kinds cluster planned sentinel]
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.flush import postgres
from tests.bench.machine import cpu_s
from tests.bench.page import PAGE, publish
from tests.bench.recovery import Installation
from tests.deploy.deployment import answers
from tests.sentinel_pair import SentinelPair
from tests.valkey_cluster import ValkeyCluster
from tests.waiting import wait_until

SIZES = (20, 4_000)
ROUNDS = 5
WITHIN_S = 120.0
LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class FailoverTimes:
    """One failover, in seconds: what the servers took, and what came behind that."""

    redis: str
    tenants: int
    servers_s: float
    first_s: float
    last_s: float
    keeper_cpu_s: float


class Cluster:
    """Three primaries and a replica of each; the primary that is struck is that of the first caller."""

    name = "cluster"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.servers = ValkeyCluster(folder)
        self.url = self.servers.url
        self.start, self.stop, self.empty = self.servers.start, self.servers.stop, self.servers.empty
        self.mend = self.servers.mend

    def strike(self, callers: dict[int, str]) -> tuple[float, dict[int, str], Callable[[], bool]]:
        """Kill one; when that was, whose primary it was, and what says that there is another one."""
        victim = self.servers.owner(next(iter(callers)))
        had = self.servers.partitions_of(victim)
        follower = self.servers.replica_of(victim)
        began = time.monotonic()
        victim.stop(signal.SIGKILL)
        struck = {one: key for one, key in callers.items() if one in had}
        return began, struck, lambda: follower.info()["role"] == "master"


class Sentinel:
    """A primary, a replica, and who watches them."""

    name = "sentinel"

    def __init__(self, folder: Path) -> None:
        self.pair = SentinelPair(folder)
        self.url = self.pair.url
        self.start, self.stop, self.mend = self.pair.start, self.pair.stop, self.pair.mend

    def empty(self) -> None:
        """Remove every key."""
        with self.pair.primary.connect() as client:
            client.flushall()
            client.function_flush()

    def strike(self, callers: dict[int, str]) -> tuple[float, dict[int, str], Callable[[], bool]]:
        """Kill the primary; see above."""
        next_one = self.pair.replica.port
        began = time.monotonic()
        self.pair.primary.stop(signal.SIGKILL)
        return began, callers, lambda: self.pair.named() == next_one


class Planned(Cluster):
    """The same cluster, whose primary hands over to its replica once that has all: `CLUSTER FAILOVER`."""

    name = "cluster, planned"

    def strike(self, callers: dict[int, str]) -> tuple[float, dict[int, str], Callable[[], bool]]:
        """Ask one to hand over; see above."""
        primary = self.servers.owner(next(iter(callers)))
        had = self.servers.partitions_of(primary)
        follower = self.servers.replica_of(primary)
        began = time.monotonic()
        follower.do("CLUSTER FAILOVER")
        struck = {one: key for one, key in callers.items() if one in had}
        return began, struck, lambda: follower.info()["role"] == "master"


KINDS: dict[str, type[Cluster | Sentinel]] = {"cluster": Cluster, "planned": Planned, "sentinel": Sentinel}


def main() -> int:
    """Strike, print."""
    parser = argparse.ArgumentParser(prog="failover")
    parser.add_argument("--tenants", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--page", nargs="?", const=PAGE, type=Path)
    options = parser.parse_args()
    told: list[FailoverTimes] = []
    for kind in map(KINDS.__getitem__, options.kinds):
        for count in options.tenants:
            told += measure(kind, count, options.rounds)
            if options.page is not None:  # an end that comes too early keeps what is there
                publish(options.page, "failover", table(told))
    print(table(told))
    return 0


def measure(kind: type[Cluster | Sentinel], count: int, rounds: int) -> list[FailoverTimes]:
    """So many failovers, one after the other, with so many tenants."""
    found: list[FailoverTimes] = []
    with tempfile.TemporaryDirectory(prefix="tollkeeper-failover-") as folder, postgres() as url:
        servers = kind(Path(folder) / "redis")
        servers.start()
        installation = Installation(Path(folder), url, servers.url)
        try:
            installation.keeper.stop()
            installation.grow(count)
            servers.empty()
            began = time.monotonic()
            port = installation.start_keeper()
            installation.served(began)
            for number in range(1 + rounds):  # a keeper that has just started has more to do
                wait_until(lambda: answers(port), WITHIN_S)
                installation.served(time.monotonic())
                told = strike(servers, installation, count)
                print(told, f"load {os.getloadavg()[0]:.0f}", flush=True)
                found += [told] if number else []
                servers.mend()
        finally:
            installation.stop()
            servers.stop()
    return found


def strike(servers: Cluster | Sentinel, installation: Installation, count: int) -> FailoverTimes:
    """One failover, and who is served again when."""
    keeper = [installation.keeper.popen.pid]
    before = cpu_s(keeper)
    began, struck, over = servers.strike(installation.callers)
    while not over():
        if time.monotonic() - began > WITHIN_S:
            raise TimeoutError("nobody took over")
        time.sleep(LOOK_S)
    named = time.monotonic()
    first, last = installation.served(named, struck)
    return FailoverTimes(servers.name, count, named - began, first, last, cpu_s(keeper) - before)


def table(told: Sequence[FailoverTimes]) -> str:
    """The median of each figure, and the worst of the last, as a page has them."""
    lines = [
        "| Redis | Tenants | Rounds | Servers, s | First served, s | Last, s | At worst, s | Keeper CPU, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, int], list[FailoverTimes]] = {}
    for one in told:
        groups.setdefault((one.redis, one.tenants), []).append(one)
    for (redis, tenants), each in groups.items():
        middle = [median(getattr(one, name) for one in each) for name in ("servers_s", "first_s", "last_s")]
        middle += [max(one.last_s for one in each), median(one.keeper_cpu_s for one in each)]
        said = " | ".join(f"{one:.2f}" for one in middle)
        lines.append(f"| {redis} | {tenants:,} | {len(each)} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
