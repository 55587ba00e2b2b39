"""`tollkeeper serve`: watched gateway workers on one port, and an operations port.

It runs for long beside a service, so it starts without libraries that only commands for people need, a third
of its memory. SIGHUP rereads the settings; in a terminal it means that the terminal was closed, and stops the
process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.times import use_zones
from gateway.errors import SettingError, StartError
from gateway.local import ports
from gateway.local.ports import JsonVoice, Voice
from gateway.local.processes import DIED, HUNG, Child, ProcessSpec, command, run_to_end
from gateway.run.health import STOPPING, DiskWatch, Ops, disks, listen, of_gateway
from gateway.run.lifecycle import forever, stop_signal, until_stopped
from gateway.run.memory import give_back_memory
from gateway.run.process_vitals import few_files
from gateway.run.reload import Renewal, SettingsListener, keep_renewing, watch_credentials
from gateway.run.tls_port import TlsPort, check_files
from gateway.settings.secret_files import SUFFIX
from gateway.settings.settings import PREFIX, Settings, load, to_json
from gateway.settings.slips import slips
from gateway.telemetry import logs, metrics

HOME = str(Path(__file__).resolve().parents[2])
NUMBERS = frozenset({"gateway_port", "ops_port", "workers"})
OPTIONS = NUMBERS | {"config", "redis_url"}
# A worker loads its code and waits for Redis, within another bound, before it listens.
LOADING_S_MAX = 30.0
# The time after the grace period to break off calls, settle them, and report what only the worker knows.
SETTLING_S_MAX = 9.0


def plain_options(words: list[str]) -> dict[str, str] | None:
    """Return the options of a `serve` command by name; None if `words` has others, such as `--help`."""
    found: dict[str, str] = {}
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in zip(rest[::2], rest[1::2], strict=False):
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in OPTIONS or name in found or value.startswith("-"):
            return None
        if name in NUMBERS and not value.isdecimal():
            return None
        found[name] = value
    return found if len(rest) % 2 == 0 else None


def serve(config: Path | None, **options: str | int | None) -> None:
    """Run the gateway until it is stopped; `SettingError` for an invalid setting."""
    find_home()
    read = partial(_gateway_settings, config, **options)
    settings = read()
    settings.require("redis_url", "key_pepper")
    logs.configure(settings.log_level)
    voice = Voice() if sys.stderr.isatty() else JsonVoice(logs.logger("tollkeeper.serve"))
    tell_slips(settings, "serve", voice.warn)
    if few := few_files(settings):
        voice.warn(few)
    run_to_end(asyncio.run, _serve(Renewal(settings, read), voice))


def _gateway_settings(config: Path | None, **options: str | int | None) -> Settings:
    """Return a gateway's valid settings; read services from Redis only if needed to check their prices."""
    settings = resolved(config, "serve", **options)
    try:
        settings.table.check_services({})
    except SettingError:
        from gateway.run.reaching import catalogue_of  # noqa: PLC0415  # a supervisor needs no Redis as a rule

        with ThreadPoolExecutor(1) as aside:  # a loop may be running in this thread
            known = aside.submit(lambda: asyncio.run(catalogue_of(settings))).result()
        settings.table.check_services(known)
    return settings


async def _serve(now: Renewal, voice: Voice) -> None:
    """Run the gateway's workers and its operations port until a signal stops them."""
    stop, renew, settings = stop_signal(), asyncio.Event(), now.running
    hung_up = stop.set if sys.stdin.isatty() else renew.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)
    log = logs.logger("tollkeeper.serve")
    check_files(settings, "gateway")  # so that a file that its workers cannot use is reported here
    tls, disk = TlsPort(settings, "ops", log), DiskWatch(settings, log)
    ports.refuse_unknown((settings.gateway_port, settings.ops_port))
    with gateway_port(settings) as held:
        port = held.number
        children: list[Child] = []

        def serves() -> bool | str:
            return STOPPING if stop.is_set() else any(child.is_ready for child in children)

        def state() -> metrics.Snapshot:
            return state_of(children, now.snapshot())

        operations = await _operations(settings, state, serves, tls, disk)
        ops_port = operations.sockets[0].getsockname()[1]
        ready_s_max = settings.start_wait_s + LOADING_S_MAX
        programs = gateway_workers(command("serve", "--worker"), settings, held, ready_s_max)
        children += [Child(program, voice.say, lambda: None) for program in programs]
        listener = SettingsListener(partial(_hand_on, now, children, port), voice.say, voice.warn)
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "settings": partial(keep_renewing, now, renew, listener),
            "secrets": partial(watch_credentials, now, listener),
            "certificates": tls.run,
            "disk": disk.keep_looking,
            "restarts": partial(tell_restarts, now, lambda: children),
        }
        renewing = [asyncio.create_task(forever(name, run, log)) for name, run in loops.items()]

        async def start() -> None:
            await asyncio.gather(*(child.start() for child in children))
            listening = f"serving on {settings.gateway_host}:{port}"
            give_back_memory()
            voice.say(f"{listening}, health and metrics on {settings.ops_host}:{ops_port}")

        try:
            await until_stopped(start(), stop)
        finally:
            for task in renewing:
                task.cancel()
            voice.say("stopping: calls are finished first")
            held.close()  # new connections go to workers while they accept, and are refused later
            await asyncio.gather(*(child.stop() for child in children))
            operations.close()


async def _operations(
    settings: Settings,
    state: Callable[[], metrics.Snapshot],
    serves: Callable[[], bool | str],
    tls: TlsPort,
    disk: DiskWatch,
) -> asyncio.Server:
    """Return the listening server of health and metrics."""
    ops = Ops(partial(of_gateway, state, serves, disk), partial(_metrics, settings, state, tls))
    try:
        given = next(iter(ports.handed_over(settings.ops_port)), None)
        return await listen(ops, settings.ops_host, settings.ops_port, wrapped=tls.wrapped, given=given)
    except OSError as error:
        where = f"{settings.ops_host}:{settings.ops_port} (--ops-port)"
        raise StartError(f"cannot listen on {where}: {error.strerror}") from error


async def _hand_on(now: Renewal, children: list[Child], port: int) -> None:
    line = to_json(now.running.with_values(gateway_port=port).of_gateways)
    await asyncio.gather(*(child.tell(line) for child in children))


def gateway_port(settings: Settings) -> ports.ReservedPort:
    host, port = settings.gateway_host, settings.gateway_port
    return ports.held_port(host, port, "gateway (--gateway-port)", settings.workers)


def gateway_workers(
    argv: tuple[str, ...], settings: Settings, held: ports.ReservedPort, ready_s_max: float
) -> list[ProcessSpec]:
    """Return the processes of the gateway's workers, each with its sockets of the port."""
    said = to_json(settings.with_values(gateway_port=held.number).of_gateways)
    programs = []
    for number in range(settings.workers):
        given, told = held.given(number, settings.workers)
        programs.append(
            ProcessSpec(
                f"gateway worker {number + 1}",
                argv,
                ready_max_s=ready_s_max,
                stdin=said,
                stop_max_s=settings.shutdown_grace_s + SETTLING_S_MAX,
                silent_s_max=settings.worker_silent_s_max,
                environment=told,
                given=given,
            )
        )
    return programs


def restarts_of(children: Iterable[Child]) -> metrics.Snapshot:
    counts = [child.restarts for child in children]
    return {"worker_restarts": [(why, sum(count[why] for count in counts)) for why in (DIED, HUNG)]}


def state_of(children: Iterable[Child], beside: metrics.Snapshot) -> metrics.Snapshot:
    """Return the merged reports of `children`, the `workers` that are not silent, and the metrics `beside`."""
    state = beside
    for child in children:
        with suppress(msgspec.DecodeError):  # it has sent none, or a part
            report = msgspec.json.decode(child.report(), type=dict[str, Any])
            state = metrics.merge(state, {**report, "workers": 1})
    return state


async def tell_restarts(now: Renewal, children: Callable[[], Iterable[Child]]) -> None:
    """Publish metrics of the restarts of `children`, and of the configuration `now`, until cancelled."""
    await metrics.publish(
        now.running.metrics_dir, lambda: {**restarts_of(children()), **now.snapshot()}, beside=True
    )


def find_home() -> None:
    """Set PYTHONPATH, so that child processes find this program's code in any directory."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HOME, os.environ.get("PYTHONPATH"))))


def resolved(config: Path | None, role: str = "", **options: str | int | None) -> Settings:
    """Return settings, overridden by options; with a role, check its ports, and that its extras are installed.

    The first ones decide whose time zones this process reads.
    """
    environ = dict(os.environ)
    for name, value in options.items():
        if value is not None:
            environ[f"{PREFIX}{name.upper()}"] = str(value)
            environ.pop(f"{PREFIX}{name.upper()}{SUFFIX}", None)
    settings = load(environ, config, role)
    use_zones(settings.time_zones)
    settings.require_extras(role)
    return settings


def tell_slips(settings: Settings, role: str, warn: Callable[[str], None]) -> None:
    """Warn of slips, and of settings of the file that the environment or an option overrides, by name."""
    for line in slips(settings, role):
        warn(line)
    if names := ", ".join(PREFIX + name.upper() for name in settings.overruled):
        warn(f"the environment or an option overrides what {settings.config_path} sets: {names}")


def _metrics(
    settings: Settings, state: Callable[[], metrics.Snapshot], tls: TlsPort, accept: str
) -> tuple[bytes, str]:
    from gateway.telemetry import scrape  # noqa: PLC0415  # loaded once somebody scrapes

    # A full disk keeps the files of workers as they were: what they report besides is newer.
    found = metrics.merge({**metrics.collect(settings.metrics_dir), **state()}, tls.snapshot())
    return scrape.render(accept, metrics.merge(found, disks(settings)))
