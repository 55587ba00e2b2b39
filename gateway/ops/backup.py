"""`tollkeeper backup` and `restore`: PostgreSQL as of one moment in one file, and back again.

Part of the composition root. The file is a tar of two members: pg_dump's own format, and behind
it the manifest that says what is in it. It is written beside its name and moved there when it is
complete.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from gateway.errors import BackupFailed
from gateway.ops.programs import major_of, program
from persistence.schema import backups
from persistence.schema import version as schema

FORMAT = 1
CHUNK_BYTES = 1 << 20
MANIFEST_BYTES_MAX = 1 << 20
DUMP, MANIFEST = "tollkeeper.dump", "manifest.json"
SAID_BYTES_MAX = 65_536
_GROWING = re.compile(r"\.tollkeeper-\d{8}T\d{6}Z\.tar\.\w+")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds: `rows` counts by table, `sha256` and `bytes` are of the dump."""

    format: int
    program_version: str
    schema_version: str
    server_version: str
    taken_at: str
    rows: Mapping[str, int]
    bytes: int
    sha256: str


def back_up(url: str, to: Path, now: datetime) -> tuple[Path, Manifest]:
    """Write a backup to a file, or into a directory under a name of the time; where it is, what it holds.

    The rows are those of one moment; traffic and the keeper go on. `BackupFailed` says what
    went wrong; nothing is left behind then. What one that was killed left in the directory goes.
    """
    target = to / f"tollkeeper-{now:%Y%m%dT%H%M%SZ}.tar" if to.is_dir() else to
    if target.exists():
        raise BackupFailed(f"{target} is there already")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise BackupFailed(f"{target.parent} cannot be written to: {error.strerror}") from error
    growing = Path(name)
    try:
        with os.fdopen(descriptor, "r+b") as file, backups.moment(url) as moment:
            with suppress(OSError):  # a volume without locks: what is left there stays
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _drop_left(target.parent)
            size, digest = _dump(url, moment, file)
            manifest = Manifest(
                FORMAT, version("tollkeeper"), moment.schema_version, moment.server_version,
                now.isoformat(timespec="seconds"), moment.rows, size, digest,
            )  # fmt: skip
            _member(file, MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            file.flush()
            os.fsync(file.fileno())
        growing.rename(target)
    except OSError as error:
        raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error
    finally:
        growing.unlink(missing_ok=True)
    return target, manifest


def _drop_left(folder: Path) -> None:
    """Remove what others began in a directory and nobody writes to any more."""
    for path in folder.iterdir():
        if _GROWING.fullmatch(path.name):
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def read_manifest(source: Path) -> Manifest:
    """What a backup says it holds; `BackupFailed` where it is none, or none this program can read."""
    try:
        with tarfile.open(source, "r:") as tar:
            member = tar.extractfile(MANIFEST)
            assert member is not None
            found: Any = json.loads(member.read(MANIFEST_BYTES_MAX))
        manifest = Manifest(**found)
    except OSError as error:
        raise BackupFailed(f"{source} cannot be read: {error.strerror}") from error
    except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise BackupFailed(f"{source} is not a backup of Tollkeeper, or not a whole one") from error
    if manifest.format != FORMAT or manifest.schema_version not in schema.KNOWN:
        raise BackupFailed(
            f"{source} was made by Tollkeeper {manifest.program_version} with schema version"
            f" {manifest.schema_version}; this program knows {schema.NEEDED} at most: use a newer one"
        )
    return manifest


def restore(url: str, source: Path, *, ids_ahead: int) -> tuple[Manifest, list[str]]:
    """Bring a backup into an empty database; what it held, and what its rows say against each other.

    `BackupFailed` before anything is written where the file is damaged or the database is not
    empty, and with nothing left in it where it cannot be restored as a whole.
    """
    manifest = read_manifest(source)
    server_version = backups.refuse_unless_empty(url)
    with tarfile.open(source, "r:") as tar:
        member = tar.extractfile(DUMP)
        assert member is not None
        _refuse_damaged(source, member, manifest)
        member.seek(0)
        arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", "--dbname="]
        with (
            _started(url, [program("pg_restore", major_of(server_version)), *arguments]) as (stdin, _),
            suppress(BrokenPipeError),  # one that has ended before says why by itself
        ):
            shutil.copyfileobj(member, stdin, CHUNK_BYTES)
    backups.compare(url, manifest.rows)
    backups.move_ids_ahead(url, ids_ahead)
    wrong = asyncio.run(backups.contradictions(url)) if manifest.schema_version == schema.NEEDED else []
    return manifest, wrong


def _dump(url: str, moment: backups.Moment, file: IO[bytes]) -> tuple[int, str]:
    """Append the dump as a member of the tar; its size and digest."""
    start = file.tell()
    file.write(bytes(tarfile.BLOCKSIZE))
    digest, size = hashlib.sha256(), 0
    arguments = [program("pg_dump", major_of(moment.server_version)), "--format=custom"]
    with _started(url, [*arguments, f"--snapshot={moment.snapshot}"]) as (_, stdout):
        while chunk := stdout.read(CHUNK_BYTES):
            digest.update(chunk)
            size += file.write(chunk)
    file.write(bytes(-size % tarfile.BLOCKSIZE))
    end = file.tell()
    file.seek(start)
    file.write(_header(DUMP, size))
    file.seek(end)
    return size, digest.hexdigest()


def _member(file: IO[bytes], name: str, content: bytes) -> None:
    file.write(_header(name, len(content)))
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _refuse_damaged(source: Path, member: IO[bytes], manifest: Manifest) -> None:
    digest = hashlib.sha256()
    while chunk := member.read(CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != manifest.sha256:
        raise BackupFailed(f"{source} is damaged: its dump is not the one that was written")


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
