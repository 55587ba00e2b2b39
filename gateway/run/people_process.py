"""The process of a keeper's Admin API, as a program: where its supervisor holds the port, it loads its code
while the keeper loads its own.

Kept apart from `admin_process.py`: it begins before settings and logs are loaded.
"""

from __future__ import annotations

from gateway.local.ports import ReservedPort, supervisor_port
from gateway.local.processes import Child, ProcessSpec, command

# It loads its code, and is told that the loops have begun, before it listens.
READY_S_MAX = 90.0
# Requests that are under way have ten seconds.
STOP_S_MAX = 13.0
Loading = tuple[ReservedPort, Child] | None


def program(port: ReservedPort, settings: bytes, silent_s_max: float) -> ProcessSpec:
    given, told = port.given(0, 1)
    return ProcessSpec(
        "the process for people", command("admin", "--worker"), ready_max_s=READY_S_MAX, stdin=settings,
        stop_max_s=STOP_S_MAX, given=given, environment=told, silent_s_max=silent_s_max,
    )  # fmt: skip


async def loading() -> Loading:
    """The port that a supervisor holds for this keeper, and the process on it; None where there is none."""
    own, _ = supervisor_port()
    if not own:
        return None
    port = ReservedPort(own)
    child = Child(program(port, b"", READY_S_MAX), _say, lambda: None)
    await child.load()
    return port, child


def _say(sentence: str) -> None:
    from gateway.telemetry import logs  # noqa: PLC0415  # the process begins before it is loaded

    logs.logger("tollkeeper.keeper")(sentence, level="warning")
