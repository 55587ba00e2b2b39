"""Finds and stops processes that a killed `up` left behind.

A process id alone proves nothing, as it may have been reused. A process is ours if its start time equals the
stored one, or if it was started on our data directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import psutil

from gateway.local.data_directory import DataDirectory

STOP_MAX_S = 15.0
SAME_START_S = 1.5


def noted_child(pid: int | None) -> dict[str, float] | None:
    """Return the id and start time of a process, to recognize it later; None if it does not exist."""
    if pid is None:
        return None
    with contextlib.suppress(psutil.Error):
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    return None


def stop_leftovers(data: DataDirectory, say: Callable[[str], None]) -> None:
    """Stop the processes that an earlier `up` left running: gateways and keeper first, then the databases.

    `say` prints which process is stopped.
    """
    processes = data.read("processes.json")
    ours = [found for note in processes.get("programs", []) if (found := _find_process(note))]
    _stop(ours, say)
    for folder in data.path.glob(f"{data.redis.name}*"):
        valkey = _named(folder / "valkey.pid")
        if valkey is not None and _works_on(valkey, "valkey-server", folder):
            _stop([valkey], say)
    lock = data.postgres / "postmaster.pid"
    postmaster = _named(lock)
    if postmaster is not None and _works_on(postmaster, "postgres", data.postgres):
        _stop([postmaster], say, SIGINT)
    elif postmaster is not None and _works_on(postmaster, "", data.postgres) is False:
        # Another process has reused the id, and PostgreSQL would mistake it for its own.
        with contextlib.suppress(OSError):
            lock.unlink()


def _find_process(note: Any) -> psutil.Process | None:
    """Return the process that a note names; None if it has ended."""
    try:
        process = psutil.Process(int(note["pid"]))
        if abs(process.create_time() - float(note["started"])) < SAME_START_S:
            return process
    except (psutil.Error, KeyError, TypeError, ValueError):
        pass
    return None


def _named(pid_file: Path) -> psutil.Process | None:
    try:
        return psutil.Process(int(pid_file.read_text().split()[0]))
    except (psutil.Error, OSError, ValueError, IndexError):
        return None


def _works_on(process: psutil.Process, name: str, directory: Path) -> bool | None:
    """Return whether a process is the program `name` and works on `directory`; None if this is unknown.

    The command line is read, because in a container even root may not see another user's working directory.
    """
    try:
        words = process.cmdline()
        return process.name().startswith(name) and any(
            word == str(directory) or word.startswith(f"{directory}/") for word in words
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


def _stop(processes: list[psutil.Process], say: Callable[[str], None], how: int = SIGTERM) -> None:
    """Stop processes by a signal, and kill those that do not end in time."""
    for process in processes:
        say(f"stopping process {process.pid}, left over from a start that was killed")
        with contextlib.suppress(psutil.Error):
            process.send_signal(how)
    _, alive = psutil.wait_procs(processes, timeout=STOP_MAX_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_MAX_S)
