"""A gateway's worker that dies refuses nobody, and a gateway starts again on one host without a refusal."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment, answers
from tests.deploy.processes import Process, get
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

BODY = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
CALLERS = 2  # of each kind
# As a service manager starts it: descriptor 3 listens, whatever becomes of the process.
AS_SERVICE = f"""
import os, sys
os.dup2(int(os.environ.pop("SERVICE_SOCKET")), 3)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "PYTHONPATH": {str(ROOT)!r}}}
os.execv(sys.executable, [sys.executable, "-m", "gateway", *sys.argv[1:]])
"""


@pytest.fixture
def deployment(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> Iterator[Deployment]:
    one = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    yield one
    one.stop()


class Load:
    """Calls that are made all the time, over new connections and over kept ones; what each came to."""

    def __init__(self, port: int, key: str) -> None:
        self._url, self._key = f"http://127.0.0.1:{port}", key
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.came_to: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[Load]:
        """As long as this lasts."""
        with ThreadPoolExecutor(2 * CALLERS) as callers:
            calling = [callers.submit(self._call, keeps) for keeps in (True, False) for _ in range(CALLERS)]
            try:
                yield self
            finally:
                self._over.set()
        for each in calling:
            each.result()

    def another(self, count: int = 20) -> None:
        """Wait for so many more good calls."""
        before = self.came_to["200"]
        wait_until(lambda: self.came_to["200"] >= before + count, HUNG_S)

    def _call(self, keeps: bool) -> None:
        client = self._client()
        while not self._over.is_set():
            try:
                found = str(client.post("/v1/chat/completions", json=BODY).status_code)
            except httpx.HTTPError as error:
                found = type(error).__name__
            with self._lock:
                self.came_to[found] += 1
            if not keeps:
                client.close()
                client = self._client()
        client.close()

    def _client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self._key}"}
        return httpx.Client(base_url=self._url, headers=headers, timeout=HUNG_S)


def workers(process: Process) -> list[int]:
    return [child.pid for child in psutil.Process(process.popen.pid).children()]


def replaced(process: Process, before: list[int]) -> bool:
    """Whether another worker runs in place of the first."""
    now = workers(process)
    return len(now) == len(before) and before[0] not in now


def test_a_worker_that_is_killed_under_load_refuses_nobody(deployment: Deployment) -> None:
    _, key = deployment.admin.customer()
    port, ops = free_port(), free_port()
    gateway = deployment.serve(port, ops, TOLLKEEPER_WORKERS="1")
    with Load(port, key).running() as load:
        for _ in range(2):
            load.another()
            before = workers(gateway)
            os.kill(before[0], signal.SIGKILL)
            # It is told, and the port is held meanwhile.
            wait_until(lambda: '"gateway": false' in get(ops, "/readyz")[1])
            wait_until(partial(replaced, gateway, before))
            wait_until(lambda: answers(ops), HUNG_S)
            load.another()
    broken = load.came_to.total() - load.came_to["200"]
    assert load.came_to.keys() <= {"200", "RemoteProtocolError", "ReadError"}  # none is ConnectError
    assert broken <= 2 * 2 * CALLERS  # those in flight at the worker that was killed


def test_a_gateway_starts_again_at_the_socket_of_a_service_manager_without_a_failed_call(
    deployment: Deployment,
) -> None:
    _, key = deployment.admin.customer()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held:
        port, ops = held.getsockname()[1], free_port()

        folder = deployment.folder
        arguments = ["serve", "--config", str(deployment.config), "--gateway-port", str(port)]
        environ = {
            "TOLLKEEPER_DATA_DIR": str(folder / "service"), "TOLLKEEPER_OPS_HOST": "127.0.0.1",
            "SERVICE_SOCKET": str(held.fileno()),
        }  # fmt: skip

        def started() -> Process:
            return Process(
                folder, "service", [*arguments, "--ops-port", str(ops)], deployment.environ | environ,
                program=(sys.executable, "-c", AS_SERVICE), descriptors=[held.fileno()],
            )  # fmt: skip

        gateway = started()
        try:
            wait_until(lambda: answers(ops), HUNG_S)
            with Load(port, key).running() as load:
                for _ in range(2):
                    load.another()
                    assert gateway.stop() == 0
                    gateway = started()
                    load.another()
            assert load.came_to.keys() == {"200"}
        finally:
            gateway.stop()


def test_a_gateway_that_was_told_to_stop_lives_and_is_not_ready_until_its_calls_are_over(
    deployment: Deployment,
) -> None:
    _, key = deployment.admin.customer()
    port, ops = free_port(), free_port()
    gateway = deployment.serve(port, ops)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    headers = {"authorization": f"Bearer {key}", "x-demo-delay-s": "8"}

    def slowly() -> int:
        with httpx.Client(headers=headers, timeout=HUNG_S) as client:
            return client.post(url, json=BODY).status_code

    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(slowly)
        wait_until(lambda: "tollkeeper_requests_in_flight 1.0" in get(ops, "/metrics")[1])
        gateway.popen.terminate()
        wait_until(lambda: get(ops, "/readyz")[0] == 503)
        assert "it stops" in get(ops, "/readyz")[1]
        assert get(ops, "/livez")[0] == 200
        assert not call.done()
        assert call.result() == 200
    assert gateway.ended() == 0
