"""`tollkeeper backup` and `tollkeeper restore`: the contents of PostgreSQL, into one file and back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote

import typer

from gateway.cli.admin.client import Json
from gateway.cli.admin.output import AsJson, print_json, waiting
from gateway.cli.databases import Config, Database, DataDir, owner_url, settings_of
from gateway.errors import StartError

if TYPE_CHECKING:
    from gateway.features.backup.storage import Backup, BackupManifest, Backups
    from gateway.settings.settings import Settings

IDS_AHEAD = 1_000_000
FILE = "file://"


def backup(
    *,
    to: Annotated[
        str,
        typer.Option(help="A directory, which is made, a file that ends in .tar, or s3://bucket/folder."),
    ],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: Database = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Restore it beside the database, check it, drop that again.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Keep so many in the directory or bucket; older go.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what PostgreSQL holds to one file, as of one moment; everything goes on meanwhile."""
    from gateway.run.lifecycle import exit_on_signal  # each command loads what it needs

    there = _backups(to, several=keep is not None)
    url = owner_url(config, database_url, data_dir)
    with exit_on_signal():
        taken, manifest, dropped = _take_backup(url, there, prove, keep)
    rows = sum(manifest.rows.values())
    if as_json:
        done = {"bytes": manifest.bytes, "proved": prove, "dropped": dropped}
        print_json({"file": taken.address, **_facts(manifest), **done})
        return
    typer.echo(
        f"{taken.address}: {rows:,} rows, schema version {manifest.schema_version}, {manifest.bytes:,} bytes"
    )
    if prove:
        typer.echo("It was restored into a database of its own, and its rows agree with each other.")
    for address in dropped:
        typer.echo(f"{address} is gone: {keep} are kept.")
    typer.echo("API keys and tokens are digests in it: keep TOLLKEEPER_KEY_PEPPER as well, elsewhere.")


def _take_backup(
    url: str, there: Backups, prove: bool, keep: int | None
) -> tuple[Backup, BackupManifest, list[str]]:
    """Write a backup, prove it if `prove`, delete old ones; return it, its manifest and deleted addresses."""
    from gateway.features.backup import taking as proving  # each command loads what it needs
    from gateway.features.backup.taking import back_up

    if prove:
        proving.refuse_unless_provable(url)
    with waiting("Writing what PostgreSQL holds"):
        taken, manifest = back_up(url, there, datetime.now(UTC))
        number = proving.note(url, taken, manifest)
    dropped: list[str] = []
    if keep is not None:  # at most `keep` remain, and the last proven one always
        spared = (taken.name, *proving.last_proven(url, there))
        dropped += proving.drop_older(there, keep, spared)
    if prove:
        with waiting("Restoring it beside, and checking it"):
            proving.prove(url, there, taken, number)
        dropped += proving.drop_older(there, keep) if keep is not None else []
    return taken, manifest, dropped


def restore(
    *,
    source: Annotated[
        str,
        typer.Option("--from", help="What `tollkeeper backup` wrote: a file, or s3://bucket/folder/NAME."),
    ],
    config: Config = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Of an `up` to be, where no database is named (.tollkeeper).")
    ] = None,
    database_url: Database = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Restore nothing: which backups a directory or a bucket has.")
    ] = False,
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
    if list_:
        _tell_all(_backups(source, several=True), as_json=as_json)
        return
    url, manifest, wrong = _brought_back(source, settings_of(config, database_url, data_dir), ids_ahead)
    rows = sum(manifest.rows.values())
    if as_json:
        print_json({"database_url": url, **_facts(manifest), "wrong": wrong})
        raise typer.Exit(1 if wrong else 0)
    typer.echo(f"{url}: {rows:,} rows of {manifest.taken_at}, schema version {manifest.schema_version}")
    for what in wrong:
        typer.echo(f"WRONG {what}")
    if wrong:
        raise typer.Exit(1)
    typer.echo(
        "The rows agree with each other. Next: tollkeeper migrate, then the keeper, on an empty Redis."
    )


def _brought_back(source: str, settings: Settings, ids_ahead: int) -> tuple[str, BackupManifest, list[str]]:
    """Restore a backup; return the database's URL, the manifest and the contradictions among its rows."""
    import asyncio  # each command loads what it needs

    from gateway.core.network import without_password
    from gateway.features.backup.taking import restore as bring_back
    from gateway.run.supervisor import postgres_alone

    one = _backup(source)
    one.manifest()

    async def go() -> tuple[str, BackupManifest, list[str]]:
        async with AsyncExitStack() as stack:
            url = settings.owner_url or await stack.enter_async_context(
                postgres_alone(Path(settings.data_dir))
            )
            done = await asyncio.to_thread(bring_back, url, one, ids_ahead=ids_ahead)
            return without_password(url), *done

    with waiting("Bringing the backup in, and checking it"):
        return asyncio.run(go())


def _tell_all(there: Backups, *, as_json: bool) -> None:
    """Print the backups in `there`, the newest first, and which are proven if that is recorded there."""
    names, proven = there.names()[::-1], there.proven()
    if as_json:
        proofs = [{} if proven is None else {"proven": name in proven} for name in names]
        files = [{"file": there.address(name), **more} for name, more in zip(names, proofs, strict=True)]
        print_json({"backups": files})
        return
    for name in names:
        typer.echo(there.address(name) + (" (proven)" if name in (proven or ()) else ""))


def _backups(to: str, *, several: bool) -> Backups:
    """Return the folder or bucket of backups. The library for buckets is loaded only for a bucket."""
    if _is_bucket(to):
        from gateway.features.backup.storage import Bucket  # each command loads what it needs

        return Bucket(to)
    from gateway.features.backup.storage import Folder

    folder = Folder(_read_path(to))
    if several and folder.is_file:
        raise StartError(f"this is of a directory of backups, or of a bucket: {to} is neither")
    return folder


def _backup(source: str) -> Backup:
    """Return the backup in a file, or at an address in a bucket."""
    if _is_bucket(source):
        from gateway.features.backup.storage import named  # each command loads what it needs

        return named(source)
    from gateway.features.backup.storage import TarBackup

    return TarBackup(_read_path(source))


def _is_bucket(address: str) -> bool:
    return "://" in address and not address.startswith(FILE)


def _read_path(address: str) -> Path:
    """Return the path in an address: a path or a `file:` URL."""
    if not address.startswith(FILE):
        return Path(address)
    path = address.removeprefix(FILE)
    if not path.startswith("/"):
        raise StartError(f"{address}: a file address names no host: a directory, or file:///…")
    return Path(unquote(path))


def _facts(manifest: BackupManifest) -> Json:
    return {
        "rows": sum(manifest.rows.values()),
        "schema_version": manifest.schema_version,
        "taken_at": manifest.taken_at,
    }
