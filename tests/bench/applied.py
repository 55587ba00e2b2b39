"""How long it takes to plan and to apply a large configuration, and to find that nothing of it has changed.

Organizations have two tenants with two keys each and a budget; the rest are prices, plans and services. Files
are read, the plan is made, the same plan is done, and all is planned again, as `tollkeeper apply` asks it.
What is left out is HTTP and the counters, which are told behind it. Prints one line of JSON.
Usage: python -m tests.bench.applied [--objects N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gateway.admin.configuration.applying import Configurator, Wish
from gateway.cli.admin.configuration import sources
from gateway.cli.admin.configuration.documents import written
from gateway.core.accounts.administration import Actor
from gateway.core.accounts.roles import ADMIN
from persistence import engine as engines
from persistence.schema import migrate
from tests.admin.conftest import MemoryCounters, ports_over
from tests.bench.flush import postgres

PLANS, SERVICES = 20, 30
# An organization, its tenants, their keys, and a budget.
EACH = 1 + 2 + 4 + 1
PRICED = 5


def objects_of(count: int) -> dict[str, list[dict[str, Any]]]:
    """So many objects: a fifth of them prices."""
    organizations = [
        f"Organization {n:05d}" for n in range((count - PLANS - SERVICES - count // PRICED) // EACH)
    ]
    tenants = [(owner, name) for owner in organizations for name in ("Web", "Batch")]
    found: dict[str, list[dict[str, Any]]] = {
        "token-plans": [{"name": f"Plan {n}", "total_amount": 1_000_000 + n} for n in range(PLANS)],
        "services": [
            {
                "name": f"Service {n}", "key": f"s{n}", "credits": n, "service_type": "Pay-As-You-Go",
                "business_model": "Consumption", "upstream": "u", "paths": [f"/v{n}/*"],
            }
            for n in range(SERVICES)
        ],
        "organizations": [{"name": name, "limits": {"concurrency": 9}} for name in organizations],
        "tenants": [
            {"organization": owner, "name": name, "plan": f"Plan {n % PLANS}"}
            for n, (owner, name) in enumerate(tenants)
        ],
        "api-keys": [
            {"tenant": {"organization": owner, "name": tenant}, "name": name, "models": ["gpt-*"]}
            for owner, tenant in tenants
            for name in ("one", "two")
        ],
        "budgets": [
            {"organization": owner, "name": "A day", "unit": "money", "amount": "25.00", "interval": "day"}
            for owner in organizations
        ],
    }  # fmt: skip
    left = count - sum(map(len, found.values()))
    found["prices"] = [{"model": f"m{n}", "currency": "USD", "input": "2.5"} for n in range(max(0, left))]
    return found


async def measure(url: str, count: int) -> dict[str, float]:
    """Seconds of each step; what it came to."""
    found: dict[str, float] = {}
    engine = engines.create(url)
    ports = replace(ports_over(engine, MemoryCounters(url)), actor=Actor("bench", ADMIN))
    ports.pusher.away = True  # type: ignore[attr-defined]  # counters in memory

    async def timed(what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        began, processor = time.perf_counter(), time.process_time()
        done = await work()
        found[f"{what}_s"] = round(time.perf_counter() - began, 2)
        found[f"{what}_cpu_s"] = round(time.process_time() - processor, 2)
        return done

    async def do(**wish: Any) -> Any:
        return (
            await Configurator(ports, "bench", lambda: datetime.now(UTC)).do(Wish(objects, **wish))
        ).content

    with TemporaryDirectory(prefix="tollkeeper-applied-") as folder:
        file = Path(folder, "all.yaml")
        file.write_text(written(objects_of(count)), encoding="utf-8")
        read = await timed("read", lambda: asyncio.to_thread(sources.read, [str(file)]))
    objects = sources.body(read)["objects"]
    planned = await timed("plan", lambda: do(trial=True))
    done = await timed("apply", lambda: do(digest=planned["digest"]))
    again = await timed("again", lambda: do(trial=True))
    await engine.dispose()
    return {**found, "applied": len(done["changes"]), "unchanged": again["unchanged"]}


def main() -> int:
    """Apply, print; 1 where something was not applied."""
    parser = argparse.ArgumentParser(prog="applied")
    parser.add_argument("--objects", type=int, default=10_000)
    count = parser.parse_args().objects
    with postgres() as url:
        migrate.upgrade(url)
        found = asyncio.run(measure(url, count))
    print(json.dumps(found))
    return 0 if found["applied"] == found["unchanged"] == count else 1


if __name__ == "__main__":
    raise SystemExit(main())
