"""The command line: commands of the servers here, administration in `admin/`.

Options become plain values. Each command imports its code when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from copy import copy
from enum import StrEnum
from functools import cache, partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

import typer

from gateway.extras import version
from gateway.feature import features

if TYPE_CHECKING:
    from typer.models import CommandInfo

    from gateway.settings.settings import Settings

app = typer.Typer(
    name="tollkeeper",
    help="Admits, meters and bills every request to an LLM or any HTTP API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


# The maximum of a number without another one.
MOST = 2**63


class Role(StrEnum):
    """The role of this machine, which decides what `doctor` checks."""

    SERVE = "serve"
    KEEPER = "keeper"
    ALL = "all"


@app.command()
def doctor(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with routes and upstreams.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Of an `up` to look at (.tollkeeper).")] = None,
    redis_url: Annotated[str | None, typer.Option(help="The Redis or Valkey to look at.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The PostgreSQL to look at.")] = None,
    role: Annotated[
        Role, typer.Option("--for", help="The role of this machine: a lone serve, a keeper, or all of it.")
    ] = Role.ALL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check settings, Redis, PostgreSQL and upstreams; exit 1 if anything is wrong, not for ? (not told)."""
    import asyncio  # each command loads what it needs

    from gateway.ops.doctor import LeftThreads, examine
    from gateway.run.serving import resolved

    directory = str(data_dir) if data_dir else None
    settings = _complete_settings(
        resolved(config, data_dir=directory, redis_url=redis_url, database_url=database_url)
    )

    outcomes = {True: "ok   ", False: "WRONG", None: "?    "}

    async def look() -> bool:
        findings = []
        asyncio.get_running_loop().set_default_executor(LeftThreads())
        async for finding in examine(settings, role):
            findings.append({"subject": finding.subject, "well": finding.well, "says": finding.says})
            if not as_json:
                typer.echo(f"{outcomes[finding.well]} {finding.subject}: {finding.says}")
        well = all(finding["well"] is not False for finding in findings)
        if as_json:
            typer.echo(dumps({"well": well, "findings": findings}))
        return well

    raise typer.Exit(0 if asyncio.run(look()) else 1)


def _complete_settings(settings: Settings) -> Settings:
    """Return the settings, completed by the files of a running `up` in its data directory."""
    from gateway.cli.admin.client import is_local
    from gateway.core.network import DIRECT
    from gateway.local.data_directory import known_values

    known = known_values(Path(settings.data_dir), settings.named())
    if upstream := known.pop("upstream_url", ""):
        ours = is_local(urlsplit(upstream).hostname or "")  # the demo's upstream is reached directly
        settings = settings.with_upstream(upstream, DIRECT if ours else None)
    return settings.with_values(**known)


def _version(wanted: bool) -> None:  # the callback of an eager option
    if wanted:
        typer.echo(f"tollkeeper {version()}")
        raise typer.Exit


ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with routes and upstreams.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Data directory (.tollkeeper).")]
GatewayPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any free port (8080).")]
AdminPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any free port (8081).")]
WorkersOption = Annotated[int | None, typer.Option(min=1, max=256, help="Gateway processes.")]
RedisOption = Annotated[str | None, typer.Option(help="Use this Redis or Valkey instead of the embedded.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DatabaseOption = Annotated[str | None, typer.Option(help="Use this PostgreSQL instead of the embedded one.")]


@app.callback()
def program(
    *,
    version: Annotated[  # handled by its callback
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Admits, meters and bills every request to an LLM or any HTTP API."""


@cache
def mount_features() -> None:
    """Add the commands of features to the program."""
    for feature in features():
        feature.commands(app)


def run(arguments: list[str]) -> int:
    """Parse the arguments and run the command; return the exit status. Raises the command's exceptions."""
    completing = "_TOLLKEEPER_COMPLETE" in os.environ
    asked = "" if completing or not arguments else arguments[0]
    if not _has_command(app, asked):
        from gateway.cli.admin import commands  # not needed by servers

        if completing or not commands.mount_section(app, asked):
            mount_features()
    if not _has_command(app, asked):
        from gateway.cli.admin import program  # the hand-written commands are slow to import

        program.mount(app, None if completing else arguments[:1])
    read_plainly()
    everything = typer.main.get_command(_narrowed(app, asked) if _has_command(app, asked) else app)
    gc.enable()  # garbage collection is off while commands are loaded
    result = everything.main(args=arguments, prog_name="tollkeeper", standalone_mode=True)
    return int(result or 0)


@cache
def read_plainly() -> None:
    """Read plain parameter values without typer's models, which load pydantic (0.1 s of CPU).

    A version of typer that reads parameters differently is left unchanged.
    """

    class PlainValue:
        def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
            kind = param.type_descriptor.annotation
            if value is None:
                return () if param.multiple or param.nargs == -1 else None
            if value == param.default or kind is str or (kind is bool and isinstance(value, bool)):
                return value
            if kind is Path and isinstance(value, str):
                return Path(value)
            if kind == list[str] and not isinstance(value, str):
                return list(value)
            if isinstance(kind, type) and issubclass(kind, StrEnum) and value in {*kind}:
                return kind(value)
            with suppress(ValueError):
                if kind is UUID:
                    return UUID(value)
                if kind is int and (param.min or 0) <= int(value) <= (param.max or MOST):
                    return int(value)
            return by_models(param).coerce(value, param=param, ctx=ctx)

    parameters: tuple[Any, ...] = (typer.core.TyperOption, typer.core.TyperArgument)
    by_models: Any = getattr(parameters[0], "get_runtime_param", None)
    plain = PlainValue()
    if by_models is None:
        return
    for kind in parameters:
        kind.get_runtime_param = lambda _: plain


def _called(command: CommandInfo) -> str:
    function = command.callback.__name__ if command.callback else ""
    return command.name or function.replace("_", "-")


def _has_command(program: typer.Typer, name: str) -> bool:
    """Return whether a command or a section of this name exists."""
    return name in {
        *map(_called, program.registered_commands),
        *(registered_group.name for registered_group in program.registered_groups),
    }


def _narrowed(program: typer.Typer, name: str) -> typer.Typer:
    """Return a program with one command or section only, so that no parsers are built for the others."""
    narrowed = copy(program)
    narrowed.registered_commands = [
        registered_command
        for registered_command in program.registered_commands
        if _called(registered_command) == name
    ]
    narrowed.registered_groups = [
        registered_group for registered_group in program.registered_groups if registered_group.name == name
    ]
    return narrowed


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
    from gateway.run.loading import loading_code  # each command loads what it needs

    with loading_code():
        from gateway.run.supervisor import up as run

    run(
        config,
        upstream=upstream or "",
        demo=demo,
        json=json,
        data_dir=str(data_dir) if data_dir else None,
        gateway_port=gateway_port,
        admin_port=admin_port,
        workers=workers,
        redis_url=redis_url,
        database_url=database_url,
        database_owner_url=database_url,
    )


@app.command()
def init(
    *,
    provider: Annotated[str | None, typer.Option(help="demo, openai, anthropic or gemini.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with the provider's key; else its variable, such as OPENAI_API_KEY."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The first tenant (Search).")] = None,
    budget: Annotated[str | None, typer.Option(help="What it may spend a month, in USD (20).")] = None,
    data_dir: DataDirOption = None,
    base_url: Annotated[str | None, typer.Option(help="Another address of the provider.")] = None,
    gateway_port: GatewayPortOption = None,
    admin_port: AdminPortOption = None,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Leave it running, or only set up.")
    ] = True,
) -> None:
    """Ask five questions, and leave a running stack with a tenant, its budget and its key."""
    from gateway.cli import first_run  # each command loads what it needs

    ports = {"gateway_port": gateway_port, "admin_port": admin_port}
    given = first_run.Given(
        provider, key_file, tenant, budget, data_dir, base_url,
        {name: port for name, port in ports.items() if port is not None},
    )  # fmt: skip
    first_run.init(given, start=start)


@app.command()
def serve(
    *,
    config: ConfigOption = None,
    gateway_port: GatewayPortOption = None,
    ops_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Health and metrics (9464).")] = None,
    workers: WorkersOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Run the data plane alone: needs Redis or Valkey, never PostgreSQL."""
    from gateway.run import serving  # each command loads what it needs

    serving.serve(config, gateway_port=gateway_port, ops_port=ops_port, workers=workers, redis_url=redis_url)


@app.command()
def keeper(
    *,
    config: ConfigOption = None,
    admin_port: AdminPortOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Run the keeper: flusher, reclaimer, verifier, Admin API."""
    from gateway.local.processes import run_to_end
    from gateway.run import coarse_loop
    from gateway.run.keeper import run_keeper
    from gateway.run.serving import resolved, tell_slips
    from gateway.telemetry import logs

    given = {"admin_port": admin_port, "redis_url": redis_url, "database_url": database_url}
    read = partial(resolved, config, "keeper", **given)
    settings = read()
    settings.require("redis_url", "database_url", "admin_token", "key_pepper")
    logs.configure(settings.log_level)
    tell_slips(settings, "keeper", partial(logs.logger("tollkeeper.keeper"), level="warning"))
    run_to_end(coarse_loop.run, run_keeper(settings, read))


@app.command()
def migrate(
    *,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    end_older: Annotated[
        bool,
        typer.Option(
            "--end-older-keepers", help="Continue even if running keepers are too old for the schema."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring the schema up to date; safe to repeat and to run twice at once."""
    from gateway.run import schema  # each command loads what it needs
    from gateway.run.serving import resolved

    settings = resolved(config, database_owner_url=database_url)
    if not settings.owner_url:
        settings.require("database_url")
    version = schema.migrate(settings.owner_url, partial(typer.echo, err=True), end_older=end_older)
    typer.echo(dumps({"schema_version": version}) if json else f"schema version {version}")


@app.command("demo-upstream")
def demo_upstream(
    *, port: Annotated[int, typer.Option(min=0, max=65535)] = 9000, host: str = "127.0.0.1"
) -> None:
    """Run an upstream that answers as the providers do, for trying things out."""
    import asyncio  # each command loads what it needs

    from gateway.local.demo.upstream import serve_until_stopped

    asyncio.run(serve_until_stopped(host, port))
