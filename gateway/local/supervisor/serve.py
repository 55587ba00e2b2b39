"""`tollkeeper serve`: gateway workers on one port, watched, and their operations port.

SIGHUP has the settings read anew, unless a person started it in a terminal: then it means that the
terminal is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import StartError, TollkeeperError
from gateway.local import ports
from gateway.local.announce import Voice
from gateway.local.child import Child, Program
from gateway.local.supervisor import ops

# A worker loads its code and waits for Redis, its own bound, before it listens.
LOADING_S_MAX = 30.0
# Behind its grace it breaks calls off and settles what came of them.
SETTLING_S_MAX = 6.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What to run and where. `settings_line` is given the port the workers share.

    `renew` reads the settings anew and says what changed, or raises where anything is wrong: then
    `settings_line` says what it said before.
    """

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
    renew: Callable[[], str]


def run_serve(serving: Serving, voice: Voice) -> int:
    """The whole command: 0 after an orderly stop, 1 with one line if it cannot start."""
    try:
        asyncio.run(_serve(serving, voice))
    except StartError as error:
        voice.fail(error.message)
        return 1
    return 0


async def _serve(serving: Serving, voice: Voice) -> None:
    stop, renew = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, stop.set if sys.stdin.isatty() else renew.set)
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
        renewing = asyncio.create_task(_renewing(serving, renew, children, port, voice))
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
            renewing.cancel()
            stopping.cancel()
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StartError):
                await starting
            voice.say("stopping: calls are finished first")
            await asyncio.gather(*(child.stop() for child in children))
            operations.close()


async def _renewing(
    serving: Serving, renew: asyncio.Event, children: list[Child], port: int, voice: Voice
) -> None:
    """Hand settings that were read anew to the workers; with anything wrong in them the old ones stay."""
    while True:
        await renew.wait()
        renew.clear()
        try:
            done = serving.renew()
        except TollkeeperError as error:
            voice.warn(f"settings are kept as they were: {error.message}")
            continue
        line = serving.settings_line(port)
        await asyncio.gather(*(child.tell(line) for child in children))
        voice.say(f"settings read anew: {done}")


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
        stop_max_s=serving.grace_s + SETTLING_S_MAX,
    )
