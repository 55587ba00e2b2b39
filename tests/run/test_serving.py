"""A `serve` of real processes says what is so, whatever its disk takes."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ValkeyServer, free_port
from tests.deploy.processes import Process, get
from tests.waiting import HUNG_S, wait_until


@contextmanager
def serving(folder: Path, url: str, data: Path) -> Iterator[tuple[Process, int]]:
    """Yield a `serve` of two workers, and its operations port."""
    port, ops = free_port(), free_port()
    words = ["serve", "--gateway-port", str(port), "--ops-port", str(ops), "--workers", "2"]
    environ = {"REDIS_URL": url, "KEY_PEPPER": "a-pepper-long-enough", "DATA_DIR": str(data)}
    environ |= {"OPS_HOST": "127.0.0.1", "WORKER_SILENT_S_MAX": "3600"}
    process = Process(folder, "serve", words, {f"TOLLKEEPER_{name}": said for name, said in environ.items()})
    try:
        wait_until(lambda: "serving on" in process.said, HUNG_S)
        yield process, ops
    finally:
        process.stop()


def workers(process: Process) -> list[int]:
    pid = process.popen.pid
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def fill_disk(process: Process) -> None:
    """Let no process of a `serve` write to any file from now on, as where its disk is full."""
    for pid in (process.popen.pid, *workers(process)):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


def readiness(ops: int) -> tuple[int, dict[str, Any]]:
    status, body = get(ops, "/readyz")
    return status, json.loads(body)


def unready(ops: int) -> dict[str, Any] | None:
    status, said = readiness(ops)
    return said if status == 503 else None


def away(ops: int, server: str) -> bool:
    return f'tollkeeper_redis_away{{server="{server}"}} 1.0' in get(ops, "/metrics")[1]


def verify(server: ValkeyServer) -> None:
    """Say what a keeper says once it has compared this very server."""
    with server.connect() as client:
        client.set("tk:verified:{p00}", client.info("server")["run_id"])


def test_readyz_names_a_redis_that_hangs_or_is_gone_although_no_file_can_be_written(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    server = own_valkey()
    name = f"127.0.0.1:{server.port}"
    verify(server)
    with serving(tmp_path, server.url, tmp_path / "data") as (process, ops):
        wait_until(lambda: readiness(ops)[0] == 200)
        assert not away(ops, name)
        fill_disk(process)
        assert readiness(ops)[0] == 200
        assert server.process
        server.process.send_signal(signal.SIGSTOP)
        try:
            said = wait_until(lambda: unready(ops))
            assert said["reasons"]["redis"] == f"{name}: does not answer in time"
            assert said["dependencies"]["gateway"] is True
            wait_until(lambda: away(ops, name))
        finally:
            server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: readiness(ops)[0] == 200)
        server.stop(signal.SIGKILL)
        wait_until(lambda: f"{name}: [Errno 111]" in (unready(ops) or {}).get("reasons", {}).get("redis", ""))


def test_readyz_is_no_longer_ready_once_no_worker_reports(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    server = own_valkey()
    verify(server)
    with serving(tmp_path, server.url, tmp_path / "data") as (process, ops):
        wait_until(lambda: readiness(ops)[0] == 200)
        for worker in workers(process):
            os.kill(worker, signal.SIGSTOP)
        try:
            said = wait_until(lambda: unready(ops))
            assert said["reasons"]["redis"] == "no worker reports its state"
        finally:
            for worker in workers(process):
                os.kill(worker, signal.SIGCONT)
