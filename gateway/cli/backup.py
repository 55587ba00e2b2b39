"""`tollkeeper backup` and `tollkeeper restore`: what PostgreSQL holds, in one file and back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.admin.client import Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import print_json, waiting
from gateway.errors import StartError

if TYPE_CHECKING:
    from gateway.ops.backup import Manifest
    from gateway.settings.settings import Settings

IDS_AHEAD = 1_000_000

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Database = Annotated[str | None, typer.Option("--database-url", help="The PostgreSQL in question.")]


def backup(
    *,
    to: Annotated[Path, typer.Option(help="The file to write, or a directory to put it in.")],
    config: Config = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Of a running `up`, where no database is named.")
    ] = None,
    database_url: Database = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Restore it beside the database, check it, drop that again.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Keep so many in the directory; older ones go.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what PostgreSQL holds to one file, as of one moment; everything goes on meanwhile."""
    from gateway.run.stopping import left_by_signal  # noqa: PLC0415  # each command loads what it needs

    if keep is not None and not to.is_dir():
        raise StartError(f"--keep is of a directory of backups: {to} is none")
    url = owner_url(config, database_url, data_dir)
    with left_by_signal():
        target, manifest, dropped = _taken(url, to, prove, keep)
    rows = sum(manifest.rows.values())
    if as_json:
        done = {"bytes": manifest.bytes, "proved": prove, "dropped": [str(path) for path in dropped]}
        print_json({"file": str(target), **_facts(manifest), **done})
        return
    typer.echo(f"{target}: {rows:,} rows, schema version {manifest.schema_version}, {manifest.bytes:,} bytes")
    if prove:
        typer.echo("It was restored into a database of its own, and its rows agree with each other.")
    for path in dropped:
        typer.echo(f"{path} is gone: {keep} are kept.")
    typer.echo("API keys and tokens are digests in it: keep TOLLKEEPER_KEY_PEPPER as well, elsewhere.")


def _taken(url: str, to: Path, prove: bool, keep: int | None) -> tuple[Path, Manifest, list[Path]]:
    """Write a backup, prove it, and keep as many as are wanted: where it is, what it holds, what is gone."""
    from gateway.ops import proving  # noqa: PLC0415  # each command loads what it needs
    from gateway.ops.backup import back_up  # noqa: PLC0415

    if prove:
        proving.refuse_unless_provable(url)
    with waiting("Writing what PostgreSQL holds"):
        target, manifest = back_up(url, to, datetime.now(UTC))
        number = proving.note(url, target, manifest)
    dropped: list[Path] = []
    if prove:
        if keep is not None:  # however the proof ends, no more stay than are kept
            dropped += proving.drop_older(to, keep, (target.name, proving.last_proven(url, to)))
        with waiting("Restoring it beside, and checking it"):
            proving.prove(url, target, number)
    if keep is not None:
        dropped += proving.drop_older(to, keep)
    return target, manifest, dropped


def restore(
    *,
    source: Annotated[Path, typer.Option("--from", help="A file that `tollkeeper backup` wrote.")],
    config: Config = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Of an `up` to be, where no database is named (.tollkeeper).")
    ] = None,
    database_url: Database = None,
    ids_ahead: Annotated[
        int,
        typer.Option(
            min=0,
            max=10**12,
            help="How far new ids stay clear of those given out since the backup; 0 if none were.",
        ),
    ] = IDS_AHEAD,
    as_json: AsJson = False,
) -> None:
    """Bring a backup into an empty PostgreSQL and check it; the keeper rebuilds the counters from it."""
    import asyncio  # noqa: PLC0415  # each command loads what it needs

    from gateway.ops import backup  # noqa: PLC0415
    from gateway.run.supervisor.alone import postgres_alone  # noqa: PLC0415
    from gateway.settings.urls import without_password  # noqa: PLC0415

    settings = _settings(config, database_url, data_dir)
    backup.read_manifest(source)

    async def go() -> tuple[str, backup.Manifest, list[str]]:
        async with AsyncExitStack() as stack:
            url = settings.owner_url or await stack.enter_async_context(
                postgres_alone(Path(settings.data_dir))
            )
            done = await asyncio.to_thread(backup.restore, url, source, ids_ahead=ids_ahead)
            return without_password(url), *done

    with waiting("Bringing the backup in, and checking it"):
        url, manifest, wrong = asyncio.run(go())
    rows = sum(manifest.rows.values())
    if as_json:
        print_json({"database_url": url, **_facts(manifest), "wrong": wrong})
        raise typer.Exit(1 if wrong else 0)
    typer.echo(f"{url}: {rows:,} rows of {manifest.taken_at}, schema version {manifest.schema_version}")
    for one in wrong:
        typer.echo(f"WRONG {one}")
    if wrong:
        raise typer.Exit(1)
    typer.echo(
        "The rows agree with each other. Next: tollkeeper migrate, then the keeper, on an empty Redis."
    )


def owner_url(config: Path | None, database_url: str | None, data_dir: Path | None) -> str:
    """The address of the database for who owns it, as it was said, or of a running `up`."""
    from gateway.local.data_directory import known_values  # noqa: PLC0415  # each command loads what it needs
    from gateway.settings.settings import PREFIX  # noqa: PLC0415

    settings = _settings(config, database_url, data_dir)
    known = known_values(Path(settings.data_dir), settings.named())
    url = settings.owner_url or known.get("database_owner_url", "")
    if not url:
        raise StartError(
            f"I do not know which database: set {PREFIX}DATABASE_URL, or name the data directory of an `up`"
        )
    return url


def _facts(manifest: Manifest) -> Json:
    return {
        "rows": sum(manifest.rows.values()),
        "schema_version": manifest.schema_version,
        "taken_at": manifest.taken_at,
    }


def _settings(config: Path | None, database_url: str | None, data_dir: Path | None) -> Settings:
    from gateway.run.serving import find_home, resolved  # noqa: PLC0415  # each command loads what it needs

    find_home()
    return resolved(config, database_owner_url=database_url, data_dir=str(data_dir) if data_dir else None)
