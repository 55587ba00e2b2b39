"""How long a large configuration takes from its file until gateways admit by it, and what the next runs take.

Organizations have two tenants with two keys each and a budget; the rest are prices, plans and services. The
command `tollkeeper apply` runs as a process, against a keeper, a gateway, PostgreSQL and a Valkey that writes
to disk. It applies all, then the same again, then with some organizations changed, then with `--prune` and
some organizations gone, all that is theirs with them. `in force` is when no control write waits, and
a gateway answers calls by what was applied: new keys call, changed limits are told, keys that are gone are
refused. Prints one line of JSON.
Usage: python -m tests.bench.applied [--objects N] [--page PAGE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from gateway.cli.admin.configuration import written
from tests.bench.flush import postgres, postgres_cpu_s, postmaster
from tests.bench.machine import cpu_s
from tests.bench.page import PAGE, publish
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import ADMIN_TOKEN, Deployment
from tests.tree import ROOT
from tests.waiting import wait_until

PLANS, SERVICES = 20, 30
# An organization, its tenants, their keys, and a budget.
EACH = 1 + 2 + 4 + 1
PRICED = 5
# Calls at once of an organization; one more where it is changed.
AT_ONCE = 9
# Of all objects, a hundredth is changed, and a tenth goes.
CHANGED, GONE = 100, 10
APPLIED_S_MAX = 320.0
STEPS = {
    "first": "applied for the first time",
    "again": "again, nothing changed",
    "changes": "with a hundredth of it changed",
    "prune": "with a tenth of it gone, `--prune`",
}

Objects = dict[str, list[dict[str, Any]]]


def objects_of(count: int, *, changed: int = 0, gone: int = 0) -> Objects:
    """So many objects: a fifth of them prices. Of some organizations the limits are others, some are gone."""
    made = (count - PLANS - SERVICES - count // PRICED) // EACH
    organizations = [f"Organization {n:05d}" for n in range(made)]
    staying = organizations[: made - gone]
    tenants = [(owner, name) for owner in staying for name in ("Web", "Batch")]
    found: Objects = {
        "token-plans": [{"name": f"Plan {n}", "total_amount": 1_000_000 + n} for n in range(PLANS)],
        "services": [
            {
                "name": f"Service {n}", "key": f"s{n}", "credits": n, "service_type": "Pay-As-You-Go",
                "business_model": "Consumption", "upstream": "u", "paths": [f"/v{n}/*"],
            }
            for n in range(SERVICES)
        ],
        "organizations": [
            {"name": name, "limits": {"concurrency": AT_ONCE + (n < changed)}}
            for n, name in enumerate(staying)
        ],
        "tenants": [
            {"organization": owner, "name": name, "plan": f"Plan {n % PLANS}"}
            for n, (owner, name) in enumerate(tenants)
        ],
        "api-keys": [
            {"tenant": {"organization": owner, "name": tenant}, "name": name, "models": ["*"]}
            for owner, tenant in tenants
            for name in ("one", "two")
        ],
        "budgets": [
            {"organization": owner, "name": "A day", "unit": "tokens", "amount": 10**9, "interval": "day"}
            for owner in staying
        ],
    }  # fmt: skip
    left = count - made * EACH - PLANS - SERVICES
    found["prices"] = [{"model": f"m{n}", "currency": "USD", "input": "2.5"} for n in range(left)]
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """What one run of the command took, and what it said that it did."""

    command_s: float
    in_force_s: float
    cpu_s: Mapping[str, float]
    load: float
    changes: int
    unchanged: int


class Stage:
    """A keeper and a gateway that files are applied to."""

    def __init__(self, folder: Path, redis_url: str, database: str) -> None:
        self._folder, self._database = folder, database
        self._deployment = Deployment(folder, redis_url, database)
        self._gateway_port, ops_port = free_port(), free_port()
        self._deployment.serve(self._gateway_port, ops_port)
        self._admin_url = f"http://127.0.0.1:{self._deployment.admin_port}"
        self._postgres = postmaster(database)
        self._secrets = folder / "secrets"

    def stop(self) -> None:
        """End the processes."""
        self._deployment.stop()

    def apply(self, objects: Objects, admits: Callable[[], bool], *more: str) -> Step:
        """Have the command apply a file of these; `admits` looks whether the gateway goes by it."""
        file = self._folder / "all.yaml"
        file.write_text(written(objects), encoding="utf-8")
        began, before = time.perf_counter(), self._cpu()
        told = self._command("apply", "-f", str(file), "--secrets-dir", str(self._secrets), "--json", *more)
        command_s = time.perf_counter() - began
        wait_until(lambda: not self._waiting() and admits(), APPLIED_S_MAX)
        in_force_s = time.perf_counter() - began
        took = {name: round(after - before[name], 2) for name, after in self._cpu().items()}
        applied = [each for each in told["changes"] if not each["stays"]]
        return Step(
            round(command_s, 2), round(in_force_s, 2), took, os.getloadavg()[0], len(applied),
            told["unchanged"],
        )  # fmt: skip

    def status(self, key: str) -> int:
        """What a call by a key is answered with."""
        asked = json.dumps({"model": "demo-small", "max_tokens": 5, "messages": []}).encode()
        headers = {"authorization": f"Bearer {self._secret(key)}", "content-type": "application/json"}
        url = f"http://127.0.0.1:{self._gateway_port}/v1/chat/completions"
        try:
            with urlopen(Request(url, data=asked, headers=headers), timeout=60) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code

    def at_once(self, key: str) -> int | None:
        """How many calls at once its organization may have, as the gateway tells a key."""
        headers = {"authorization": f"Bearer {self._secret(key)}"}
        url = f"http://127.0.0.1:{self._gateway_port}/.tollkeeper/usage"
        with urlopen(Request(url, headers=headers), timeout=60) as answer:
            limits = json.load(answer)["limits"]
        told = {(each["scope"], each["name"]): each["limit"] for each in limits}
        return told.get(("organization", "concurrency"))

    def _secret(self, name: str) -> str:
        (found,) = self._secrets.glob(f"api-keys-{name}-*")
        return found.read_text().strip()

    def _command(self, *arguments: str) -> dict[str, Any]:
        environ = {
            **os.environ, "PYTHONPATH": str(ROOT), "TOLLKEEPER_ADMIN_URL": self._admin_url,
            "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments], env=environ, capture_output=True, text=True,
            check=False, cwd=self._folder, timeout=APPLIED_S_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def _waiting(self) -> int:
        query = "select count(*) from control_write where state = 'pending'"
        address = self._database.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(address) as connection:
            found = connection.execute(query).fetchone()
        return int(found[0]) if found else 0

    def _cpu(self) -> dict[str, float]:
        children = getrusage(RUSAGE_CHILDREN)
        return {
            "command": children.ru_utime + children.ru_stime,
            "keeper": cpu_s([self._deployment.keeper.popen.pid]),
            "PostgreSQL": postgres_cpu_s(self._postgres),
        }


def measure(stage: Stage, count: int) -> dict[str, Step]:
    """Apply, again, with changes, with some gone."""
    whole = objects_of(count)
    owners = [each["name"].lower().replace(" ", "-") for each in whole["organizations"]]
    first, last = (f"{owner}-batch-two" for owner in (owners[0], owners[-1]))
    changed, gone = max(1, count // CHANGED), max(1, count // GONE // EACH)
    changed = min(changed, len(owners) - gone)

    def admits() -> bool:
        return stage.status(first) == stage.status(last) == 200

    return {
        "first": stage.apply(whole, admits),
        "again": stage.apply(whole, admits),
        "changes": stage.apply(
            objects_of(count, changed=changed), lambda: admits() and stage.at_once(first) == AT_ONCE + 1
        ),
        "prune": stage.apply(
            objects_of(count, changed=changed, gone=gone),
            lambda: stage.status(first) == 200 and stage.status(last) == 401,
            "--prune",
        ),
    }


def report(count: int, steps: Mapping[str, Step]) -> str:
    """What was found, as a table."""
    rows = [
        f"| {STEPS[name]} | {each.changes:,} | {each.command_s:.1f} s | {each.in_force_s:.1f} s "
        f"| {each.cpu_s['command']:.1f} s | {each.cpu_s['keeper']:.1f} s | {each.cpu_s['PostgreSQL']:.1f} s "
        f"| {each.load:.0f} |\n"
        for name, each in steps.items()
    ]
    cores = os.cpu_count()
    return (
        f"{count:,} objects in one file; a command, a keeper, a gateway, PostgreSQL and a Valkey that\n"
        f"writes to disk share {cores} cores with others:\n\n"
        "| | changes | the command | until in force | CPU: command | keeper | PostgreSQL | load |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n"
    ) + "".join(rows)


def main() -> int:
    """Apply, print; 1 where not all was applied."""
    parser = argparse.ArgumentParser(prog="applied")
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="tollkeeper-applied-") as folder, postgres() as database:
        valkey = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "everysec")
        valkey.start()
        stage = Stage(Path(folder), valkey.url, database)
        try:
            steps = measure(stage, options.objects)
        finally:
            stage.stop()
            valkey.stop()
    print(json.dumps({name: {field: getattr(each, field) for field in Step.__slots__}
                      for name, each in steps.items()}))  # fmt: skip
    if options.page:
        publish(options.page, "applied", report(options.objects, steps))
    return int(not steps["first"].changes == steps["again"].unchanged == options.objects)


if __name__ == "__main__":
    raise SystemExit(main())
