"""`tollkeeper backup` and `restore`: a snapshot of PostgreSQL, stored and restored.

The files are a dump in pg_dump's own format, and a manifest of the contents.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from gateway import extras
from gateway.errors import BackupFailed, StartError
from gateway.features.backup.storage import FORMAT, Backup, BackupManifest, Backups, BackupWriter
from gateway.local.embedded import postgres
from persistence import backup as backups
from persistence.schema import standing

# PostgreSQL's own programs, of the server's major version: other versions write dumps it cannot read.

# Where systems keep several versions beside each other: Debian, Red Hat, Homebrew, Alpine.
PLACES = (
    "/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/libexec/postgresql{}",
)  # fmt: skip
ANSWER_S_MAX = 20.0
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def major_of(server_version: str) -> int:
    """Return the major version of a server, such as 15 for `15.18 (Debian 15.18-1)`."""
    return int(re.split(r"\D", server_version, maxsplit=1)[0] or 0)


def program(name: str, major: int, places: Sequence[str] = PLACES) -> str:
    """Return the path of a program of this major version; `BackupFailed` names the versions found instead."""
    seen: list[int] = []
    for path in _candidates(name, major, places):
        version = _version_of(path)
        if version == major:
            return str(path)
        if version:
            seen.append(version)
    there = f", and not {', '.join(map(str, sorted(set(seen))))}" if seen else ""
    message = f"{name} {major} is needed, as the server is{there}"
    raise BackupFailed(f"{message}: install the client programs of PostgreSQL {major}")


def _candidates(name: str, major: int, places: Sequence[str]) -> Iterator[Path]:
    """Yield the places where a program of PostgreSQL may be."""
    for place in places:
        yield Path(place.format(major)) / name
    on_path = shutil.which(name)
    if on_path is not None:
        yield Path(on_path)
    try:
        yield postgres.binaries() / name
    except StartError:
        return


def _version_of(path: Path) -> int:
    """Return the major version that a program reports, or 0 if it is missing or reports none."""
    try:
        run = subprocess.run(  # noqa: S603  # a program of PostgreSQL, by its place
            [str(path), "--version"], capture_output=True, text=True, timeout=ANSWER_S_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = _VERSION.search(run.stdout)
    return int(match[1]) if match else 0


CHUNK_BYTES = 1 << 20
SAID_BYTES_MAX = 65_536


def back_up(url: str, to: Backups, now: datetime) -> tuple[Backup, BackupManifest]:
    """Write a backup; return it with its manifest.

    The rows are a snapshot of one moment, while traffic and the keeper continue. `BackupFailed` or (for a
    bucket) `PlaceFailed` has the reason of a failure, which leaves no backup behind.
    """
    with to.growing(now) as growing:
        with backups.moment(url) as moment:
            size, digest = _dump(url, moment, growing)
        manifest = BackupManifest(
            FORMAT, extras.version(), moment.schema_version, moment.server_version,
            now.isoformat(timespec="seconds"), moment.rows, size, digest,
        )  # fmt: skip
        backup = growing.finish(manifest)
        return backup, backup.manifest()


def restore(url: str, source: Backup, *, ids_ahead: int) -> tuple[BackupManifest, list[str]]:
    """Restore a backup into an empty database; return its manifest and contradictions among its rows.

    `BackupFailed` if the database is not empty, or if the backup is damaged: then nothing is written.
    Contradictions are found after the restore, so the rows remain, and another try needs a new database. New
    ids begin `ids_ahead` higher.
    """
    manifest = source.manifest()
    server_version = backups.refuse_unless_empty(url)
    arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", "--dbname="]
    with (
        _run_program(url, [program("pg_restore", major_of(server_version)), *arguments]) as (stdin, _),
        suppress(BrokenPipeError),  # a program that ended early prints the reason itself
    ):
        for chunk in source.dump(manifest):
            stdin.write(chunk)
    backups.compare(url, manifest.rows)
    backups.move_ids_ahead(url, ids_ahead)
    wrong = asyncio.run(backups.contradictions(url)) if manifest.schema_version == standing.NEEDED else []
    return manifest, wrong


def _dump(url: str, moment: backups.Moment, growing: BackupWriter) -> tuple[int, str]:
    """Write the dump of a snapshot; return its size and digest."""
    digest, size = hashlib.sha256(), 0
    arguments = [program("pg_dump", major_of(moment.server_version)), "--format=custom"]
    with _run_program(url, [*arguments, f"--snapshot={moment.snapshot}"]) as (_, stdout):
        while chunk := stdout.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            growing.write(chunk)
    return size, digest.hexdigest()


@contextmanager
def _run_program(url: str, arguments: list[str]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run a PostgreSQL program to its end, and lend its input and output.

    `BackupFailed` with its error message if it fails.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603  # our own arguments
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                env=os.environ | backups.environment(url),
            )  # fmt: skip
        except OSError as error:
            raise BackupFailed(f"{arguments[0]} cannot be started: {error.strerror}") from error
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process.stdin, process.stdout
            with suppress(BrokenPipeError):
                process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            output.seek(0)
            lines = output.read(SAID_BYTES_MAX).decode(errors="replace").strip().splitlines()
            raise BackupFailed(lines[0] if lines else f"{arguments[0]} ended with {process.returncode}")


# The proof of a backup: it is restored into a temporary database of the same server, and checked.
#
# Backups and proofs are recorded in the database itself, so that metrics show the age of the last one.
def note(url: str, backup: Backup, manifest: BackupManifest) -> int:
    """Record a written backup in its database; return the number of the record."""
    taken_at = datetime.fromisoformat(manifest.taken_at)
    return backups.note_backup(url, backups.BackupRow(backup.name, taken_at, manifest.bytes, manifest.sha256))


def refuse_unless_provable(url: str) -> None:
    """Raise `BackupFailed` before a backup is written if it could not be proven later."""
    backups.refuse_unless_provable(url)


def last_proven(url: str, there: Backups) -> tuple[str, ...]:
    """Return the latest proven backups, as the database and the folder or bucket `there` record them."""
    noted = backups.last_proven(url, there.names())
    return tuple(filter(None, (noted, *(there.proven() or ())[-1:])))


def prove(url: str, there: Backups, backup: Backup, number: int) -> None:
    """Restore a backup into a temporary database, check it, and record the proof.

    Raise `BackupFailed` if the backup is wrong. `number` is the backup's id in the database.
    """
    with backups.database_beside(url) as beside:
        _, wrong = restore(beside, backup, ids_ahead=0)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BackupFailed(
            f"{backup.address} was restored, and its rows contradict each other: {wrong[0]}{more}"
        )
    there.note_proof(backup.name)
    backups.note_proof(url, number)


def drop_older(there: Backups, keep: int, spared: tuple[str, ...] = ()) -> list[str]:
    """Delete the oldest backups until `keep` remain, by the times in their names; return deleted addresses.

    Backups in `spared` are kept, and newer ones are deleted instead.
    """
    ours = there.names()
    excess = max(0, len(ours) - keep)
    dropped = [name for name in ours if name not in spared][:excess]
    for name in dropped:
        there.remove(name)
    return [there.address(name) for name in dropped]
