"""The program of a keeper's process for people. If a supervisor holds its port, the keeper forks it early.

Both then load their code at the same time. Apart from `admin_process.py`, which watches it, because this runs
before settings and logs are loaded.
"""

from __future__ import annotations

import os

from gateway.local.ports import ReservedPort, supervisor_port
from gateway.local.processes import Child, ProcessSpec, command

# It loads its code, and waits for the keeper's loops to begin, before it listens.
READY_S_MAX = 90.0
# Open requests have ten seconds.
STOP_S_MAX = 13.0
# The port that a supervisor holds for it, and the child that loads its code; None without a supervisor.
Loading = tuple[ReservedPort, Child] | None


def program(port: ReservedPort, settings: bytes, silent_s_max: float) -> ProcessSpec:
    given, told = port.given(0, 1)
    return ProcessSpec(
        "the process for people", command("admin", "--worker"), ready_max_s=READY_S_MAX, stdin=settings,
        stop_max_s=STOP_S_MAX, given=given, environment=told, silent_s_max=silent_s_max,
    )  # fmt: skip


def fork() -> tuple[bool, Loading]:
    """Fork the process for the Admin API; return (True, its port and child) or, in the fork, (False, None).

    Return (True, None) without a fork: no supervisor opened the port, or the system lacks `pidfd_open` to
    watch a child. Then the keeper starts that process later.
    """
    own, _ = supervisor_port()
    if not own:
        return True, None
    port = ReservedPort(own)
    child = Child(program(port, b"", READY_S_MAX), _say, lambda: None)
    if not hasattr(os, "pidfd_open") or child.fork():
        return True, (port, child)
    for one in own:  # the fork finds it by its descriptor, like a started program
        one.detach()
    return False, None


def _say(sentence: str) -> None:
    from gateway.telemetry import logs  # noqa: PLC0415  # the process begins before it is loaded

    logs.logger("tollkeeper.keeper")(sentence, level="warning")
