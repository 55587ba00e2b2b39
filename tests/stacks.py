"""The whole stacks of a run, each made once for all tests that ask for it; `stage` is one in this process.

`stack` is left well by its tests, as `stage` is. Parts of `broken_stack` are killed, frozen and started
again. `other_stack` has one worker, settings that differ from the defaults, and an upstream whose place a
test may take; so has `other_stage`. Tests of neither processes, signals nor commands ask for a stage.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

if TYPE_CHECKING:  # loaded by the tests that need one
    from tests.journey.stack import Stack
    from tests.stage import Stage

# Bounds that a test can reach, and times that it can wait for.
BREAKABLE = {
    "HOLD_TTL_S": "2", "LEASE_FRACTION": "0.1", "SHUTDOWN_GRACE_S": "1", "WAITING_ENTRIES_MAX": "5",
    "JOBS_INTERVAL_S": "1", "INVOICE_COUNTRY": "DE", "INVOICE_TAX_NUMBER": "DE123456789",
}  # fmt: skip
OTHER = {"HOLD_TTL_S": "3", "SHUTDOWN_GRACE_S": "4", "OBJECTS_MAX": "20", "WEBHOOK_PRIVATE_ADDRESSES": "true"}
CONFIG = """
include_default_routes: true
upstreams:
  services: {base_url: "http://services.example"}
  bedrock: {base_url: "http://127.0.0.1:9", family: bedrock}
  cohere: {base_url: "http://127.0.0.1:9", family: cohere}
  ollama: {base_url: "http://127.0.0.1:9", family: ollama}
models:
  - name: house-alias
    targets: [{upstream: openai, model: budgeted-1}]
routes:
  - {path: "/openai/deployments/{model}/chat/completions", upstream: openai, service: chat, family: openai,
     meter: openai_chat}
"""
MAIL_FROM = "tollkeeper@example.com"
AGENTS_MODEL = "claude-sonnet-4-6"


class Switch:
    """A port whose connections go to the demo upstream at `demo`, or to the one that takes its place."""

    def __init__(self, demo: int) -> None:
        self._demo = demo
        self._to, self._open = self._demo, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def to(self, url: str) -> Iterator[None]:
        """Send what is connected from now on to another upstream, until the block ends."""
        self._turn(int(url.rpartition(":")[2]))
        try:
            yield
        finally:
            self._turn(self._demo)

    def stop(self) -> None:
        """End it."""
        self._listener.close()
        self._turn(self._demo)

    def _turn(self, port: int) -> None:
        self._to = port
        for one in tuple(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                with suppress(OSError):
                    other = socket.create_connection(("127.0.0.1", self._to))
                    for pair in ((one, other), (other, one)):
                        self._open.add(pair[0])
                        threading.Thread(target=self._pass, args=pair, daemon=True).start()
                    continue
                one.close()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for one in (source, target):  # who leaves one side leaves the other
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)


def _free_port() -> int:
    from tests.conftest import free_port  # which has the fixtures of this module

    return free_port()


@contextmanager
def _started(*options: str, **settings: str) -> Iterator[Stack]:
    from tests.journey.stack import Stack  # loaded by the tests that need one

    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        environ = {f"TOLLKEEPER_{name}": value for name, value in settings.items()}
        one = Stack(Path(folder) / "data", *options, **environ)
        try:
            yield one
        finally:
            status = one.stop()
        assert status == 0, one.log.read_text()[-3000:]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with _started("--workers", "2") as one:
        yield one


@pytest.fixture(scope="session")
def breakable_stack() -> Iterator[Stack]:
    with _started("--workers", "2", **BREAKABLE) as one:
        yield one


@pytest.fixture
def broken_stack(breakable_stack: Stack) -> Iterator[Stack]:
    """The one whose parts a test may kill, freeze and stop; behind it all of them answer again."""
    yield breakable_stack
    breakable_stack.wait_until_whole()


@contextmanager
def _demo() -> Iterator[int]:
    """The port of a demo upstream."""
    port = _free_port()
    program = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo-upstream", "--port", str(port)], cwd=ROOT
    )
    wait_until(lambda: _answers(port), HUNG_S)
    yield port
    program.terminate()
    program.wait(HUNG_S)


def _answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


@pytest.fixture(scope="session")
def other_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder, _demo() as demo:
        config, policy = Path(folder) / "config.yaml", Path(folder) / "agents.json"
        config.write_text(CONFIG)
        policy.write_text(json.dumps({"model": AGENTS_MODEL, "env": {"CLAUDE_CODE_ENABLE_TELEMETRY": "1"}}))
        switch = Switch(demo)
        mail = _free_port()
        settings = {
            "AGENTS": "true", "AGENTS_SETTINGS_FILE": str(policy), "SMTP_URL": f"smtp://127.0.0.1:{mail}",
            "SMTP_FROM": MAIL_FROM,
        }  # fmt: skip
        options = ("--workers", "1", "--config", str(config), "--upstream", switch.url)
        try:
            with _started(*options, **OTHER, **settings) as one:
                one.switch, one.mail_port = switch, mail
                yield one
        finally:
            switch.stop()


@pytest.fixture(scope="session")
def stage(postgres: str) -> Iterator[Stage]:
    from tests.stage import staged  # loads all of the program

    with staged(postgres) as one:
        yield one


@pytest.fixture(scope="session")
def other_stage(postgres: str) -> Iterator[Stage]:
    from tests.stage import staged  # the same

    with tempfile.TemporaryDirectory(prefix="tollkeeper-stage-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG)
        with staged(postgres, config, **OTHER) as one:
            yield one
