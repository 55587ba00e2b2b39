"""What many keys in turn cost beside one key, and what a worker asks of Redis that has nothing to do.

One deployment, as the bench starts it, whose keeper stands still. Windows in which one key calls, a few do,
as many as there are connections, and all of them in turn follow each other, so what else the machine does
meets all. Calls of one key that leave together share its accounts in Redis, those of a few share nothing:
what it takes to know many is what all cost beside a few. Prints a line of JSON: microseconds of CPU a call
of gateway and Redis, medians, and the medians of ratios within a round; then what an idle worker asks.
Usage: python -m tests.bench.in_turn [--keys 10000] [--rounds 7] [--seconds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import redis

from tests.bench.contenders import Contender, Stage, upstream
from tests.bench.load import Traffic, saturate
from tests.bench.machine import BenchError, Placement, cpu_s, family, install_tools, prefer
from tests.bench.tollkeeper import tollkeeper

CONNECTIONS, IDLE_S, SETTLED_S = 32, 20.0, 3.0
# Gateway and Redis, microseconds of CPU a call.
Cost = tuple[float, float]


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="in_turn", description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000, help="each of an organization of its own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window")
    parser.add_argument("--compiled", type=Path, help="a copy whose hot path is compiled (`make compile`)")
    parser.add_argument("--nice", type=int, default=0, help="priority of all programs, -20 (root) to 19")
    options = parser.parse_args()
    install_tools(print)
    placement = Placement.of_this_machine()
    os.sched_setaffinity(0, {placement.client})
    with tempfile.TemporaryDirectory(prefix="tollkeeper-in-turn-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stage = Stage(folder, Path("build/bench").resolve(), placement, print)
        stage.callers = stage.organizations = options.keys
        stage.compiled = None if options.compiled is None else options.compiled.resolve()
        try:
            upstream(stage)
            (one,) = tollkeeper(stage, ["tollkeeper"])
            if options.nice:
                everyone = [pid for program in stage.programs for pid in family(program.pid)]
                prefer([os.getpid(), *everyone], options.nice)
            print(json.dumps(_measure(stage, one, options.rounds, options.seconds)))
        except BenchError as error:
            print(f"in_turn: {error}", file=sys.stderr)
            return 1
        finally:
            stage.stop()
    return 0


def _measure(stage: Stage, one: Contender, rounds: int, seconds: float) -> dict[str, object]:
    every = one.traffic
    lone, few = (Traffic(every.keys[:count], every.users, every.traced) for count in (1, CONNECTIONS))
    _cost(stage, one, lone, seconds)
    _cost(stage, one, every, 3 * seconds)  # each has called
    found = [[_cost(stage, one, who, seconds) for who in (lone, few, every)] for _ in range(rounds)]
    return {
        "keys": len(every.keys),
        "load": os.getloadavg()[0],
        "one_key_us": _medians([costs[0] for costs in found]),
        "few_us": _medians([costs[1] for costs in found]),
        "in_turn_us": _medians([costs[2] for costs in found]),
        "in_turn_beside_one_key": _medians([_ratio(costs[2], costs[0]) for costs in found]),
        "in_turn_beside_few": _medians([_ratio(costs[2], costs[1]) for costs in found]),
        "idle_commands_s": _idle(one),
    }


def _ratio(cost: Cost, other: Cost) -> Cost:
    return cost[0] / other[0], cost[1] / other[1]


def _medians(costs: list[Cost]) -> list[float]:
    return [round(statistics.median(part), 3) for part in zip(*costs, strict=True)]


def _cost(stage: Stage, one: Contender, traffic: Traffic, seconds: float) -> Cost:
    one.before()
    before = cpu_s(one.gateway), cpu_s(one.redis_pids)
    found = saturate(
        one.port, traffic, core=stage.placement.client, connections=CONNECTIONS, seconds=seconds,
        folder=stage.folder,
    )  # fmt: skip
    gateway, counters = cpu_s(one.gateway) - before[0], cpu_s(one.redis_pids) - before[1]
    one.after()
    if found.errors or not found.requests:
        raise BenchError(f"{found.errors} of {found.requests} calls failed")
    return 1e6 * gateway / found.requests, 1e6 * counters / found.requests


def _idle(one: Contender) -> dict[str, float]:
    """The commands a second that the gateway gives while nobody calls; the keeper stands still."""
    assert one.counters is not None
    one.before()
    time.sleep(SETTLED_S)
    before = _given(one.counters)
    time.sleep(IDLE_S)
    after = _given(one.counters)
    one.after()
    rates = {verb: (count - before.get(verb, 0)) / IDLE_S for verb, count in after.items() if verb != "info"}
    each = {verb: round(rate, 2) for verb, rate in sorted(rates.items()) if rate > 0}
    return {"all": round(sum(each.values()), 2), **each}


def _given(counters: redis.Redis) -> dict[str, int]:
    stats: dict[str, dict[str, int]] = counters.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}


if __name__ == "__main__":
    sys.exit(main())
