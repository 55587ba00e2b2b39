"""Running `up` for real, with stand-ins for gateway and keeper, each step bounded in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import HUNG_S, readable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent


def runs(pid: int) -> bool:
    """Whether there is such a process; one that ended and was not waited for is none."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def at_work_in(directory: Path) -> list[psutil.Process]:
    """Processes started on something below this directory, as their command lines tell."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(word.startswith(f"{directory}/") for word in words):
            found.append(process)
    return found


class Up:
    """One `up` process."""

    def __init__(self, data_dir: Path, stderr: Path, options: dict[str, Any], path: str) -> None:
        self.data_dir = data_dir
        self._stderr = stderr
        words = [f"{name}={json.dumps(value)}" for name, value in options.items()]
        with stderr.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "up_with_stand_ins.py"), str(data_dir), *words],
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))},
            )

    def ready(self) -> dict[str, Any]:
        """The line it prints once everything answers."""
        stdout = self.process.stdout
        assert stdout is not None
        ready = readable(stdout, HUNG_S)
        line = stdout.readline() if ready else b""
        assert line, self.said()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def pids(self) -> dict[str, Any]:
        """The process ids it has noted now."""
        noted: dict[str, Any] = json.loads((self.data_dir / "pids.json").read_text())
        return noted

    def said(self) -> str:
        """Everything on its standard error so far."""
        return self._stderr.read_text()

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(HUNG_S)

    def refused(self, *, alone: bool = True) -> str:
        """It does not start: exit 1, nothing on standard output, one line saying why, nothing left."""
        assert self.process.wait(HUNG_S) == 1, self.said()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b""
        lines = [line for line in self.said().splitlines() if not line.startswith("{")]
        assert len(lines) == 1, self.said()
        assert not alone or not at_work_in(self.data_dir)
        return lines[0]


class Starter:
    """Starts `up` on data directories below one place and leaves nothing running."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._started: list[Up] = []

    def __call__(self, name: str = "data", *, path: str = "", **options: Any) -> Up:
        stderr = self.place / f"{name.replace('/', '_')}.{len(self._started)}.stderr"
        up = Up(self.place / name, stderr, options, path)
        self._started.append(up)
        return up

    def close(self) -> None:
        for up in self._started:
            if up.process.poll() is None:
                up.process.terminate()
                try:
                    up.process.wait(HUNG_S)
                except subprocess.TimeoutExpired:
                    up.process.kill()
            if up.process.stdout is not None:
                up.process.stdout.close()
            for process in at_work_in(up.data_dir):  # what a failed test left
                process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    starter.close()
