"""`tollkeeper doctor`: one line for each thing that was looked at, exit 1 if any is wrong."""

from __future__ import annotations

from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from gateway.settings.settings import Settings


class Role(StrEnum):
    """Whose needs are looked at."""

    SERVE = "serve"
    KEEPER = "keeper"
    ALL = "all"


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
    """Check settings, Redis, PostgreSQL and upstreams; exit 1 if anything is wrong."""
    import asyncio  # noqa: PLC0415  # each command loads what it needs

    from gateway.ops.doctor import examine  # noqa: PLC0415  # loaded where it is needed
    from gateway.run.serving import resolved  # noqa: PLC0415  # loaded where it is needed

    directory = str(data_dir) if data_dir else None
    settings = _known(resolved(config, data_dir=directory, redis_url=redis_url, database_url=database_url))

    async def look() -> bool:
        found = []
        async for finding in examine(settings, role):
            found.append({"subject": finding.subject, "well": finding.well, "says": finding.says})
            if not as_json:
                typer.echo(f"{'ok   ' if finding.well else 'WRONG'} {finding.subject}: {finding.says}")
        well = all(each["well"] for each in found)
        if as_json:
            typer.echo(dumps({"well": well, "findings": found}))
        return well

    raise typer.Exit(0 if asyncio.run(look()) else 1)


def _known(settings: Settings) -> Settings:
    """The same settings with what a running `up` left in its data directory."""
    from gateway.cli.admin.client import is_local  # noqa: PLC0415  # loaded where it is needed
    from gateway.core.network import DIRECT  # noqa: PLC0415  # loaded where it is needed
    from gateway.local.data_directory import known_values  # noqa: PLC0415  # loaded where it is needed

    known = known_values(Path(settings.data_dir), settings.named())
    if upstream := known.pop("upstream_url", ""):
        ours = is_local(urlsplit(upstream).hostname or "")  # that of its demo, which is before no proxy
        settings = settings.with_upstream(upstream, DIRECT if ours else None)
    return settings.with_values(**known)
