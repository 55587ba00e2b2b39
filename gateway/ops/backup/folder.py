"""Backups as files: each is a tar of pg_dump's own format, and behind it the manifest.

One is written beside its name and moved there when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from gateway.core.json_reader import read_json
from gateway.errors import BackupFailed
from gateway.ops.backup import manifest as manifests
from gateway.ops.backup.manifest import Manifest

CHUNK_BYTES = 1 << 20
MANIFEST_BYTES_MAX = 1 << 20
DUMP, MANIFEST, SUFFIX = "tollkeeper.dump", "manifest.json", ".tar"
_OURS = re.compile(r"tollkeeper-\d{8}T\d{6}Z\.tar")
_GROWING = re.compile(rf"\.{_OURS.pattern}\.\w+")


@dataclass(frozen=True, slots=True)
class TarBackup:
    """A file that is a backup, or says that it is."""

    path: Path

    @property
    def name(self) -> str:
        """What it is noted by."""
        return self.path.name

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self.path)

    def manifest(self) -> Manifest:
        """What it says it holds; `BackupFailed` where it is none, or none this program can read."""
        try:
            with tarfile.open(self.path, "r:") as tar:
                member = tar.extractfile(MANIFEST)
                assert member is not None
                found: Any = read_json(member.read(MANIFEST_BYTES_MAX))
        except OSError as error:
            raise BackupFailed(f"{self.path} cannot be read: {error.strerror}") from error
        except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
            raise manifests.none_at(self.address) from error
        return manifests.read(found, self.address)

    def dump(self, manifest: Manifest) -> Iterator[bytes]:
        """Its dump, once all of it is known to be the one that was written."""
        with tarfile.open(self.path, "r:") as tar:
            member = tar.extractfile(DUMP)
            assert member is not None
            digest = hashlib.sha256()
            while chunk := member.read(CHUNK_BYTES):
                digest.update(chunk)
            if digest.hexdigest() != manifest.sha256:
                raise manifests.damaged(self.address)
            member.seek(0)
            while chunk := member.read(CHUNK_BYTES):
                yield chunk


class Folder:
    """A directory of such files, or one file: a path that ends in `.tar`, unless a directory is there."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self.is_file = to.suffix == SUFFIX and not to.is_dir()

    @contextmanager
    def growing(self, now: datetime) -> Iterator[_GrowingTar]:
        """A file, or one under a name of the time in a directory, which is made; unfinished files go."""
        target = self._to if self.is_file else self._to / f"tollkeeper-{now:%Y%m%dT%H%M%SZ}{SUFFIX}"
        if self._to.is_file() and not self.is_file:
            raise BackupFailed(f"{self._to} is a file: name a directory, or a file that ends in {SUFFIX}")
        if target.exists():
            raise BackupFailed(f"{target} is there already")
        try:
            if not self.is_file:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        except OSError as error:
            raise BackupFailed(f"{target.parent} cannot be written to: {error.strerror}") from error
        growing = Path(name)
        try:
            with os.fdopen(descriptor, "r+b") as file:
                with suppress(OSError):  # a volume without locks: what is left there stays
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _drop_left(target.parent)
                yield _GrowingTar(file, growing, target)
        except OSError as error:
            raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error
        finally:
            growing.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Backups of the directory, the oldest first."""
        if not self._to.is_dir():
            raise BackupFailed(f"{self._to} is no directory of backups, nor a bucket")
        return sorted(path.name for path in self._to.iterdir() if _OURS.fullmatch(path.name))

    def address(self, name: str) -> str:
        """Where a file is."""
        return str(self._to / name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._to / name).unlink()

    def note_proof(self, name: str) -> None:
        """The database says it."""

    def proven(self) -> None:
        """The database says it."""


class _GrowingTar:
    def __init__(self, file: IO[bytes], growing: Path, target: Path) -> None:
        self._file = file
        self._growing = growing
        self._target = target
        self._size = 0
        file.write(bytes(tarfile.BLOCKSIZE))

    def write(self, chunk: bytes) -> None:
        """Append to the dump."""
        self._size += self._file.write(chunk)

    def finish(self, manifest: Manifest) -> TarBackup:
        """Say how long the dump was, append the manifest, and move the file to its name."""
        file = self._file
        file.write(bytes(-self._size % tarfile.BLOCKSIZE))
        content = json.dumps(manifests.as_document(manifest), indent=1).encode()
        file.write(_header(MANIFEST, len(content)))
        file.write(content)
        file.write(bytes(-len(content) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        file.seek(0)
        file.write(_header(DUMP, self._size))
        file.flush()
        os.fsync(file.fileno())
        self._growing.rename(self._target)
        return TarBackup(self._target)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _drop_left(folder: Path) -> None:
    """Remove what others began in a directory and nobody writes to any more."""
    for path in folder.iterdir():
        if _GROWING.fullmatch(path.name):
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
