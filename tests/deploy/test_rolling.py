"""Three gateways are replaced one after the other under load, and no client notices, nor does a long stream.

The long form says what it saw: `ROLLING="500 64 5" pytest -s tests/deploy/test_rolling.py` is 500
requests a second by 64 clients, five times over.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.conftest import ValkeyServer
from tests.deploy.deployment import Deployment
from tests.deploy.rolling import USED, Gateways, roll
from tests.waiting import wait_until

RATE, CLIENTS, ROUNDS = (int(word) for word in os.environ.get("ROLLING", "100 24 1").split())


async def test_a_rolling_restart_fails_no_request_and_charges_each_once(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    deployment = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    try:
        gateways = Gateways(deployment, 3)
        tenant, key = deployment.admin.customer(None)
        _, streaming_key = deployment.admin.customer(None)
        outcome = await roll(gateways, (key, streaming_key), RATE, CLIENTS, ROUNDS)
        slow = sorted(outcome.took)[int(len(outcome.took) * 0.99)] * 1000
        failed = dict(outcome.failures)
        print(f"{outcome.requests} requests, {outcome.streams} streams, failed: {failed}, p99 {slow:.0f} ms")
        assert outcome.failures == {}
        assert outcome.streams > 0
        assert outcome.statuses.keys() == {200}
        quota = deployment.admin.ask("GET", f"/tenant-quotas/{tenant}")
        assert quota["tokens_used"] >= USED * outcome.statuses[200]
        for process in gateways.processes:
            assert process.stop() == 0
        # Whoever was in the middle when the load ended was charged too, at most once a client.
        rows = "select count(*), count(distinct request_id), sum(amount) from token_ledger"
        where = f" where tenant_id = {tenant} and transaction_type = 'consume'"

        def stored() -> tuple[int, int, int]:
            with psycopg.connect(database) as connection:
                found = connection.execute(rows + where).fetchone()
            assert found is not None
            return int(found[0]), int(found[1]), int(found[2] or 0)

        wait_until(lambda: stored()[0] >= outcome.statuses[200])
        count, distinct, amount = stored()
        assert count == distinct
        assert amount == count * USED
        assert outcome.statuses[200] <= count <= outcome.statuses[200] + CLIENTS
    finally:
        deployment.stop()
