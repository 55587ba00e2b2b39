"""Processes that a killed `up` left behind: found for certain, then stopped.

A process id alone proves nothing, it may belong to somebody else by now. A process is ours
when its start time is the one we noted, or when it works in our own data directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psutil

from gateway.local.data_directory import DataDirectory

STOP_MAX_S = 15.0
SAME_START_S = 1.5


def noted(pid: int | None) -> dict[str, float] | None:
    """What identifies a process later: its id and when it started."""
    if pid is None:
        return None
    with contextlib.suppress(psutil.Error):
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    return None


def stop_leftovers(data: DataDirectory, say: Callable[[str], None]) -> None:
    """Stop what is still running of an earlier `up`, gateways and keeper before the databases."""
    processes = data.read("processes.json")
    ours = [found for note in processes.get("programs", []) if (found := _same(note))]
    _stop(ours, say, interrupt=False)
    valkey = _named(data.redis / "valkey.pid", "valkey-server", data.redis)
    postmaster = _named(data.postgres / "postmaster.pid", "postgres", data.postgres)
    _stop([valkey] if valkey else [], say, interrupt=False)
    _stop([postmaster] if postmaster else [], say, interrupt=True)
    if postmaster is None or not postmaster.is_running():
        # The lock is ours and nobody works in there: a pid file with somebody else's pid is stale.
        with contextlib.suppress(OSError):
            (data.postgres / "postmaster.pid").unlink()


def _same(note: Any) -> psutil.Process | None:
    try:
        process = psutil.Process(int(note["pid"]))
        if abs(process.create_time() - float(note["started"])) < SAME_START_S:
            return process
    except (psutil.Error, KeyError, TypeError, ValueError):
        pass
    return None


def _named(pid_file: Any, name: str, directory: Any) -> psutil.Process | None:
    """The process a pid file names, if it is that program working in that directory."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if process.name().startswith(name[:15]) and process.cwd() == str(directory.resolve()):
            return process
    except (psutil.Error, OSError, ValueError, IndexError):
        pass
    return None


def _stop(processes: list[psutil.Process], say: Callable[[str], None], *, interrupt: bool) -> None:
    for process in processes:
        say(f"stopping process {process.pid}, left over from a start that was killed")
        with contextlib.suppress(psutil.Error):
            if interrupt:
                process.send_signal(2)
            else:
                process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=STOP_MAX_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_MAX_S)
