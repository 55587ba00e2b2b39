"""How long nobody is served after a loss, by the number of tenants: each its organization and three keys.

A keeper, a gateway worker and an upstream as processes, a Valkey with its file and the embedded PostgreSQL.
One tenant of each of the 64 partitions calls again and again. After each fault it is told when the first of
them was served and when the last, from the moment at which Valkey answered again, what CPU the keeper took
until then, and its memory at most. Sizes grow within one installation, so that ratios are of one run.

- `filled`: Valkey is empty, and the keeper starts.
- `restart`: the keeper is started again beside a Valkey that lost nothing, until it is ready; nobody waits.
- `emptied`: Valkey comes back without its file.
- `returned`: Valkey comes back with its file: what a fail-over costs behind that of the servers.

Prints a line a fault. Usage: python -m tests.bench.recovery [--tenants 1000 10000 100000] [--page PAGE]
"""

from __future__ import annotations

import argparse
import hmac
import http.client
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg

from gateway.counters.redis.keys import partition_of
from tests.bench.flush import postgres
from tests.bench.machine import cpu_s
from tests.bench.page import PAGE, publish
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment, answers
from tests.deploy.processes import Process

SIZES = (1_000, 10_000, 100_000)
KEYS_EACH = 3
WAIT_S_MAX = 900.0
LOOK_S = 0.02
# The first of each, as often as there are to be more; what it is called by is told apart by its number.
COPIES = """
INSERT INTO organization OVERRIDING SYSTEM VALUE
SELECT (jsonb_populate_record(one, jsonb_build_object('id', n, 'name', 'Organization ' || n))).*
  FROM organization AS one, generate_series({first}, {last}) AS n WHERE one.id = {organization};
INSERT INTO tenant OVERRIDING SYSTEM VALUE
SELECT (jsonb_populate_record(one, jsonb_build_object('id', n, 'organization_id', n))).*
  FROM tenant AS one, generate_series({first}, {last}) AS n WHERE one.id = {tenant};
INSERT INTO tenant_quota OVERRIDING SYSTEM VALUE
SELECT (jsonb_populate_record(one, jsonb_build_object('tenant_id', n))).*
  FROM tenant_quota AS one, generate_series({first}, {last}) AS n WHERE one.tenant_id = {tenant};
INSERT INTO api_key OVERRIDING SYSTEM VALUE
SELECT (jsonb_populate_record(one, jsonb_build_object('id', n * {each} + k, 'tenant_id', n,
        'digest', encode(sha256(convert_to('key ' || n || ' ' || k, 'UTF8')), 'hex')))).*
  FROM api_key AS one, generate_series({first}, {last}) AS n, generate_series(0, {each} - 1) AS k
 WHERE one.tenant_id = {tenant};
ANALYZE"""


@dataclass(frozen=True, slots=True)
class RecoveryTimes:
    """One fault: seconds until the first and the last were served, the keeper's CPU and memory at most."""

    tenants: int
    fault: str
    first_s: float
    last_s: float
    keeper_cpu_s: float
    keeper_mb: float


class Installation:
    """Tollkeeper over a PostgreSQL and a Redis, and who calls."""

    def __init__(self, folder: Path, url: str, redis_url: str) -> None:
        self.url = url
        self.deployment = Deployment(folder, redis_url, url)
        self.keeper = self.deployment.started[1]
        tenant, _ = self.deployment.admin.customer(None)
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT organization_id FROM tenant WHERE id = %s", [tenant]
            ).fetchone()
        assert found is not None
        self.first, self.ids = tenant + 1_000, (found[0], tenant)
        self.count = 0
        self.port = free_port()
        self.deployment.serve(self.port, free_port())
        self.callers: dict[int, str] = {}

    def grow(self, count: int) -> None:
        """Have so many tenants, while no keeper runs."""
        first, last = self.first + self.count, self.first + count - 1
        organization, tenant = self.ids
        copies = COPIES.format(
            first=first, last=last, organization=organization, tenant=tenant, each=KEYS_EACH
        )
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            for statement in copies.split(";"):
                connection.execute(statement.encode())
            for one in range(first, last + 1):
                if partition_of(one) not in self.callers:
                    self.callers[partition_of(one)] = self._key_of(connection, one)
        self.count = count

    def _key_of(self, connection: psycopg.Connection[tuple[object, ...]], tenant: int) -> str:
        """Give a tenant's first key a credential that is known."""
        key = f"tk_{tenant:032x}"
        pepper = self.deployment.environ["TOLLKEEPER_KEY_PEPPER"]
        digest = hmac.digest(pepper.encode(), key.encode(), "sha256").hex()
        connection.execute("UPDATE api_key SET digest = %s WHERE id = %s", [digest, tenant * KEYS_EACH])
        return key

    def start_keeper(self) -> int:
        """Another keeper; its port."""
        port = free_port()
        self.keeper = self.deployment.start("keeper", "--admin-port", str(port))
        return port

    def served(self, since: float, callers: Mapping[int, str] | None = None) -> tuple[float, float]:
        """When the first of these callers, or of all, was served and when the last: seconds since then."""
        waiting, moments = dict(callers or self.callers), []
        while waiting:
            for partition, key in list(waiting.items()):
                if _calls(self.port, key) == 200:
                    del waiting[partition]
                    moments.append(time.monotonic() - since)
            if time.monotonic() - since > WAIT_S_MAX:
                raise TimeoutError(f"{len(waiting)} partitions serve nobody")
            time.sleep(LOOK_S)
        return moments[0], moments[-1]

    def stop(self) -> None:
        """End what is ours."""
        self.deployment.stop()


class OneValkey(Installation):
    """The same over one Valkey with its file, which can be lost."""

    def __init__(self, folder: Path, url: str) -> None:
        self.valkey = ValkeyServer(folder / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
        self.valkey.folder.mkdir()
        self.valkey.start()
        super().__init__(folder, url, self.valkey.url)

    def lose(self, *, emptied: bool) -> float:
        """Kill Valkey and start it again, without its file or with it; when it answered."""
        self.valkey.stop(signal.SIGKILL)
        if emptied:
            shutil.rmtree(self.valkey.folder / "appendonlydir")
        self.valkey.start()
        return time.monotonic()

    def stop(self) -> None:
        """End all of it."""
        super().stop()
        self.valkey.stop()


def main() -> int:
    """Grow, strike, print."""
    parser = argparse.ArgumentParser(prog="recovery")
    parser.add_argument("--tenants", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--page", nargs="?", const=PAGE, type=Path)
    options = parser.parse_args()
    told: list[RecoveryTimes] = []
    with tempfile.TemporaryDirectory(prefix="tollkeeper-recovery-") as folder, postgres() as url:
        installation = OneValkey(Path(folder), url)
        try:
            for count in options.tenants:
                told += measure(installation, count)
        finally:
            installation.stop()
    print(table(told))
    if options.page is not None:
        publish(options.page, "recovery", table(told))
    return 0


def measure(installation: OneValkey, count: int) -> list[RecoveryTimes]:
    """Each fault once, with so many tenants."""
    found: list[RecoveryTimes] = []

    def note(fault: str, strike: Callable[[], float], until: Callable[[float], tuple[float, float]]) -> None:
        before = cpu_s([installation.keeper.popen.pid]) if installation.keeper.running else 0.0
        first, last = until(strike())
        cpu = cpu_s([installation.keeper.popen.pid]) - before
        found.append(RecoveryTimes(count, fault, first, last, cpu, _memory_mb(installation.keeper)))
        print(found[-1], flush=True)

    installation.keeper.stop()
    installation.grow(count)
    installation.lose(emptied=True)
    ports: list[int] = []

    def again() -> float:
        began = time.monotonic()
        ports.append(installation.start_keeper())
        return began

    def until_ready(since: float) -> tuple[float, float]:
        while not answers(ports[-1]):
            time.sleep(LOOK_S)
        return time.monotonic() - since, time.monotonic() - since

    note("filled", again, installation.served)
    until_ready(0.0)
    installation.keeper.stop()
    note("restart", again, until_ready)
    note("emptied", partial(installation.lose, emptied=True), installation.served)
    until_ready(0.0)
    note("returned", partial(installation.lose, emptied=False), installation.served)
    until_ready(0.0)
    return found


def table(told: Sequence[RecoveryTimes]) -> str:
    """Seconds, CPU, and how many times that of the size before it is, as a page has them."""
    lines = [
        "| Tenants | Fault | First served, s | Last served, s | Keeper's CPU, s | times | Keeper, MB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    before: dict[str, float] = {}
    for one in told:
        ratio = f"{one.keeper_cpu_s / before[one.fault]:.1f}" if before.get(one.fault) else ""
        before[one.fault] = one.keeper_cpu_s
        lines.append(
            f"| {one.tenants:,} | {one.fault} | {one.first_s:.1f} | {one.last_s:.1f}"
            f" | {one.keeper_cpu_s:.1f} | {ratio} | {one.keeper_mb:.0f} |"
        )
    return "\n".join(lines)


def _calls(port: int, key: str) -> int:
    """The status of one call; 0 where nobody answers."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with suppress(OSError, http.client.HTTPException):
        connection.request(
            "POST", "/v1/chat/completions", body,
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )  # fmt: skip
        return connection.getresponse().status
    return 0


def _memory_mb(process: Process) -> float:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
