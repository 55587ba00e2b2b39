"""A rolling restart of gateways under load, with streams of a minute: what clients saw, and what was charged.

Two gateways stand behind a small TCP balancer, with a keeper, PostgreSQL and a Valkey that writes to disk.
Each is replaced in turn: another is started, the old one leaves the balancer's list and is told to end,
its grace longer than a stream. `failed` are calls without a whole answer of status 200, `cut` are streams
without their end. With `--order` they and two keepers are replaced by the program of the next layout, in
that order, until that is taken up. Usage: python -m tests.bench.rolling [--rate N] [--stream-seconds N]
[--order "keepers first"|"gateways first"|"by turns"] [--page PAGE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from tests.bench.figures import percentile
from tests.bench.flush import postgres
from tests.bench.page import PAGE, publish
from tests.conftest import ValkeyServer
from tests.deploy.deployment import Deployment
from tests.deploy.layouts import ORDERS, Rollout
from tests.deploy.rolling import USED, Charged, Gateways, Load, Outcome, roll
from tests.waiting import wait_until

GATEWAYS = 2
PAUSE_S = 0.5
# A gateway has the time of a stream, and so much more, to end.
GRACE_MORE_S = 20.0
FLUSHED_S_MAX = 120.0


def main() -> int:
    """Roll, print the figures; 0 where nothing failed, was cut, or was charged otherwise than once."""
    options = _options()
    load = Load(
        options.rate, options.clients, options.streams, int(options.stream_seconds / PAUSE_S), PAUSE_S
    )
    with tempfile.TemporaryDirectory(prefix="tollkeeper-rolling-") as folder, postgres() as database:
        valkey = ValkeyServer(Path(folder), "--appendonly", "yes")
        valkey.start()
        try:
            if options.order:
                found = asyncio.run(measure_layouts(Path(folder), valkey.url, database, load, options.order))
            else:
                found = measure(Path(folder), valkey.url, database, load, options.rounds)
            outcome, charged, expected = found
        finally:
            valkey.stop()
    markdown = report(load, options.rounds, outcome, charged, expected)
    print(markdown)
    for what, count in (outcome.failures + outcome.cut).items():
        print(f"{count} times: {what}", file=sys.stderr)
    if options.page:
        publish(options.page, "rolling", markdown)
    return int(not went_well(outcome) or charged != expected)


def measure(
    folder: Path, redis_url: str, database: str, load: Load, rounds: int
) -> tuple[Outcome, Charged, Charged]:
    """What clients saw, what their calls were charged, and what they should have been."""
    grace_s = load.pieces * load.pause_s + GRACE_MORE_S
    deployment = Deployment(folder, redis_url, database)
    deployment.environ["TOLLKEEPER_SHUTDOWN_GRACE_S"] = str(grace_s)
    try:
        gateways = Gateways(deployment, GATEWAYS)
        tenant, key = deployment.admin.customer(None)
        _, streaming_key = deployment.admin.customer(None)
        outcome = asyncio.run(roll(gateways, (key, streaming_key), load, rounds))
        for process in gateways.processes:
            process.popen.terminate()
        for process in gateways.processes:
            process.ended()
        calls = outcome.statuses[200]
        wait_until(lambda: Charged.of(database, tenant).rows >= calls, FLUSHED_S_MAX)
        return outcome, Charged.of(database, tenant), Charged(calls, calls, calls * USED)
    finally:
        deployment.stop()


async def measure_layouts(
    folder: Path, redis_url: str, database: str, load: Load, order: str
) -> tuple[Outcome, Charged, Charged]:
    """The same of a roll-out of the next layout; streams are charged with the others."""
    grace_s = load.pieces * load.pause_s + GRACE_MORE_S
    rollout = Rollout(folder, redis_url, database, TOLLKEEPER_SHUTDOWN_GRACE_S=str(grace_s))
    try:
        async with rollout.under(load):
            await rollout.replace(ORDERS[order], rollout.newer)
            await rollout.has_current_history()
        return rollout.outcome, *map(together, rollout.charged())
    finally:
        rollout.deployment.stop()


def together(several: Sequence[Charged]) -> Charged:
    """What they are charged in all."""
    return Charged(*(sum(values) for values in zip(*map(astuple, several), strict=True)))


def went_well(outcome: Outcome) -> bool:
    """Whether each call was answered by status 200 in full, and each stream came to its end."""
    return not outcome.cut and outcome.requests == outcome.statuses[200]


def report(load: Load, rounds: int, outcome: Outcome, charged: Charged, expected: Charged) -> str:
    """What was seen, as a table."""
    rate = outcome.requests / outcome.seconds
    slow_ms, usual_ms = (percentile(outcome.took, share) * 1000 for share in (0.99, 0.5))
    rows = [
        ("gateways replaced, one after the other", f"{GATEWAYS * rounds}"),
        ("calls a second, asked and reached", f"{load.rate:,.0f} and {rate:,.0f}"),
        ("calls", f"{outcome.requests:,}"),
        (
            "failed: no whole answer, or another status than 200",
            f"{outcome.requests - outcome.statuses[200]:,}",
        ),
        (
            f"streams of {load.pieces * load.pause_s:g} s, at once and whole",
            f"{load.streams} and {outcome.streams:,}",
        ),
        ("cut", f"{outcome.cut.total():,}"),
        ("calls charged exactly once", f"{charged.calls:,}" if charged == expected else f"**no**: {charged}"),
        ("latency of a call at p50 and p99", f"{usual_ms:.1f} and {slow_ms:.1f} ms"),
    ]
    return "".join([
        f"In {outcome.seconds:.0f} s; clients, balancer, gateways, keeper and servers share the machine:\n\n",
        "| | |\n|---|---:|\n",
        *(f"| {what} | {found} |\n" for what, found in rows),
    ])  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="calls a second, of all clients together")
    parser.add_argument("--clients", type=int, default=64, help="connections that call in turn")
    parser.add_argument("--streams", type=int, default=64, help="streams at once")
    parser.add_argument("--stream-seconds", type=float, default=60.0, help="how long a stream takes")
    parser.add_argument("--rounds", type=int, default=1, help="how often each gateway is replaced")
    parser.add_argument("--order", choices=ORDERS, help="replace them by the program of the next layout")
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
