"""Our own contender: `tollkeeper up`, as anyone starts it, pinned like the others.

The keeper and PostgreSQL are frozen while a window is measured and in the others' turns: on two
cores they would take the client's, and no peer has a second stage to compare them with. The
outbox is drained between windows, and in the end every call must have its row. One scene
leaves them running, to show what that costs on the same cores. The gateway goes on in the others' turns:
its idle work is a hundredth of a core.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests.bench.figures import OTHER, OURS
from tests.bench.load import Traffic
from tests.bench.machine import START_S_MAX, BenchError, Placement, family, pin, signal_all, stop
from tests.bench.scenes import BUDGETS, STEPS, TAGS, Scene
from tests.bench.stage import Contender, Stage, python_path
from tests.waiting import readable

TOTAL_TOKENS = 10**15
LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrency": 10**6}
DRAIN_S_MAX = 180.0
SILENT_S_MAX = "3600"  # what stands still in others' turns is not hung, and stays who is measured


@dataclass(slots=True)
class Deployment:
    """One running `tollkeeper up`, what it said of itself, and a client of its Redis."""

    facts: dict[str, Any]
    counters: redis.Redis
    ready_s: float

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

    def background(self) -> dict[str, int]:
        """Processes that turn the outbox into rows: the keeper, and PostgreSQL where it is ours."""
        pids = self.facts["pids"]
        return {name: pids[name] for name in ("keeper", "postgres") if pids.get(name)}

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
        return [one for pid in self.background().values() for one in family(pid)]

    def drain(self) -> None:
        """Wait until every entry of the outbox is a row."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while any(self.counters.xlen(keys.outbox(each)) for each in range(PARTITIONS)):
            if time.monotonic() > deadline:
                raise BenchError(f"the outbox was not empty after {DRAIN_S_MAX:g} s")
            time.sleep(0.1)

    def rows(self) -> int:
        """Calls in the ledger."""
        self.thaw()
        query = "SELECT count(*) FROM token_ledger WHERE transaction_type = 'consume'"
        address = self.facts["database_url"].replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(address) as connection:
            found = connection.execute(query).fetchone()
        return int(found[0]) if found else 0

    def entries(self) -> int:
        """Entries that were ever appended to the outbox: a call that settled is one."""
        client, streams = self.counters, [keys.outbox(each) for each in range(PARTITIONS)]
        return sum(int(client.xinfo_stream(one)["entries-added"]) for one in streams if client.exists(one))

    def contender(self, name: str, placement: Placement, traffic: Callable[[Scene], Traffic]) -> Contender:
        """What to measure of it, on its cores; its keeper stands still but where rows are written."""
        pin(self.gateway(), placement.gateway)
        pin(family(self.facts["pids"]["redis"]), placement.redis)

        def clear() -> None:
            self.thaw()
            self.drain()
            self.freeze()

        def begin(scene: Scene) -> None:
            if scene.flushing:
                self.thaw()

        clear()
        return Contender(
            name,
            urlsplit(self.facts["gateway_url"]).port or 80,
            traffic,
            gateway=self.gateway(),
            redis_pids=[self.facts["pids"]["redis"]],
            behind=self.background(),
            counters=self.counters,
            entries=self.entries,
            before=begin,
            after=clear,
        )


def tollkeeper(
    stage: Stage,
    scenes: Iterable[Scene],
    name: str = OURS,
    *,
    workers: int = 1,
    folder: str = "",
    twice: bool = True,
) -> Contender:
    """Start a deployment with an account for each of these scenes; `OTHER` is of the other packages.

    It stays in a `folder` of its own, by default that of its name. It starts `twice`, to tell how long each took.
    """
    packages = stage.other if name == OTHER else stage.compiled
    ready_s: tuple[float, ...] = ()
    if twice:
        ready_s = (up(stage, folder or name, packages).ready_s,)
        stop(stage.programs.pop())
    running = up(stage, folder or name, packages, "--workers", f"{workers}")
    plan = running.admin("POST", "/token-plans", {"name": "bench", "total_amount": TOTAL_TOKENS,
                                                  "reset_interval": "none"})  # fmt: skip
    wanted = dict.fromkeys((one.account, one.organizations) for one in scenes)
    keys_of = {each: _keys(running, plan["id"], *each) for each in wanted}

    def traffic(scene: Scene) -> Traffic:
        users = 0 if scene.account == "ledger" else scene.callers
        return Traffic(
            keys_of[scene.account, scene.organizations],
            users,
            body_bytes=scene.body_bytes,
            events=scene.events,
        )

    found = running.contender(name, stage.placement, traffic)
    found.rows, found.ready_s = running.rows, (*ready_s, running.ready_s)
    return found


def compile_hot_path(tree: Path, say: Callable[[str], None]) -> Path | None:
    """Compile the hot path of a checkout, where this machine can; where the copy is."""
    target = Path(tree, "build/compiled").resolve()
    say("compiling the hot path: ten minutes for new sources, else they are kept in build/c")
    built = subprocess.run(
        [sys.executable, "deploy/compile.py", str(target)],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        say(f"interpreted: {built.stderr.strip().splitlines()[-1] if built.stderr else 'no reason given'}")
        return None
    return target


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
            | {"PYTHONPATH": python_path(compiled), "TOLLKEEPER_WORKER_SILENT_S_MAX": SILENT_S_MAX},
            start_new_session=True,
        )
    stage.programs.append(program)
    assert program.stdout is not None
    answered = readable(program.stdout, START_S_MAX)
    line = program.stdout.readline() if answered else b""
    if not line:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise BenchError(f"`tollkeeper up` does not start: {said[-1][:300] if said else 'it says nothing'}")
    facts = json.loads(line)
    address = urlsplit(facts["redis_url"])
    counters = redis.Redis.from_url(address.geturl())
    return Deployment(facts, counters, time.monotonic() - began)


def _keys(running: Deployment, plan_id: int, account: str, organizations: int) -> tuple[str, ...]:
    """Make organizations with a tenant and a key each, limits and budgets too high to bite."""
    limited = {} if account == "ledger" else {"limits": LIMITS}
    found = []
    for number in range(organizations):
        wish = {"name": f"{account} {number} of {organizations}", "plan_id": plan_id, **limited}
        tenant = running.admin("POST", "/tenants", wish | ({"user_limits": LIMITS} if limited else {}))
        place = f"/organizations/{tenant['organization_id']}"
        if limited:
            running.admin("PATCH", place, limited)
        of_key = {"tenant_id": tenant["id"], "name": "bench", **limited}
        if account == "groups":
            running.admin("PATCH", place, {"tags": [*TAGS]})
            of_key["tags"] = TAGS
        _budgets(running, tenant, account)
        found.append(running.admin("POST", "/api-keys", of_key)["key"])
    return tuple(found)


def _budgets(running: Deployment, tenant: dict[str, Any], account: str) -> None:
    """Make the budgets in money of an account, and the group that two of them are of."""
    owner: dict[str, Any] = {"organization_id": tenant["organization_id"]}
    group = {**owner, "name": "bench", "kind": "user", "members": ["user-00000"]}
    group_id = running.admin("POST", "/groups", group)["id"] if account == "groups" else None
    for name, selector in BUDGETS.get(account, {}).items():
        wish = {**owner, "name": name, "unit": "money", "amount": "1000000", "mode": "enforce",
                "steps": STEPS.get(account, []), **selector}  # fmt: skip
        if "window" not in selector:
            wish["interval"] = "month"
        if name == "tenant":
            wish["tenant_id"] = tenant["id"]
        if name in {"group", "member"}:
            wish["group_id"] = group_id
        running.admin("POST", "/budgets", wish)
