"""`tollkeeper backup` and `restore`: PostgreSQL as of one moment, kept somewhere, and back again.

What is kept is pg_dump's own format, and a manifest that says what is in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from typing import IO

from gateway.errors import BackupFailed
from gateway.ops.backup.manifest import FORMAT, Manifest
from gateway.ops.backup.ports import Backup, Backups, Growing
from gateway.ops.backup.programs import major_of, program
from persistence.schema import backups
from persistence.schema import version as schema

CHUNK_BYTES = 1 << 20
SAID_BYTES_MAX = 65_536


def back_up(url: str, to: Backups, now: datetime) -> tuple[Backup, Manifest]:
    """Write a backup; where it is, and what it holds.

    The rows are those of one moment; traffic and the keeper go on. `BackupFailed` says what
    went wrong, `PlaceFailed` what a bucket said; nothing is left behind then that looks like a backup.
    """
    with to.growing(now) as growing:
        with backups.moment(url) as moment:
            size, digest = _dump(url, moment, growing)
        manifest = Manifest(
            FORMAT, version("tollkeeper"), moment.schema_version, moment.server_version,
            now.isoformat(timespec="seconds"), moment.rows, size, digest,
        )  # fmt: skip
        backup = growing.finish(manifest)
        return backup, backup.manifest()


def restore(url: str, source: Backup, *, ids_ahead: int) -> tuple[Manifest, list[str]]:
    """Bring a backup into an empty database; what it held, and what its rows say against each other.

    `BackupFailed` before anything is written where the database is not empty, and with nothing left in it
    where the backup is damaged or cannot be restored as a whole. Rows are counted, and asked whether they
    agree, once all of them are there: where they are wrong they stay, and the next try wants a new database.
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
    wrong = asyncio.run(backups.contradictions(url)) if manifest.schema_version == schema.NEEDED else []
    return manifest, wrong


def _dump(url: str, moment: backups.Moment, growing: Growing) -> tuple[int, str]:
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
    """Run a program of PostgreSQL's to its end, lending what goes in and what comes out.

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
