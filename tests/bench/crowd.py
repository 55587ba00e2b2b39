"""One deployment whose callers are many: each key of an organization of its own, with a quota.

They are written into PostgreSQL before anything of ours runs there, for by the Admin API ten thousand take
half an hour. The keeper that starts brings Redis to it. It stands still but for when it makes rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from persistence.schema import migrate
from tests.bench.contenders import Contender, Stage
from tests.bench.deployment import PEPPER, Filled, key_of
from tests.bench.flush import postgres
from tests.bench.load import Traffic
from tests.bench.machine import family, pin
from tests.bench.tollkeeper import Deployment, up


@contextmanager
def crowd(stage: Stage, callers: int) -> Iterator[Contender]:
    """Start it for so many callers; the keeper stands still until `before`, and again after `after`."""
    with postgres() as server:
        migrate.upgrade(server)
        filled = Filled(server, "crowd")
        filled.make("postgres")
        filled.grow(callers, callers, 0)
        os.environ["TOLLKEEPER_KEY_PEPPER"] = PEPPER
        try:
            running = up(stage, "crowd", stage.compiled, "--database-url", filled.url)
            pin(running.gateway(), stage.placement.gateway)
            pin(family(running.facts["pids"]["redis"]), stage.placement.redis)
            yield _contender(running, filled, callers, traced=stage.traced)
        finally:
            stage.stop()  # before its database


def _contender(running: Deployment, filled: Filled, callers: int, *, traced: bool) -> Contender:
    def entries() -> int:
        client = running.counters
        streams = [keys.outbox(each) for each in range(PARTITIONS)]
        return sum(int(client.xinfo_stream(one)["entries-added"]) for one in streams if client.exists(one))

    def rest() -> None:
        running.thaw()
        running.drain()
        running.freeze()

    rest()
    return Contender(
        "tollkeeper",
        urlsplit(running.facts["gateway_url"]).port or 80,
        Traffic(tuple(key_of(number) for number in range(callers)), 0, traced),
        gateway=running.gateway(),
        redis_pids=[running.facts["pids"]["redis"]],
        counters=running.counters,
        entries=entries,
        after=rest,
        rows=filled.rows,
    )
