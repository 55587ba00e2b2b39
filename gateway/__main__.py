"""Start the command line, and start workers without loading code that only people need.

`tollkeeper serve --worker`, `keeper --worker` and `admin --worker` are for supervisors: settings come as one
JSON line on standard input, which stays open as long as the parent lives.
`replay --worker` gets its request in this way. All other commands are in
`gateway/cli/main.py`.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import StartError, TollkeeperError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.local.parent_pipe import ParentPipe
    from gateway.settings.settings import Settings

# A process that replays budgets, for one request.
REPLAY = "replay"
# A gateway worker, a keeper, a keeper's process for people, and one of its replays.
WORKERS = frozenset({"serve", "keeper", "admin", REPLAY})
LIBRARY_MISSING = "cannot open shared object file"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. A failed start prints one line on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words == ["--version"]:
            from gateway.extras import version

            print(f"tollkeeper {version()}", flush=True)  # noqa: T201  # the answer
            return 0
        if words == ["--help"]:  # `make docs` writes it from the commands, which take a second to load
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # it is a file
            print((Path(__file__).parent / "cli" / "help.txt").read_text("utf-8"), end="", flush=True)  # noqa: T201
            return 0
        if len(words) == 2 and words[1] == "--worker" and words[0] in WORKERS:
            return _worker(words[0])
        if len(words) == 3 and words[0] == "demo-upstream" and words[2] == "--worker":
            return _demo_upstream(int(words[1]))
        if words[:1] == ["serve"] and "--help" not in words:
            from gateway.run import serving  # and a lone gateway too

            options = serving.plain_options(words[1:])
            if options is not None:
                config = options.pop("config", None)
                serving.serve(Path(config) if config else None, **options)
                return 0
        gc.disable()  # while commands are loaded: this saves a seventh of the time
        from gateway.cli.main import run  # workers are spared the command line's libraries

        return run(words)
    except TollkeeperError as error:
        return _print_failure(error.message)
    except ImportError as error:
        if LIBRARY_MISSING not in str(error):
            raise
        return _print_failure(f"a shared library is missing on this machine: {error}")
    except OSError as error:
        # A full disk, an address in use, a file of another user: a traceback would not explain more.
        return _print_failure(str(error))
    except KeyboardInterrupt:
        return 130


def _worker(role: str) -> int:
    """Run one process for a supervisor: a gateway worker, a keeper, its Admin API or a replay; return 0."""
    if role == REPLAY:
        from gateway.run.replay_process import run_replay

        return run_replay()
    import faulthandler
    import signal

    from gateway.run.loading import loading_code

    with loading_code():
        run = _load_code(role)
    from gateway.local.processes import run_to_end
    from gateway.run import coarse_loop

    faulthandler.register(signal.SIGUSR2)  # prints where each thread is, without values
    run_to_end(coarse_loop.run, _run_to_end(_read_settings_and_run(run)))
    return 0


def _load_code(role: str) -> Callable[[Settings, ParentPipe], Coroutine[None, None, None]]:
    """Load the code of a process with this role and return the function that runs it.

    Each role loads only its own code: a keeper nothing of the data plane, a gateway nothing of PostgreSQL.
    Code that a keeper and its Admin API's process share is loaded once, then the keeper forks. So this
    function returns twice: in the keeper and in the fork.
    """
    from functools import partial

    from gateway.counters.redis.scripts import library

    library()  # build it before a request waits for it
    if role == "keeper":
        from gateway.run import (  # noqa: F401  # what both need
            keeper_doors,
            keeper_loops,
            keeper_parts,
            keeper_settings,
            people_process,
        )

        is_keeper, people = people_process.fork()
        if is_keeper:
            from gateway.run.keeper import run_keeper

            return partial(run_keeper, people=people)
        role = "admin"
    if role == "admin":
        from gateway.run.administration import run_administration

        return run_administration
    from gateway.app import run_gateway

    return run_gateway


async def _read_settings_and_run(run: Callable[[Settings, ParentPipe], Coroutine[None, None, None]]) -> None:
    """Read the settings, one line of JSON from standard input, and call `run` with them."""
    import asyncio

    from gateway.core.times import use_zones
    from gateway.local import heartbeat
    from gateway.local.parent_pipe import ParentPipe
    from gateway.settings.settings import from_json
    from gateway.telemetry import logs

    parent_pipe = ParentPipe(sys.stdin.fileno())
    line = parent_pipe.first()
    if not line.endswith(b"\n"):
        raise StartError("the supervisor went away before it said the settings")
    settings = from_json(line)
    use_zones(settings.time_zones)
    parent_pipe.hold(settings.shutdown_grace_s + 10.0)
    heartbeat.allow_many_files()
    logs.configure(settings.log_level)
    beating = asyncio.create_task(heartbeat.keep_beating())
    await run(settings, parent_pipe)
    beating.cancel()


async def _run_to_end(work: Coroutine[None, None, None]) -> None:
    """Run `work`. If it fails, report the error and exit the process at once with status 1."""
    import traceback

    try:
        await work
    except TollkeeperError as error:
        os._exit(_print_failure(error.message))
    except Exception:  # noqa: BLE001  # the supervisor starts a new one
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _demo_upstream(port: int) -> int:
    import asyncio

    from gateway.local.demo.upstream import serve_until_stopped
    from gateway.local.parent_pipe import ParentPipe

    parent_pipe = ParentPipe(sys.stdin.fileno())
    parent_pipe.first()
    parent_pipe.hold(5.0)
    asyncio.run(serve_until_stopped("127.0.0.1", port))
    return 0


def _print_failure(sentence: str) -> int:
    print(f"tollkeeper: {' '.join(sentence.split())}", file=sys.stderr, flush=True)  # noqa: T201  # the answer
    return 1


if __name__ == "__main__":
    sys.exit(main())
