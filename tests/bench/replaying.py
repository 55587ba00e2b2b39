"""A replay of a million calls against five budgets: its time and memory, and what others' requests take meanwhile.

Calls of a gateway, and requests of the Admin API, are asked one after another, in turns without and with a replay in one run.
Prints one line of JSON. Usage: python -m tests.bench.replaying [--calls N] [--users N] [--rolling] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from gateway.core.accounts.replay.fold import REPLAY_S_MAX
from gateway.core.billing.price_book import KINDS
from tests import plain_http
from tests.journey.stack import Stack

USERS = """
INSERT INTO app_user (organization_id, external_id)
SELECT %(organization)s, 'user-' || n FROM generate_series(1, %(users)s) AS n"""
CALLS = f"""
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, user_id, cost, currency, model, tokens,
                  {", ".join(KINDS)}, credits, units, status, streamed, estimated, duration_ms)
SELECT gen_random_uuid(), now() - interval '29 days' + n * interval '28 days' / %(calls)s, %(organization)s, %(tenant)s,
       %(key)s, u.first + n %% %(users)s, 1000000 * (1 + n * 7 %% 40), 'USD', 'm' || n %% 3, 100 + n %% 900,
       {", ".join("0" for _ in KINDS)}, 0, 0, 200, false, false, 1
  FROM generate_series(0, %(calls)s - 1) AS n,
       (SELECT min(id) AS first FROM app_user WHERE organization_id = %(organization)s) AS u"""
USUAL: list[dict[str, Any]] = [
    {"unit": "money", "interval": "month", "amount": "20", "each": "user"},
    {"unit": "money", "window": "rolling", "length": "5h", "amount": "0.2", "each": "user"},
    {"unit": "tokens", "window": "first_use", "length": "7d", "amount": 100_000, "each": "user"},
    {"unit": "requests", "interval": "day", "amount": 30, "each": "user", "carry": {"max": 60}},
    {"unit": "money", "interval": "week", "amount": "2000", "model": "m1"},
]
LENGTHS = ("5h", "7d", "1d", "30d", "1h")
ROLLING: list[dict[str, Any]] = [
    {"unit": "money", "window": "rolling", "length": length, "amount": "1000000", "each": "user"}
    for length in LENGTHS
]


class Asking:
    """Requests of one kind, one after another on a thread of their own, with their milliseconds."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask, self.took, self._ends = ask, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ends.is_set():
            since = time.perf_counter()
            assert self._ask()
            self.took.append((time.perf_counter() - since) * 1_000)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_024)
    parser.add_argument("--rolling", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder, "data"), "--workers", "1")
        try:
            stack.wait_until_whole()
            print(json.dumps(measure(stack, asked)))
        finally:
            stack.stop()


def measure(stack: Stack, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of some rounds, each a time without a replay and a replay."""
    tenant_id, key = stack.tenant(None)
    _, tenant = stack.admin("GET", f"/tenants/{tenant_id}")
    _, keys = stack.admin("GET", f"/api-keys?tenant_id={tenant_id}")
    fill(stack, tenant["organization_id"], tenant_id, keys["items"][0]["id"], asked)
    budgets = [
        {"name": f"b{number}", **budget} for number, budget in enumerate(ROLLING if asked.rolling else USUAL)
    ]
    body = {"organization_id": tenant["organization_id"], "budgets": budgets}
    figures: dict[str, list[Any]] = {"seconds": [], "cpu_s": [], "mb": [], "refused": []}
    quiet, beside = {"calls": [], "people": []}, {"calls": [], "people": []}  # type: dict[str, list[float]], dict[str, list[float]]
    for _ in range(asked.rounds):
        for took, replays in ((quiet, False), (beside, True)):
            with (
                Asking(lambda: stack.chat(key, "1,1").status_code == 200) as calls,
                Asking(lambda: stack.admin("GET", f"/tenants/{tenant_id}")[0] == 200) as people,
            ):
                if replays:
                    replay(stack, body, figures)
                else:
                    time.sleep(15)
            took["calls"] += calls.took
            took["people"] += people.took
    return figures | {
        f"{name}_{what}": [round(part, 2) for part in (at(quiet[name]), at(beside[name]), at(beside[name]) / at(quiet[name]))]
        for name in quiet
        for what, at in (("p50", statistics.median), ("p95", lambda row: statistics.quantiles(row, n=20)[-1]))
    }  # fmt: skip


def fill(stack: Stack, organization: int, tenant: int, key: int, asked: argparse.Namespace) -> None:
    """Store the calls, evenly over 28 days and over users."""
    values = {
        "organization": organization, "tenant": tenant, "key": key, "calls": asked.calls, "users": asked.users,
    }  # fmt: skip
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(USERS, values)
        connection.execute(CALLS.encode(), values)
        connection.execute("ANALYZE call")


def replay(stack: Stack, body: dict[str, Any], figures: dict[str, list[Any]]) -> None:
    """Ask for a replay, and add its figures; its process is looked at until it ends."""
    most, ends = {"cpu": 0.0, "mb": 0.0}, threading.Event()

    def look() -> None:
        while not ends.is_set():
            for process in psutil.Process(stack.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if process.cmdline()[-2:] == ["replay", "--worker"]:
                        most["mb"] = max(most["mb"], process.memory_info().rss / 1e6)
                        most["cpu"] = max(most["cpu"], sum(process.cpu_times()[:2]))
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    since = time.perf_counter()
    try:
        answer = plain_http.post(
            f"{stack.admin_url}/admin/v1/budgets/replay", json=body, timeout=REPLAY_S_MAX,
            headers={"authorization": f"Bearer {stack.admin_token}"},
        )  # fmt: skip
    finally:
        ends.set()
        thread.join()
    assert answer.status_code == 200, answer.text
    for name, figure in (
        ("seconds", round(time.perf_counter() - since, 1)), ("cpu_s", round(most["cpu"], 1)), ("mb", round(most["mb"])),
        ("refused", answer.json()["refused"]),
    ):  # fmt: skip
        figures[name].append(figure)


if __name__ == "__main__":
    main()
