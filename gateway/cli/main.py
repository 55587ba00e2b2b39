"""What a person types: the servers' commands here, administration in `cli_admin`.

Options become plain values; what they start is wired here and told apart from how it is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version as installed
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import admin as cli_admin
from gateway.cli import backup as cli_backup
from gateway.cli import doctor as cli_doctor
from gateway.errors import SchemaUnavailable, StartError
from gateway.local.announce import JsonVoice, PlainVoice
from gateway.local.demo.upstream import serve_until_stopped
from gateway.local.supervisor.parts import Endpoints, Options, Parts
from gateway.local.supervisor.up import run_up
from gateway.ops import hints
from gateway.run import serving
from gateway.run.serving import command, find_home, resolved
from gateway.settings import settings as settings_module
from gateway.settings.config_file import default_table
from gateway.settings.settings import Settings
from gateway.telemetry import logs

app = typer.Typer(
    name="tollkeeper",
    help="Admits, meters and bills every request to an LLM or any HTTP API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli_backup.mount(app)
cli_doctor.mount(app)


def _version(wanted: bool) -> None:  # typer's way of an eager option
    if wanted:
        typer.echo(f"tollkeeper {installed('tollkeeper')}")
        raise typer.Exit


ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with routes and upstreams.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Where everything is kept (.tollkeeper).")]
GatewayPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any free port (8080).")]
AdminPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any free port (8081).")]
WorkersOption = Annotated[int | None, typer.Option(min=1, max=256, help="Gateway processes.")]
RedisOption = Annotated[str | None, typer.Option(help="Use this Redis or Valkey instead of the embedded.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DatabaseOption = Annotated[str | None, typer.Option(help="Use this PostgreSQL instead of the embedded one.")]


@app.callback()
def program(
    *,
    version: Annotated[  # its callback answers
        bool, typer.Option("--version", help="Say which this is.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Admits, meters and bills every request to an LLM or any HTTP API."""


def run(arguments: list[str]) -> int:
    """Parse and run; the exit status. Raises what the command raises."""
    find_home()
    cli_admin.mount(app, None if "_TOLLKEEPER_COMPLETE" in os.environ else arguments[:1])
    everything = typer.main.get_command(app)
    result = everything.main(args=arguments, prog_name="tollkeeper", standalone_mode=True)
    return int(result or 0)


@app.command()
def up(
    *,
    data_dir: DataDirOption = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL of every upstream.")] = None,
    gateway_port: GatewayPortOption = None,
    admin_port: AdminPortOption = None,
    workers: WorkersOption = None,
    config: ConfigOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Demo organization and upstream.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON line on standard output.")] = False,
) -> None:
    """Start everything on this machine: databases, demo data, gateway and keeper."""
    settings = resolved(
        config,
        data_dir=str(data_dir) if data_dir else None,
        gateway_port=gateway_port,
        admin_port=admin_port,
        workers=workers,
        redis_url=redis_url,
        database_url=database_url,
        database_owner_url=database_url,
    )
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
        upstream=upstream or "",
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
    raise typer.Exit(run_up(options, _parts(settings), voice))


@app.command()
def serve(
    *,
    config: ConfigOption = None,
    gateway_port: GatewayPortOption = None,
    ops_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Health and metrics (9090).")] = None,
    workers: WorkersOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Run the data plane alone: needs Redis or Valkey, never PostgreSQL."""
    options = {"gateway_port": gateway_port, "ops_port": ops_port, "workers": workers, "redis_url": redis_url}
    raise typer.Exit(serving.serve(config, **options))


@app.command()
def keeper(
    *,
    config: ConfigOption = None,
    admin_port: AdminPortOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Run the keeper: flusher, reclaimer, verifier, Admin API."""
    import uvloop  # noqa: PLC0415  # each command loads what it needs

    from gateway.app import run_keeper  # noqa: PLC0415

    settings = resolved(config, admin_port=admin_port, redis_url=redis_url, database_url=database_url)
    settings.require("redis_url", "database_url", "admin_token", "key_pepper")
    logs.configure(settings.log_level)
    uvloop.run(run_keeper(settings))


@app.command()
def migrate(
    *, config: ConfigOption = None, database_url: DatabaseOption = None, json: JsonOption = False
) -> None:
    """Bring the schema up to date; safe to repeat and to run twice at once."""
    settings = resolved(config, database_owner_url=database_url)
    if not settings.owner_url:
        settings.require("database_url")
    schema = _migrate(settings.owner_url, lambda said: typer.echo(said, err=True))
    typer.echo(dumps({"schema_version": schema}) if json else f"schema version {schema}")


@app.command("demo-upstream")
def demo_upstream(
    *, port: Annotated[int, typer.Option(min=0, max=65535)] = 9000, host: str = "127.0.0.1"
) -> None:
    """Run an upstream that answers as the providers do, for trying things out."""
    import asyncio  # noqa: PLC0415

    asyncio.run(serve_until_stopped(host, port))


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
        migrate=_migrate,
        admit_writer=_admit_writer,
    )


def _migrate(url: str, told: Callable[[str], object] = lambda _: None) -> str:
    from persistence.schema.migrate import upgrade  # noqa: PLC0415  # heavy, and only two commands need it

    try:
        return upgrade(url, told)
    except SchemaUnavailable as error:
        raise StartError(f"{error.message}; {hints.postgresql(error.message)}") from error


def _admit_writer(url: str, password: str) -> str:
    from persistence.schema.roles import admit_writer  # noqa: PLC0415  # heavy, and one command needs it

    return admit_writer(url, password)
