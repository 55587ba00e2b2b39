"""What `up` starts and `migrate` does, apart from how they are asked for: loaded by those who run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from gateway.errors import SchemaUnavailable, StartError
from gateway.local.announce import JsonVoice, PlainVoice
from gateway.local.supervisor.parts import Endpoints, Options, Parts
from gateway.local.supervisor.up import run_up
from gateway.ops import hints
from gateway.run.serving import command, find_home, resolved
from gateway.settings import settings as settings_module
from gateway.settings.config_file import default_table
from gateway.settings.settings import Settings
from gateway.telemetry import logs


def start_up(
    config: Path | None, given: Mapping[str, str | int | None], *, upstream: str, demo: bool, json: bool
) -> int:
    """Run everything on this machine until it is stopped; the exit status."""
    find_home()
    settings = resolved(config, **given)
    configured = settings.table != default_table(os.environ)
    if upstream:
        settings = settings.with_upstream(upstream)
    settings.table.check_services({})
    options = Options(
        data_dir=Path(settings.data_dir),
        gateway_host=settings.gateway_host,
        gateway_port=settings.gateway_port,
        admin_host=settings.admin_host,
        admin_port=settings.admin_port,
        workers=settings.workers,
        redis_url=settings.redis_url,
        database_url=settings.database_url,
        upstream=upstream,
        admin_token=settings.admin_token,
        readonly_token=settings.readonly_token,
        key_pepper=settings.key_pepper,
        demo=demo,
        demo_upstream=demo and not configured,
        grace_s=settings.shutdown_grace_s,
        database_owner_url=settings.database_owner_url,
    )
    logs.configure(settings.log_level)
    voice = JsonVoice(logs.logger("tollkeeper.up")) if json else PlainVoice()
    return run_up(options, _parts(settings), voice)


def _parts(settings: Settings) -> Parts:
    def settings_line(endpoints: Endpoints) -> bytes:
        resolved = settings
        if endpoints.upstream_url:
            resolved = resolved.with_upstream(endpoints.upstream_url)
        return settings_module.to_json(
            resolved.with_values(
                redis_url=endpoints.redis_url,
                database_url=endpoints.database_url,
                database_owner_url="",
                admin_token=endpoints.admin_token,
                readonly_token=endpoints.readonly_token,
                key_pepper=endpoints.key_pepper,
                gateway_port=endpoints.gateway_port,
                admin_port=endpoints.admin_port,
                data_dir=str(endpoints.data_dir),
            )
        )

    return Parts(
        gateway=command("serve", "--worker"),
        keeper=command("keeper", "--worker"),
        demo_upstream=lambda port: command("demo-upstream", str(port), "--worker"),
        settings_line=settings_line,
        prepare=lambda: import_module("persistence.schema.migrate"),
        migrate=migrate,
        admit_writer=_admit_writer,
    )


def migrate(url: str, told: Callable[[str], object] = lambda _: None) -> str:
    """Bring the schema up to date; its version."""
    from persistence.schema.migrate import upgrade  # noqa: PLC0415  # heavy, and only two commands need it

    try:
        return upgrade(url, told)
    except SchemaUnavailable as error:
        raise StartError(f"{error.message}; {hints.postgresql(error.message)}") from error


def _admit_writer(url: str, password: str) -> str:
    from persistence.schema.roles import admit_writer  # noqa: PLC0415  # heavy, and one command needs it

    return admit_writer(url, password)
