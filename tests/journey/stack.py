"""A whole Tollkeeper as a user starts it, and a small hand for its Admin API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psycopg

from tests import plain_http
from tests.stacks import Switch
from tests.waiting import HUNG_S, readable, wait_until

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0  # for whatever takes a second where nothing else runs
ANSWER_S_MAX = 60.0
Body = dict[str, Any]


class Stack:
    """One `tollkeeper up`. Attributes as its JSON line names them."""

    gateway_url: str
    admin_url: str
    admin_token: str
    api_key: str
    database_url: str
    redis_url: str
    upstream_url: str
    switch: Switch  # of the one whose upstream may be another one
    mail_port: int  # of the one that sends mails
    together = 12  # asked in a row of whichever of two workers: neither lacks then what all are said to have

    def __init__(self, data_dir: Path, *options: str, **environ: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self._command = [
            sys.executable, "-m", "gateway", "up", "--json", "--gateway-port", "0", "--admin-port", "0",
            "--data-dir", str(data_dir), *options,
        ]  # fmt: skip
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
        self._environ |= {"PYTHONPATH": str(ROOT), "TOLLKEEPER_INVOICE_ISSUER": "Journeys Ltd"} | environ
        self.start()

    def start(self) -> None:
        """Start and wait for the line."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, env=self._environ, cwd=ROOT
            )
        assert self.process.stdout is not None
        ready = readable(self.process.stdout, HUNG_S)
        line = self.process.stdout.readline() if ready else b""
        assert line, self.log.read_text()[-3000:]
        self.__dict__.update(json.loads(line))

    @property
    def pids(self) -> dict[str, Any]:
        """The process ids as they are now; none while they are written."""
        found: dict[str, Any] = json.loads(Path(self.data_dir, "pids.json").read_text() or "{}")
        return found

    def wait_until_whole(self) -> None:
        """Wait until keeper and workers answer; of any worker, whichever is asked."""
        wait_until(lambda: self.admin("GET", "/organizations?limit=1")[0] == 200, HUNG_S)
        wait_until(lambda: all(self._answers() for _ in range(8)), HUNG_S)

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.chat(self.api_key, "1,1").status_code == 200
        return False

    def stop(self) -> int:
        """Ctrl-C, and its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(HUNG_S)

    def admin(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One call of the Admin API: status and JSON; 0 and None where nobody answers."""
        request = urllib.request.Request(
            f"{self.admin_url}/admin/v1{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"authorization": f"Bearer {self.admin_token}", "content-type": "application/json"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except (urllib.error.URLError, ConnectionError):
            return 0, None  # nobody is there just now

    def make(self, resource: str, **fields: Any) -> Body:
        """Create and return a resource, once somebody answers."""
        key = {"idempotency_key": uuid.uuid4().hex}
        status, body = wait_until(
            lambda: (said := self.admin("POST", f"/{resource}", fields, **key))[0] and said
        )
        assert status in {201, 202}, (status, body, self.log.read_text()[-3000:])  # in force, or soon
        made: Body = body
        return made

    def apply(self, **objects: list[Body]) -> list[Body]:
        """Plan objects of a configuration and apply them; the changes that were planned."""
        written = {"objects": {name.replace("_", "-"): rows for name, rows in objects.items()}}
        status, plan = self.admin("POST", "/configuration", written)
        assert status == 200, plan
        if plan["changes"]:
            status, done = self.admin("POST", "/configuration", written | {"digest": plan["digest"]})
            assert status in {200, 202}, done  # in force, or soon
        changes: list[Body] = plan["changes"]
        return changes

    def amend(self, price: Body, reason: str, **fields: Any) -> Body:
        """Amend a price; the price in its place, in force or soon."""
        status, made = self.admin("POST", f"/prices/{price['id']}/amend", {**fields, "reason": reason})
        assert status in {200, 202}, made
        amended: Body = made
        return amended

    def act(self, tenant_id: int, action: str, **fields: Any) -> Body:
        """An action on a tenant; its quota as it is then."""
        status, body = self.admin("POST", f"/tenants/{tenant_id}/{action}", fields or None)
        assert status == 200, body
        quota: Body = body
        return quota

    def quota(self, tenant_id: int) -> Body:
        """A tenant's live quota."""
        status, body = self.admin("GET", f"/tenant-quotas/{tenant_id}")
        assert status == 200, body
        quota: Body = body
        return quota

    def ledger(self, tenant_id: int) -> list[Body]:
        """A tenant's ledger, oldest first, once somebody answers."""
        asked = f"/token-ledger?tenant_id={tenant_id}&limit=1000"
        status, body = wait_until(lambda: (found := self.admin("GET", asked))[0] and found)
        assert status == 200, body
        rows: list[Body] = body["items"]
        return rows

    def settled(self, tenant_id: int, rows: int, within_s: float = WITHIN_S) -> list[Body]:
        """The ledger once it has so many rows."""
        found: list[Body] = wait_until(lambda: len(r := self.ledger(tenant_id)) >= rows and r, within_s)
        return found

    def tenant(self, total: int | None = 1000, **plan: Any) -> tuple[int, str]:
        """A new tenant on a plan of its own: its id and an API key."""
        token_plan = self.make("token-plans", name=f"plan {time.monotonic_ns()}", total_amount=total, **plan)
        tenant = self.make("tenants", name=f"tenant {time.monotonic_ns()}", plan_id=token_plan["id"])
        key = self.make("api-keys", tenant_id=tenant["id"])
        return tenant["id"], key["key"]

    def chat(self, key: str, usage: str = "", **fields: Any) -> httpx.Response:
        """One chat call; `usage` dictates what the upstream reports, `x_…` fields are header fields."""
        headers = {name.replace("_", "-"): fields.pop(name) for name in list(fields) if name.startswith("x_")}
        if usage:
            headers["x-demo-usage"] = usage
        body = {
            "model": "demo-small",
            "messages": [{"role": "user", "content": "hello there"}],
            "max_tokens": 16,
        }
        return plain_http.post(
            f"{self.gateway_url}/v1/chat/completions",
            json=body | fields,
            headers={"authorization": f"Bearer {key}"} | headers,
            timeout=ANSWER_S_MAX,
        )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows straight from PostgreSQL."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query).fetchall()
