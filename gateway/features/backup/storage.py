"""Backups as files: each is a tar with a dump in pg_dump's own format, and the manifest after it.

A backup is written under a temporary name, and renamed when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from gateway.core.text import read_json
from gateway.errors import BackupFailed, PlaceFailed
from gateway.ops.storage import FileStore, without_query
from persistence.schema import standing

# The manifest of a backup: the last member of a tar file, or a document in a bucket.

FORMAT = 1
# The extra of this package with the library for buckets.
EXTRA = "backup"


@dataclass(frozen=True, slots=True)
class BackupPiece:
    """A part of a dump in a file of its own."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """The contents of a backup: `rows` by table, and `sha256` and `bytes` of the whole dump."""

    format: int
    program_version: str
    schema_version: str
    server_version: str
    taken_at: str
    rows: Mapping[str, int]
    bytes: int
    sha256: str
    # In order; empty if the dump is one file.
    pieces: Sequence[BackupPiece] = ()


def as_document(manifest: BackupManifest) -> dict[str, Any]:
    """Return the manifest of a backup as JSON values.

    `pieces` is left out if there are none, so that older versions of the program can read it.
    """
    document = asdict(manifest)
    if not manifest.pieces:
        del document["pieces"]
    return document


def read_manifest(document: Any, source: str) -> BackupManifest:
    """Parse the JSON of a manifest; raise `BackupFailed` if it is malformed or of an unknown version."""
    try:
        pieces = tuple(
            BackupPiece(int(piece["bytes"]), str(piece["sha256"])) for piece in document.get("pieces", ())
        )
        manifest = BackupManifest(**{**document, "pieces": pieces})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise no_backup_at(source) from error
    if manifest.format != FORMAT or manifest.schema_version not in standing.KNOWN:
        known = f"this program knows {standing.NEEDED} at most: use a newer one"
        if manifest.schema_version < standing.KNOWN[0]:
            known = f"this program begins at {standing.KNOWN[0]}: restore it with the one that made it"
        raise BackupFailed(
            f"{source} was made by Tollkeeper {manifest.program_version} with schema version"
            f" {manifest.schema_version}; {known}"
        )
    return manifest


def no_backup_at(source: str) -> BackupFailed:
    """Return the error for a file or address that is no backup."""
    return BackupFailed(f"{source} is not a backup of Tollkeeper, or not a whole one")


def damaged_backup(source: str) -> BackupFailed:
    """Return the error for a backup whose checksum does not match."""
    return BackupFailed(f"{source} is damaged: its dump is not the one that was written")


CHUNK_BYTES = 1 << 20
MANIFEST_BYTES_MAX = 1 << 20
DUMP, MANIFEST, SUFFIX = "tollkeeper.dump", "manifest.json", ".tar"
_OURS = re.compile(r"tollkeeper-\d{8}T\d{6}Z\.tar")
_GROWING = re.compile(rf"\.{_OURS.pattern}\.\w+")


@dataclass(frozen=True, slots=True)
class TarBackup:
    """A backup in one tar file. The file may turn out to be something else."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def address(self) -> str:
        return str(self.path)

    def manifest(self) -> BackupManifest:
        """Return the backup's manifest; `BackupFailed` if it is missing, malformed or unknown."""
        try:
            with tarfile.open(self.path, "r:") as tar:
                member = tar.extractfile(MANIFEST)
                assert member is not None
                document: Any = read_json(member.read(MANIFEST_BYTES_MAX))
        except OSError as error:
            raise BackupFailed(f"{self.path} cannot be read: {error.strerror}") from error
        except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
            raise no_backup_at(self.address) from error
        return read_manifest(document, self.address)

    def dump(self, manifest: BackupManifest) -> Iterator[bytes]:
        """Yield the dump in chunks, after the checksum of the whole dump has matched."""
        with tarfile.open(self.path, "r:") as tar:
            member = tar.extractfile(DUMP)
            assert member is not None
            digest = hashlib.sha256()
            while chunk := member.read(CHUNK_BYTES):
                digest.update(chunk)
            if digest.hexdigest() != manifest.sha256:
                raise damaged_backup(self.address)
            member.seek(0)
            while chunk := member.read(CHUNK_BYTES):
                yield chunk


class Folder:
    """A directory of tar backups, or one such file: a path that ends in `.tar` and is no directory."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self.is_file = to.suffix == SUFFIX and not to.is_dir()

    @contextmanager
    def growing(self, now: datetime) -> Iterator[_TarWriter]:
        """Open a temporary file that becomes the backup, and delete unfinished files of killed runs."""
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
                with suppress(OSError):  # a volume without locks: unfinished files remain
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _drop_abandoned(target.parent)
                yield _TarWriter(file, growing, target)
        except OSError as error:
            raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error
        finally:
            growing.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of the directory's backups, the oldest first."""
        if not self._to.is_dir():
            raise BackupFailed(f"{self._to} is no directory of backups, nor a bucket")
        return sorted(path.name for path in self._to.iterdir() if _OURS.fullmatch(path.name))

    def address(self, name: str) -> str:
        return str(self._to / name)

    def remove(self, name: str) -> None:
        (self._to / name).unlink()

    def note_proof(self, name: str) -> None:
        """Ignore the proof: proofs of backups in a folder are recorded in the database."""

    def proven(self) -> None:
        """Return None: proofs of backups in a folder are recorded in the database."""


class _TarWriter:
    def __init__(self, file: IO[bytes], growing: Path, target: Path) -> None:
        self._file = file
        self._growing = growing
        self._target = target
        self._size = 0
        file.write(bytes(tarfile.BLOCKSIZE))

    def write(self, chunk: bytes) -> None:
        """Append a chunk of the database dump to the backup."""
        self._size += self._file.write(chunk)

    def finish(self, manifest: BackupManifest) -> TarBackup:
        """Write the dump's size, append the manifest, and rename the file to its final name."""
        file = self._file
        file.write(bytes(-self._size % tarfile.BLOCKSIZE))
        content = json.dumps(as_document(manifest), indent=1).encode()
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


def _drop_abandoned(folder: Path) -> None:
    """Delete unfinished backups in a directory that no process is writing any more."""
    for path in folder.iterdir():
        if _GROWING.fullmatch(path.name):
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


# Backups in a bucket of an S3-compatible store: a folder of pieces each, and a document that names them.
#
# The manifest is written last, after every piece was read back. A piece fits into
# memory, so that nothing waits on a disk, and none is as large as a store would refuse.

PIECE_BYTES = 32 << 20
PIECES_MAX = 1 << 15
# Pieces without a manifest belong to a backup in progress, or after this time to a killed one.
LEFT_AFTER = timedelta(days=2)
NAMED_MAX = 5
_NAME = re.compile(r"tollkeeper-(\d{8}T\d{6}Z)-[0-9a-f]{8}")
_TIME = "%Y%m%dT%H%M%SZ"
_DOCUMENT, _PROVEN = ".json", ".proven"


@dataclass(frozen=True, slots=True)
class PiecesBackup:
    """A backup in a bucket, in pieces. The address may turn out to be something else."""

    place: FileStore
    name: str

    @property
    def address(self) -> str:
        """The address of the backup, as `restore` accepts it."""
        return self.place.address(self.name)

    def manifest(self) -> BackupManifest:
        """Return the backup's manifest; `BackupFailed` if it is missing, malformed or unknown."""
        document = self.place.read_json(self.name + _DOCUMENT)
        if document is None:
            raise BackupFailed(f"{self.address} is not there{_instead(self.place)}")
        manifest = read_manifest(document, self.address)
        sizes = [piece.bytes for piece in manifest.pieces]
        if not sizes or len(sizes) > PIECES_MAX or max(sizes) > PIECE_BYTES or sum(sizes) != manifest.bytes:
            raise no_backup_at(self.address)
        return manifest

    def dump(self, manifest: BackupManifest) -> Iterator[bytes]:
        """Yield the dump piece by piece, each after its checksum has matched."""
        there = self.place.sizes(self.name)
        lacking = [
            file
            for number, piece in enumerate(manifest.pieces)
            if there.get(file := _file(number)) != piece.bytes
        ]
        if lacking:
            raise BackupFailed(
                f"{self.address} is damaged: {len(lacking)} of its {len(manifest.pieces)} files are not there"
                f" as they were written, such as {lacking[0]}"
            )
        whole = hashlib.sha256()
        for number, piece in enumerate(manifest.pieces):
            content = self.place.read(f"{self.name}/{_file(number)}", piece.bytes)
            whole.update(content)
            last = number == len(manifest.pieces) - 1
            if _digest(content) != piece.sha256 or (last and whole.hexdigest() != manifest.sha256):
                raise damaged_backup(f"{self.address}/{_file(number)}")
            yield content


class Bucket:
    """A folder in a bucket with backups of one database."""

    def __init__(
        self, url: str, *, piece_bytes: int = PIECE_BYTES, left_after: timedelta = LEFT_AFTER
    ) -> None:
        self._place = FileStore(url, extra=EXTRA)
        self._piece_bytes = piece_bytes
        self._left_after = left_after

    @contextmanager
    def growing(self, now: datetime) -> Iterator[_PiecesWriter]:
        """Open a writer of pieces under a unique name with the time; delete abandoned pieces."""
        name = f"tollkeeper-{now:{_TIME}}-{token_hex(4)}"
        with suppress(PlaceFailed):  # without the right to delete, the rules of the bucket do that
            self._drop_abandoned(now)
        try:
            yield _PiecesWriter(self._place, name, self._piece_bytes)
        except BaseException:
            # If the store is unavailable, the pieces remain, and a later run deletes them.
            with suppress(PlaceFailed):
                self.remove(name)
            raise

    def names(self) -> list[str]:
        """Return the names of the complete backups, the oldest first."""
        return _ours(self._place.names(""), _DOCUMENT)

    def address(self, name: str) -> str:
        """Return the address of a backup, as `restore` accepts it."""
        return self._place.address(name)

    def remove(self, name: str) -> None:
        """Delete a backup: its manifest first, then its pieces."""
        for ending in (_DOCUMENT, _PROVEN):
            self._place.remove(name + ending)
        self._place.remove_folder(name)

    def note_proof(self, name: str) -> None:
        """Write the proof next to the backup, because a restore has no database to ask."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._place.write_json(name + _PROVEN, {"proved_at": at})

    def proven(self) -> list[str]:
        """Return the names of backups that were restored and found correct."""
        return _ours(self._place.names(""), _PROVEN)

    def _drop_abandoned(self, now: datetime) -> None:
        """Delete old pieces of backups without a manifest."""
        whole = set(self.names())
        for name in self._place.folders(""):
            match = _NAME.fullmatch(name)
            if match is None or name in whole:
                continue
            begun = datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
            if begun < now - self._left_after:
                self.remove(name)


def named(url: str) -> PiecesBackup:
    """Return the backup at an address in a bucket.

    If the address names no backup, raise `BackupFailed` with a list of the existing ones.
    """
    folder, name = FileStore.parted(url)
    name = name.removesuffix(_DOCUMENT)
    if not _NAME.fullmatch(name):
        place = FileStore(url, extra=EXTRA)
        there = place if place.names("") else FileStore(folder, extra=EXTRA)
        raise BackupFailed(f"{without_query(url)} names no backup{_instead(there)}")
    return PiecesBackup(FileStore(folder, extra=EXTRA), name)


class _PiecesWriter:
    def __init__(self, place: FileStore, name: str, piece_bytes: int) -> None:
        self._place = place
        self._name = name
        self._piece_bytes = piece_bytes
        self._waiting = bytearray()
        self._pieces: list[BackupPiece] = []

    def write(self, chunk: bytes) -> None:
        """Append to the dump. A full piece is uploaded, and read back."""
        self._waiting += chunk
        while len(self._waiting) >= self._piece_bytes:
            self._send(bytes(memoryview(self._waiting)[: self._piece_bytes]))
            del self._waiting[: self._piece_bytes]

    def finish(self, manifest: BackupManifest) -> PiecesBackup:
        """Upload the rest of the dump, then the manifest; return the complete backup."""
        if self._waiting:
            self._send(bytes(self._waiting))
        whole = replace(manifest, pieces=tuple(self._pieces))
        self._place.write_json(self._name + _DOCUMENT, as_document(whole))
        return PiecesBackup(self._place, self._name)

    def _send(self, content: bytes) -> None:
        """Send a piece of the dump and compare the stored one; raise BackupFailed if they differ."""
        if len(self._pieces) == PIECES_MAX:
            raise BackupFailed(
                f"the dump is larger than {PIECES_MAX * self._piece_bytes:,} bytes: back up by base backup"
                " and WAL"
            )
        file = f"{self._name}/{_file(len(self._pieces))}"
        piece = BackupPiece(len(content), _digest(content))
        self._place.write_bytes(file, content)
        if self._place.digest(file) != (piece.bytes, piece.sha256):
            raise BackupFailed(f"{self._place.address(file)} is not what was sent: the store changed it")
        self._pieces.append(piece)


def _file(number: int) -> str:
    return f"{number + 1:06}.dump"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _ours(names: Sequence[str], ending: str) -> list[str]:
    """Return the names of backups with a file of this suffix, in order."""
    bare_names = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return [name for name in bare_names if _NAME.fullmatch(name)]


def _instead(place: FileStore) -> str:
    """Return the end of an error message: the existing backups, the newest first, and which are proven."""
    there = place.names("")
    proven = set(_ours(there, _PROVEN))
    newest = _ours(there, _DOCUMENT)[::-1]
    if not newest:
        return f": {place.address('')} has none; name one as s3://bucket/folder/tollkeeper-<time>-<mark>"
    addresses = (
        f"{place.address(name)}{' (proven)' if name in proven else ''}" for name in newest[:NAMED_MAX]
    )
    more = f" and {len(newest) - NAMED_MAX} older ones" if len(newest) > NAMED_MAX else ""
    return f"; there are {', '.join(addresses)}{more}"


# Types of backups, of their writers, and of where backups are stored.
Backup = TarBackup | PiecesBackup
BackupWriter = _TarWriter | _PiecesWriter
Backups = Folder | Bucket
