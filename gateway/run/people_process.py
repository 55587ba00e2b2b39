"""The process of a keeper's Admin API, as a program. Where a supervisor holds its port, the keeper forks it
while both load their code.

Apart from `admin_process.py`, which watches it: this runs before settings and logs are loaded.
"""

from __future__ import annotations

import os

from gateway.local.ports import ReservedPort, supervisor_port
from gateway.local.processes import Child, ProcessSpec, command

# It loads its code, and is told that the loops have begun, before it listens.
READY_S_MAX = 90.0
# Requests that are under way have ten seconds.
STOP_S_MAX = 13.0
# The port that a supervisor holds for it, and the child that loads its code; None where nobody holds one.
Loading = tuple[ReservedPort, Child] | None


def program(port: ReservedPort, settings: bytes, silent_s_max: float) -> ProcessSpec:
    given, told = port.given(0, 1)
    return ProcessSpec(
        "the process for people", command("admin", "--worker"), ready_max_s=READY_S_MAX, stdin=settings,
        stop_max_s=STOP_S_MAX, given=given, environment=told, silent_s_max=silent_s_max,
    )  # fmt: skip


def fork() -> tuple[bool, Loading]:
    """Fork it off a keeper that has loaded what both need: (True, port and child) in the keeper, (False,
    None) in the fork.

    Without a fork where no supervisor holds the port, or the system has no `pidfd_open` to say when one ends:
    then the keeper starts the program later.
    """
    own, _ = supervisor_port()
    if not own:
        return True, None
    port = ReservedPort(own)
    child = Child(program(port, b"", READY_S_MAX), _say, lambda: None)
    if not hasattr(os, "pidfd_open") or child.fork():
        return True, (port, child)
    for one in own:  # found again by its descriptor, as by one that is started
        one.detach()
    return False, None


def _say(sentence: str) -> None:
    from gateway.telemetry import logs  # noqa: PLC0415  # the process begins before it is loaded

    logs.logger("tollkeeper.keeper")(sentence, level="warning")
