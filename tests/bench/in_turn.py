"""What many keys in turn cost beside one key, and what a worker asks of Redis that has nothing to do.

One deployment, as the bench starts it, whose keeper stands still. Windows in which one key calls, as many as
there are connections, and more of them in turn follow each other, so what else the machine does meets all.
Each key is of an organization of its own. Calls of one key that leave together share its accounts in Redis,
those of a few share nothing, but their states are near at hand: what it takes to *know* many is what all cost
beside a few. Each key of a window has called just before it: whoever was read half a minute ago is read again
with its next call, which calls that come all the time share, and the first after another window would not.
Prints a line of JSON: microseconds of CPU a call of gateway and Redis, medians, and the medians
of ratios within a round; then what an idle worker asks.
Usage: python -m tests.bench.in_turn [--keys 1,32,100,3000,10000] [--rounds 7] [--seconds 5]
    [--connections 32], of which each has one call at a time
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import redis

from persistence.schema import migrate
from tests.bench import stage as staging
from tests.bench.deployment import PEPPER, Filled, key_of
from tests.bench.figures import OURS, Window
from tests.bench.flush import postgres
from tests.bench.load import Traffic
from tests.bench.machine import BenchError
from tests.bench.stage import Contender, Stage, window
from tests.bench.tollkeeper import up

IDLE_S, SETTLED_S = 20.0, 3.0
# Gateway and Redis, microseconds of CPU a call.
Cost = tuple[float, float]


def main() -> int:
    """Measure, and print what was found."""
    parser = staging.parser("in_turn", __doc__)
    parser.add_argument("--keys", default="1,32,100,3000,10000", help="how many call in turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window")
    options = parser.parse_args()
    sizes = [int(one) for one in options.keys.split(",")]

    def measure(stage: Stage) -> None:
        # They are written into PostgreSQL: by the Admin API ten thousand take half an hour.
        with postgres() as server:
            migrate.upgrade(server)
            filled = Filled(server, "crowd")
            filled.make("postgres")
            filled.grow(max(sizes), max(sizes), 0)
            os.environ["TOLLKEEPER_KEY_PEPPER"] = PEPPER
            try:
                running = up(stage, "crowd", stage.compiled, "--database-url", filled.url)
                everyone = tuple(map(key_of, range(max(sizes))))
                one = running.contender(OURS, stage.placement, lambda _: Traffic(everyone))
                stage.prefer(options.nice)
                print(json.dumps(_measure(stage, one, everyone, sizes, options)))
            finally:
                stage.stop()  # before its database

    return staging.on_stage("in_turn", measure, options.compiled)


def _measure(
    stage: Stage, one: Contender, everyone: tuple[str, ...], sizes: Sequence[int], options: argparse.Namespace
) -> dict[str, object]:
    connections = options.connections
    called = _called(stage, one, Traffic(everyone), 2, connections)
    groups = {size: Traffic(everyone[:size]) for size in sizes}
    found: dict[int, list[Cost]] = {size: [] for size in sizes}
    for _ in range(options.rounds):
        for size, who in groups.items():
            _called(stage, one, who, 1, connections)
            cost = _cost(stage, one, options.seconds, who, connections)
            found[size].append((cost.gateway_us, cost.redis_us))
    beside, few = found[sizes[0]], found.get(connections)
    return {
        "load": os.getloadavg()[0],
        "each_called": called,
        "us": {size: _medians(costs) for size, costs in found.items()},
        "least_us": {size: _least(costs) for size, costs in found.items()},
        "beside_the_first": {size: _beside(costs, beside) for size, costs in found.items()},
        "beside_a_few": few and {size: _beside(costs, few) for size, costs in found.items()},
        "idle_commands_s": _idle(one),
    }


def _called(stage: Stage, one: Contender, traffic: Traffic, times: int, connections: int) -> float:
    """Have each key call so often, so that none is new any more; how many calls that took for each."""
    made, wanted = 0, times * len(traffic.keys)
    while made < wanted:
        made += _cost(stage, one, SETTLED_S, traffic, connections).requests
    return made / len(traffic.keys)


def _beside(costs: list[Cost], others: list[Cost]) -> list[float]:
    return _medians([_ratio(one, other) for one, other in zip(costs, others, strict=True)])


def _ratio(cost: Cost, other: Cost) -> Cost:
    return cost[0] / other[0], cost[1] / other[1]


def _medians(costs: list[Cost]) -> list[float]:
    return [round(statistics.median(part), 3) for part in zip(*costs, strict=True)]


def _least(costs: list[Cost]) -> list[float]:
    return [round(min(part), 1) for part in zip(*costs, strict=True)]


def _cost(stage: Stage, one: Contender, seconds: float, traffic: Traffic, connections: int) -> Window:
    found = window(stage, one, seconds, traffic=traffic, connections=connections)
    if found.errors:
        raise BenchError(f"{found.errors} of {found.requests} calls failed")
    return found


def _idle(one: Contender) -> dict[str, float]:
    """The commands a second that the gateway gives while nobody calls; the keeper stands still."""
    assert one.counters is not None
    time.sleep(SETTLED_S)
    before = _given(one.counters)
    time.sleep(IDLE_S)
    after = _given(one.counters)
    rates = {verb: (count - before.get(verb, 0)) / IDLE_S for verb, count in after.items() if verb != "info"}
    each = {verb: round(rate, 2) for verb, rate in sorted(rates.items()) if rate > 0}
    return {"all": round(sum(each.values()), 2), **each}


def _given(counters: redis.Redis) -> dict[str, int]:
    stats: dict[str, dict[str, int]] = counters.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}


if __name__ == "__main__":
    sys.exit(main())
