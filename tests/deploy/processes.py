"""Tollkeeper's processes one by one, started as a container would be: arguments, variables, a directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tree import ROOT
from tests.waiting import HUNG_S


class Process:
    """One `tollkeeper …`; nothing of this process' own settings reaches it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: list[str],
        environ: dict[str, str],
        program: Sequence[str] = (),
        *,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.log = folder / f"{name}.log"
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "HOME") if key in os.environ}
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*(program or (sys.executable, "-m", "gateway")), *arguments],
                env=kept | ({} if program else {"PYTHONPATH": str(ROOT)}) | environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, pass_fds=descriptors,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything it said so far."""
        return self.log.read_text()

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self.popen.wait(HUNG_S)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.running:
            self.popen.terminate()
        return self.ended()


def answers(container: dict[str, Any], probe: str, ports: dict[str, int]) -> bool:
    """What a probe of a manifest finds at the ports that stand for the container's."""
    asked = container[probe]
    port = ports[(asked.get("httpGet") or asked["tcpSocket"])["port"]]
    try:
        if "tcpSocket" in asked:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return get(port, asked["httpGet"]["path"])[0] == 200
    except OSError:
        return False


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Admin:
    """The Admin API of a keeper."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    def ask(self, method: str, path: str, **fields: Any) -> Any:
        """What it answers; an error raises."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/admin/v1{path}",
            method=method,
            data=json.dumps(fields).encode() if fields else None,
            headers={"authorization": f"Bearer {self._token}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def customer(self, total: int | None = 1_000_000) -> tuple[int, str]:
        """A new tenant on a plan of its own, and an API key."""
        plan = self.ask("POST", "/token-plans", name=f"plan {os.urandom(4).hex()}", total_amount=total)
        tenant = self.ask("POST", "/tenants", name=f"tenant {os.urandom(4).hex()}", plan_id=plan["id"])
        key = self.ask("POST", "/api-keys", tenant_id=tenant["id"])
        return tenant["id"], key["key"]

    def used(self, tenant_id: int) -> int:
        """Tokens of the rows that are in PostgreSQL."""
        rows = self.ask("GET", f"/token-ledger?tenant_id={tenant_id}&limit=1000")["items"]
        return sum(row["amount"] for row in rows if row["transaction_type"] == "consume")
