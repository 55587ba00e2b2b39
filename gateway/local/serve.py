"""`tollkeeper serve`: gateway workers on one port, watched, and their operations port."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import StartError
from gateway.local import ops, ports
from gateway.local.announce import Voice
from gateway.local.child import Child, Program

# A worker loads its code and waits for Redis, its own bound, before it listens.
LOADING_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What to run and where. `settings_line` is given the port the workers share."""

    host: str
    port: int
    ops_host: str
    ops_port: int
    workers: int
    grace_s: float
    start_wait_s: float
    worker: Sequence[str]
    settings_line: Callable[[int], bytes]
    ops: Callable[[int], ops.Ops]


def run_serve(serving: Serving, voice: Voice) -> int:
    """The whole command: 0 after an orderly stop, 1 with one line if it cannot start."""
    try:
        asyncio.run(_serve(serving, voice))
    except StartError as error:
        voice.fail(error.message)
        return 1
    return 0


async def _serve(serving: Serving, voice: Voice) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with ports.reserved(serving.host, serving.port, "gateway (--gateway-port)") as socket:
        port: int = socket.getsockname()[1]
        try:
            operations = await ops.listen(serving.ops(port), serving.ops_host, serving.ops_port)
        except OSError as error:
            raise StartError(
                f"cannot listen on {serving.ops_host}:{serving.ops_port} (--ops-port): {error.strerror}"
            ) from error
        children = [
            Child(_program(serving, number, port), voice.say, lambda: None)
            for number in range(serving.workers)
        ]
        starting = asyncio.create_task(_start(children))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ops_port = operations.sockets[0].getsockname()[1]
                voice.say(
                    f"serving on {serving.host}:{port}, health and metrics on {serving.ops_host}:{ops_port}"
                )
                await stopping
        finally:
            stopping.cancel()
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StartError):
                await starting
            voice.say("stopping: calls are finished first")
            await asyncio.gather(*(child.stop() for child in children))
            operations.close()


async def _start(children: list[Child]) -> None:
    await asyncio.gather(*(child.start() for child in children))


def _program(serving: Serving, number: int, port: int) -> Program:
    async def ready(pid: int) -> bool:
        return ports.listens(pid, port)

    return Program(
        f"gateway worker {number + 1}",
        tuple(serving.worker),
        ready,
        serving.start_wait_s + LOADING_S_MAX,
        stdin=serving.settings_line(port),
        stop_max_s=serving.grace_s + 5.0,
    )
