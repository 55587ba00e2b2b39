"""Our own contender: `tollkeeper up`, as anyone starts it, pinned like the others.

The keeper and PostgreSQL are frozen while a window is measured and in the others' turns: on two
cores they would take the client's, and no peer has a second stage to compare them with. The
outbox is drained between windows, and in the end every call must have its row. One contender
leaves them running, to show what that costs on the same cores. The gateway goes on in the others' turns:
its idle work is a hundredth of a core.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests.bench.contenders import INTERPRETED, OTHER, Contender, Stage
from tests.bench.load import Traffic
from tests.bench.machine import START_S_MAX, BenchError, family, pin, signal_all, stop

TOTAL_TOKENS = 10**15
LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrency": 10**6}
# By name: what of an organization each is of.
BUDGETS: dict[str, dict[str, str]] = {
    "organization": {},
    "tenant": {},
    "user": {"each": "user"},
    "key": {"each": "key"},
}
DRAIN_S_MAX = 180.0
SILENT_S_MAX = "3600"  # what stands still in others' turns is not hung, and stays who is measured


@dataclass(slots=True)
class Deployment:
    """One running `tollkeeper up`, what it said of itself, and a client of its Redis."""

    facts: dict[str, Any]
    counters: redis.Redis
    ready_s: tuple[float, ...] = ()

    def admin(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call the Admin API; `BenchError` with its answer on anything but success."""
        request = urllib.request.Request(
            f"{self.facts['admin_url']}/admin/v1{path}",
            data=json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {self.facts['admin_token']}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            detail = error.read()[:300].decode(errors="replace")
            raise BenchError(f"{method} {path} answers {error.code}: {detail}") from None

    def background(self) -> list[int]:
        """Processes that turn the outbox into rows: the keeper and PostgreSQL."""
        pids = self.facts["pids"]
        return [pids[name] for name in ("keeper", "postgres") if pids.get(name)]

    def gateway(self) -> list[int]:
        """Processes of the gateway."""
        return [one for pid in self.facts["pids"]["gateway"] for one in family(pid)]

    def freeze(self) -> None:
        """Stop what turns the outbox into rows where it is."""
        signal_all(self._families(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        signal_all(self._families(), signal.SIGCONT)

    def _families(self) -> list[int]:
        return [one for pid in self.background() for one in family(pid)]

    def drain(self) -> None:
        """Wait until every entry of the outbox is a row."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while any(self.counters.xlen(keys.outbox(each)) for each in range(PARTITIONS)):
            if time.monotonic() > deadline:
                raise BenchError(f"the outbox was not empty after {DRAIN_S_MAX:g} s")
            time.sleep(0.1)

    def rows(self, tenant_ids: list[int]) -> int:
        """Calls of tenants that are in the ledger."""
        self.thaw()
        query = "SELECT count(*) FROM token_ledger WHERE tenant_id = ANY(%s) AND transaction_type = 'consume'"
        address = self.facts["database_url"].replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(address) as connection:
            found = connection.execute(query, (tenant_ids,)).fetchone()
        return int(found[0]) if found else 0


def tollkeeper(stage: Stage, names: list[str]) -> list[Contender]:
    """Start one deployment and as many of our contenders as are named; those of other packages are alone."""
    folder = names[0]
    compiled = {INTERPRETED: None, OTHER: stage.other}.get(folder, stage.compiled)
    first = up(stage, folder, compiled)
    stop(stage.programs.pop())
    running = up(stage, folder, compiled)
    running.ready_s = (*first.ready_s, *running.ready_s)
    pin(running.gateway(), stage.placement.gateway)
    pin(family(running.facts["pids"]["redis"]), stage.placement.redis)
    plan = running.admin("POST", "/token-plans", {"name": "bench", "total_amount": TOTAL_TOKENS,
                                                  "reset_interval": "none"})  # fmt: skip
    found = [_contender(stage, running, name, plan["id"]) for name in names]
    running.drain()
    running.freeze()
    return found


def compile_hot_path(tree: Path, say: Callable[[str], None]) -> Path | None:
    """Compile the hot path of a checkout, where this machine can; where the copy is."""
    target = Path(tree, "build/compiled").resolve()
    say("compiling the hot path (about a minute)")
    built = subprocess.run(
        [sys.executable, "deploy/compile.py", str(target)],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        say(f"interpreted: {built.stderr.strip().splitlines()[-1] if built.stderr else 'no reason given'}")
        return None
    return target


def _python_path(compiled: Path | None) -> str:
    """Our packages, compiled or not, in front of what is there already and of what they need."""
    packages = sysconfig.get_path("purelib")  # for an interpreter that is not this environment's
    there = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*([there] if there else []), str(compiled or Path.cwd()), packages])


def up(stage: Stage, folder: str, compiled: Path | None, *more: str) -> Deployment:
    """Start `tollkeeper up`, with `more` arguments, and read its one line."""
    command = [stage.python, "-P", "-m", "gateway", "up", "--json",
               "--gateway-port", "0", "--admin-port", "0", "--workers", "1", "--upstream", f"http://127.0.0.1:{stage.upstream_port}",
               "--data-dir", str(stage.folder / folder), *more]  # fmt: skip
    log = stage.folder / f"{folder}.err"
    began = time.monotonic()
    with log.open("wb") as errors:
        program = subprocess.Popen(
            ["taskset", "-c", str(stage.placement.rest), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ
            | {"PYTHONPATH": _python_path(compiled), "TOLLKEEPER_WORKER_SILENT_S_MAX": SILENT_S_MAX},
            start_new_session=True,
        )
    stage.programs.append(program)
    assert program.stdout is not None
    answered, _, _ = select.select([program.stdout], [], [], START_S_MAX)
    line = program.stdout.readline() if answered else b""
    if not line:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise BenchError(f"`tollkeeper up` does not start: {said[-1][:300] if said else 'it says nothing'}")
    facts = json.loads(line)
    address = urlsplit(facts["redis_url"])
    counters = redis.Redis.from_url(address.geturl())
    return Deployment(facts, counters, (time.monotonic() - began,))


def _contender(stage: Stage, running: Deployment, name: str, plan_id: int) -> Contender:
    """Make organizations, tenants and keys for one contender, with limits and budgets too high to bite."""
    limited = name not in ("tollkeeper", INTERPRETED)
    wished = {"limits": LIMITS, "user_limits": LIMITS} if limited else {}
    tenants = []
    for number in range(stage.organizations):
        wish = {"name": f"{name} {number}", "plan_id": plan_id, **wished}
        tenants.append(running.admin("POST", "/tenants", wish))
        if limited:
            _limit(running, tenants[-1])
    credentials = []
    for number in range(stage.callers):
        wish = {"tenant_id": tenants[number % len(tenants)]["id"], "name": f"{name} {number}"}
        key = running.admin("POST", "/api-keys", wish | ({"limits": LIMITS} if limited else {}))
        credentials.append(key["key"])
    partitions = {keys.partition_of(int(one["organization_id"])) for one in tenants}
    streams = [keys.outbox(each) for each in partitions]

    def entries() -> int:
        client = running.counters
        return sum(int(client.xinfo_stream(one)["entries-added"]) for one in streams if client.exists(one))

    def clear() -> None:
        running.thaw()
        running.drain()
        running.freeze()

    flushing = name == "tollkeeper-flushing"

    def begin() -> None:
        if flushing:
            running.thaw()

    return Contender(
        name,
        urlsplit(running.facts["gateway_url"]).port or 80,
        Traffic(tuple(credentials), stage.callers if limited else 0, stage.traced),
        gateway=running.gateway(),
        redis_pids=[running.facts["pids"]["redis"]],
        counters=running.counters,
        entries=entries,
        behind=running.background if flushing else list,
        before=begin,
        after=clear,
        rows=lambda: running.rows([int(one["id"]) for one in tenants]),
        ready_s=running.ready_s,
    )


def _limit(running: Deployment, tenant: dict[str, Any]) -> None:
    """Limits of an organization, and budgets in money of it, its tenant, and each of its users and keys."""
    organization_id = tenant["organization_id"]
    running.admin("PATCH", f"/organizations/{organization_id}", {"limits": LIMITS})
    for name, selector in BUDGETS.items():
        wish = {"organization_id": organization_id, "name": name, "unit": "money", "amount": "1000000",
                "interval": "month", **selector}  # fmt: skip
        if name == "tenant":
            wish["tenant_id"] = tenant["id"]
        running.admin("POST", "/budgets", wish)
