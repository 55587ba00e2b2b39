"""Three gateways are replaced one after the other under load, and no client notices, nor does a long stream.

The long form, with streams of a minute, is `python -m tests.bench.rolling`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import ValkeyServer
from tests.deploy.deployment import Deployment
from tests.deploy.rolling import USED, Charged, Gateways, Load, roll
from tests.waiting import wait_until

LOAD = Load(rate=100, clients=24)


async def test_a_rolling_restart_fails_no_request_and_charges_each_once(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    deployment = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    try:
        gateways = Gateways(deployment, 3)
        tenant, key = deployment.admin.customer(None)
        _, streaming_key = deployment.admin.customer(None)
        outcome = await roll(gateways, (key, streaming_key), LOAD)
        assert (outcome.failures, outcome.cut) == ({}, {})
        assert outcome.streams > 0
        assert outcome.statuses.keys() == {200}
        quota = deployment.admin.ask("GET", f"/tenant-quotas/{tenant}")
        assert quota["tokens_used"] >= USED * outcome.statuses[200]
        for process in gateways.processes:
            assert process.stop() == 0
        calls = outcome.statuses[200]
        wait_until(lambda: Charged.of(database, tenant).rows >= calls)
        assert Charged.of(database, tenant) == Charged(rows=calls, calls=calls, tokens=calls * USED)
    finally:
        deployment.stop()
