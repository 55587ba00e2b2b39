"""`tollkeeper backup` and `restore`: PostgreSQL as of one moment, kept somewhere, and back again.

The files are pg_dump's own format, and a manifest that lists the contents.
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

# PostgreSQL's own programs, of a server's major version: those of another write what it cannot read.

# Where systems keep several versions beside each other: Debian, Red Hat, Homebrew, Alpine.
PLACES = (
    "/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/libexec/postgresql{}",
)  # fmt: skip
ANSWER_S_MAX = 20.0
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def major_of(server_version: str) -> int:
    """Return the major version of a server: 15 of `15.18 (Debian 15.18-1)`."""
    return int(re.split(r"\D", server_version, maxsplit=1)[0] or 0)


def program(name: str, major: int, places: Sequence[str] = PLACES) -> str:
    """Return the path of a program of this major version; `BackupFailed` names the versions found instead."""
    seen: list[int] = []
    for path in _candidates(name, major, places):
        found = _version_of(path)
        if found == major:
            return str(path)
        if found:
            seen.append(found)
    there = f", and not {', '.join(map(str, sorted(set(seen))))}" if seen else ""
    said = f"{name} {major} is needed, as the server is{there}"
    raise BackupFailed(f"{said}: install the client programs of PostgreSQL {major}")


def _candidates(name: str, major: int, places: Sequence[str]) -> Iterator[Path]:
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
    """Return the major version a program says it has; 0 where it is not there or says none."""
    try:
        said = subprocess.run(  # noqa: S603  # a program of PostgreSQL, by its place
            [str(path), "--version"], capture_output=True, text=True, timeout=ANSWER_S_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    found = _VERSION.search(said.stdout)
    return int(found[1]) if found else 0


CHUNK_BYTES = 1 << 20
SAID_BYTES_MAX = 65_536


def back_up(url: str, to: Backups, now: datetime) -> tuple[Backup, BackupManifest]:
    """Write a backup; return it with its manifest.

    The rows are those of one moment; traffic and the keeper go on. `BackupFailed` says what
    went wrong, `PlaceFailed` what a bucket said; nothing is left behind then that looks like a backup.
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

    `BackupFailed` before any write where the database is not empty; with nothing left in it where the
    backup is damaged or cannot be restored as a whole. Rows are counted and checked for contradictions
    after the restore: wrong rows stay, and the next try needs a new database.
    """
    manifest = source.manifest()
    server_version = backups.refuse_unless_empty(url)
    arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", "--dbname="]
    with (
        _started(url, [program("pg_restore", major_of(server_version)), *arguments]) as (stdin, _),
        suppress(BrokenPipeError),  # one that has ended before says why by itself
    ):
        for chunk in source.dump(manifest):
            stdin.write(chunk)
    backups.compare(url, manifest.rows)
    backups.move_ids_ahead(url, ids_ahead)
    wrong = asyncio.run(backups.contradictions(url)) if manifest.schema_version == standing.NEEDED else []
    return manifest, wrong


def _dump(url: str, moment: backups.Moment, growing: BackupWriter) -> tuple[int, str]:
    """Write the dump of a moment; its size and digest."""
    digest, size = hashlib.sha256(), 0
    arguments = [program("pg_dump", major_of(moment.server_version)), "--format=custom"]
    with _started(url, [*arguments, f"--snapshot={moment.snapshot}"]) as (_, stdout):
        while chunk := stdout.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            growing.write(chunk)
    return size, digest.hexdigest()


@contextmanager
def _started(url: str, arguments: list[str]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run a program of PostgreSQL's to its end, lending its input and output.

    `BackupFailed` with what it said where it failed.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(  # noqa: S603  # our own arguments
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
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
            said.seek(0)
            lines = said.read(SAID_BYTES_MAX).decode(errors="replace").strip().splitlines()
            raise BackupFailed(lines[0] if lines else f"{arguments[0]} ended with {process.returncode}")


# Whether a backup can be restored: it is, into a database made for it on the same server, and checked.
#
# A backup that was taken and proven is noted in the database itself, so that metrics tell how old the last
# one is.
def note(url: str, backup: Backup, manifest: BackupManifest) -> int:
    """Note in the database that a backup of it was written; the number of the note."""
    taken_at = datetime.fromisoformat(manifest.taken_at)
    return backups.note_backup(url, backups.BackupRow(backup.name, taken_at, manifest.bytes, manifest.sha256))


def refuse_unless_provable(url: str) -> None:
    """Raise `BackupFailed` where no backup of a database could be proven, before one is written."""
    backups.refuse_unless_provable(url)


def last_proven(url: str, there: Backups) -> tuple[str, ...]:
    """Return the latest proven backups of a place: by the database, and by the place itself."""
    noted = backups.last_proven(url, there.names())
    return tuple(filter(None, (noted, *(there.proven() or ())[-1:])))


def prove(url: str, there: Backups, backup: Backup, number: int) -> None:
    """Restore a backup beside the database and check it, then note that; `BackupFailed` where it is wrong."""
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
    """Remove the oldest backups of a place beyond as many as are kept, by the times in their names.

    None goes that is `spared`: others go instead of it. The addresses of those that went.
    """
    ours = there.names()
    excess = max(0, len(ours) - keep)
    dropped = [name for name in ours if name not in spared][:excess]
    for name in dropped:
        there.remove(name)
    return [there.address(name) for name in dropped]
