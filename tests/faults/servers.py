"""Valkey, PostgreSQL and our own processes, each to be killed, frozen, restarted, set back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg

from gateway.local.embedded.unprivileged import borrow
from gateway.settings import settings as settings_module
from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port, postgres_bin
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes")
STOP_S_MAX = 40.0


class Valkey(ValkeyServer):
    """A Valkey as `up` configures it: append-only file, synced every second."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, *DURABLE, *options)
        self.environment.update(environment)

    def kill(self) -> None:
        """End it without a word."""
        self.stop(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def copy(self, to: Path) -> None:
        """Copy its append-only files as they are on disk now."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder / "appendonlydir", to)

    def set_back(self, copy: Path | None) -> None:
        """Put such a copy in place of its files, or nothing at all; it must not run."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        if copy is not None:
            shutil.copytree(copy, self.folder / "appendonlydir")


class Postgres:
    """A PostgreSQL cluster of its own. `url` stays the same over restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.options = ["-c", "listen_addresses=127.0.0.1", "-c", "log_min_messages=fatal", *options]
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        tools = postgres_bin()
        self._borrowed = borrow(None, [tools, folder])
        if self._borrowed:
            os.chown(folder, self._borrowed.uid, self._borrowed.gid)

    def initialise(self) -> None:
        """Make the cluster."""
        making = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            self._command("initdb", "-D", str(self.data), *making),
            check=True, stdout=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip

    def start(self) -> None:
        """Start and wait until it answers."""
        command = ["-D", str(self.data), "-p", str(self.port), "-k", str(self.folder), *self.options]
        self.process = subprocess.Popen(
            self._command("postgres", *command), cwd=self.folder, stderr=subprocess.DEVNULL
        )
        wait_until(self.answers)

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends its sessions, SIGQUIT is a crash."""
        if self.process is not None and self.process.poll() is None:
            self.freeze(frozen=False)
            self.process.send_signal(how)
            self.process.wait(STOP_S_MAX)

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop or continue it with all its sessions."""
        assert self.process is not None
        family = psutil.Process(self.process.pid)
        for one in [family, *family.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def copy(self, to: Path) -> None:
        """Copy the cluster, stopped for it, as a backup would be."""
        self.stop()
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.data, to)
        self.start()

    def set_back(self, copy: Path) -> None:
        """Restore such a copy; it must not run."""
        shutil.rmtree(self.data)
        shutil.copytree(copy, self.data)
        if self._borrowed:
            for path in [self.data, *self.data.rglob("*")]:
                os.chown(path, self._borrowed.uid, self._borrowed.gid, follow_symlinks=False)

    def _command(self, program: str, *words: str) -> list[str]:
        argv = [str(postgres_bin() / program), *words]
        return self._borrowed.command(argv) if self._borrowed else argv


class Program:
    """One process of ours, `serve` or `keeper`, with its settings on standard input as `up` gives them."""

    def __init__(self, role: str, settings: Settings, log: Path, **environment: str) -> None:
        self.role = role
        self.settings = settings
        self.log = log
        self.environment = environment
        self.crash: tuple[str, int, Path] | None = None
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; where `crash` is set, as one that kills itself there."""
        if self.crash is None:
            words = ["gateway", self.role, "--worker"]
        else:
            words = ["tests.faults.crashing", self.role, *map(str, self.crash)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT,
                env=environment | {"PYTHONPATH": str(ROOT)} | self.environment,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(settings_module.to_json(self.settings) + b"\n")
        self.process.stdin.flush()
        self.starts += 1

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status once it has ended; below 0 the signal."""
        return self.process.poll() if self.process is not None else None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.ended is None and self.process is not None:
            self.process.send_signal(number)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and answer its exit status."""
        assert self.process is not None
        self.send(signal.SIGCONT)
        self.send(how)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.close()

    def rss_kib(self) -> int:
        """Resident memory, KiB; 0 where it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) // 1024
        except psutil.NoSuchProcess:
            return 0
