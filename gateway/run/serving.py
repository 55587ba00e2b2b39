"""`tollkeeper serve`, composed: the supervisor of gateway workers.

It stands beside a service all day, so it is started without what only people at a terminal need: those
libraries would be a third of its memory.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gateway.errors import SettingError
from gateway.local.announce import JsonVoice, PlainVoice
from gateway.local.supervisor.ops import Ops
from gateway.local.supervisor.serve import Serving, run_serve
from gateway.run.readiness import of_gateway
from gateway.run.reload import Renewal
from gateway.settings import settings as settings_module
from gateway.settings.settings import PREFIX, Settings, load
from gateway.telemetry import logs
from gateway.telemetry import snapshot_files as tallies

HOME = str(Path(__file__).resolve().parents[2])
NUMBERS = frozenset({"gateway_port", "ops_port", "workers"})
OPTIONS = NUMBERS | {"config", "redis_url"}


def plain_options(words: list[str]) -> dict[str, str] | None:
    """The options of a plain `serve` by name; None where the words want a closer look: help, or a mistake."""
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


def serve(config: Path | None, **options: str | int | None) -> int:
    """Run the gateway until it is told to end; its exit status. `SettingError` where a setting is wrong."""
    find_home()
    read = partial(_of_a_gateway, config, **options)
    settings = read()
    settings.require("redis_url", "key_pepper")
    now = Renewal(settings, read)
    serving = Serving(
        host=settings.gateway_host,
        port=settings.gateway_port,
        ops_host=settings.ops_host,
        ops_port=settings.ops_port,
        workers=settings.workers,
        grace_s=settings.shutdown_grace_s,
        start_wait_s=settings.start_wait_s,
        worker=command("serve", "--worker"),
        settings_line=lambda port: settings_module.to_json(now.running.with_values(gateway_port=port)),
        ops=lambda port: Ops(partial(of_gateway, settings, port), partial(_metrics, settings)),
        renew=now.renew,
    )
    logs.configure(settings.log_level)
    voice = PlainVoice() if sys.stderr.isatty() else JsonVoice(logs.logger("tollkeeper.serve"))
    return run_serve(serving, voice)


def _of_a_gateway(config: Path | None, **options: str | int | None) -> Settings:
    """Settings that a gateway may serve by: Redis is asked for prices only where those are in question."""
    settings = resolved(config, **options)
    try:
        settings.table.check_services({})
    except SettingError:
        from gateway.run.starting import catalogue_of  # noqa: PLC0415  # a supervisor needs no Redis as a rule

        with ThreadPoolExecutor(1) as aside:  # a loop may be running here
            known = aside.submit(lambda: asyncio.run(catalogue_of(settings))).result()
        settings.table.check_services(known)
    return settings


def find_home() -> None:
    """Have workers start from this very checkout or installation, wherever the person stands."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HOME, os.environ.get("PYTHONPATH"))))


def resolved(config: Path | None, **options: str | int | None) -> Settings:
    """Settings with the given options over everything else."""
    environ = dict(os.environ)
    for name, value in options.items():
        if value is not None:
            environ[f"{PREFIX}{name.upper()}"] = str(value)
    return load(environ, config)


def command(*words: str) -> tuple[str, ...]:
    """The command line of this very program in a process of its own."""
    return (sys.executable, "-P", "-m", "gateway", *words)


def _metrics(settings: Settings, accept: str) -> tuple[bytes, str]:
    from gateway.telemetry import metrics  # noqa: PLC0415  # loaded by the first scrape

    return metrics.render(accept, tallies.collect(settings.metrics_dir))
