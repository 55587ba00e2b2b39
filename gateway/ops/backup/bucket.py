"""Backups in a bucket of an S3-compatible store: a folder of pieces each, and a document that names them.

The document is written last, once every piece was read back: what has none is no backup. A piece fits into
memory, so that nothing waits on a disk, and none is as large as a store would refuse.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from secrets import token_hex

from gateway.errors import BackupFailed, PlaceFailed
from gateway.ops.backup import manifest as manifests
from gateway.ops.backup.manifest import Manifest, Piece
from gateway.ops.place import Place, shown

PIECE_BYTES = 32 << 20
PIECES_MAX = 1 << 15
# Pieces without a document are of a backup that is being written, or by then of one that was killed.
LEFT_AFTER = timedelta(days=2)
NAMED_MAX = 5
_NAME = re.compile(r"tollkeeper-(\d{8}T\d{6}Z)-[0-9a-f]{8}")
_TIME = "%Y%m%dT%H%M%SZ"
_DOCUMENT, _PROVEN = ".json", ".proven"


@dataclass(frozen=True, slots=True)
class PiecesBackup:
    """A backup of a bucket, or what is said to be one."""

    place: Place
    name: str

    @property
    def address(self) -> str:
        """Where it is, as `restore` takes it."""
        return self.place.address(self.name)

    def manifest(self) -> Manifest:
        """What it says it holds; `BackupFailed` where it is none, or none this program can read."""
        found = self.place.read_json(self.name + _DOCUMENT)
        if found is None:
            raise BackupFailed(f"{self.address} is not there{_instead(self.place)}")
        manifest = manifests.read(found, self.address)
        sizes = [piece.bytes for piece in manifest.pieces]
        if not sizes or len(sizes) > PIECES_MAX or max(sizes) > PIECE_BYTES or sum(sizes) != manifest.bytes:
            raise manifests.none_at(self.address)
        return manifest

    def dump(self, manifest: Manifest) -> Iterator[bytes]:
        """Its dump by pieces, each once it is known to be the one that was written."""
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
                raise manifests.damaged(f"{self.address}/{_file(number)}")
            yield content


class Bucket:
    """A folder of a bucket that has backups of one database."""

    def __init__(
        self, url: str, *, piece_bytes: int = PIECE_BYTES, left_after: timedelta = LEFT_AFTER
    ) -> None:
        self._place = Place(url)
        self._piece_bytes = piece_bytes
        self._left_after = left_after

    @contextmanager
    def growing(self, now: datetime) -> Iterator[_GrowingPieces]:
        """Pieces under a name of the time that nobody else gives. What one that was killed left goes."""
        name = f"tollkeeper-{now:{_TIME}}-{token_hex(4)}"
        with suppress(PlaceFailed):  # one who may only add to a bucket leaves it to its rules
            self._drop_left(now)
        try:
            yield _GrowingPieces(self._place, name, self._piece_bytes)
        except BaseException:
            # A store that does not answer keeps pieces without a document: they go another night.
            with suppress(PlaceFailed):
                self.remove(name)
            raise

    def names(self) -> list[str]:
        """Backups that are there, the oldest first."""
        return _ours(self._place.names(""), _DOCUMENT)

    def address(self, name: str) -> str:
        """Where a backup is, as `restore` takes it."""
        return self._place.address(name)

    def remove(self, name: str) -> None:
        """Remove a backup: first what makes it one."""
        for ending in (_DOCUMENT, _PROVEN):
            self._place.remove(name + ending)
        self._place.remove_folder(name)

    def note_proof(self, name: str) -> None:
        """Say it beside the backup: whoever restores has no database to ask."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._place.write_json(name + _PROVEN, {"proved_at": at})

    def proven(self) -> list[str]:
        """Backups that were restored and are right."""
        return _ours(self._place.names(""), _PROVEN)

    def _drop_left(self, now: datetime) -> None:
        """Remove pieces that no document names and nobody writes any more."""
        whole = set(self.names())
        for name in self._place.folders(""):
            found = _NAME.fullmatch(name)
            if found is None or name in whole:
                continue
            begun = datetime.strptime(found[1], _TIME).replace(tzinfo=UTC)
            if begun < now - self._left_after:
                self.remove(name)


def named(url: str) -> PiecesBackup:
    """The backup that an address names; `BackupFailed` says which there are where it names none."""
    folder, name = Place.parted(url)
    name = name.removesuffix(_DOCUMENT)
    if not _NAME.fullmatch(name):
        place = Place(url)
        raise BackupFailed(
            f"{shown(url)} names no backup{_instead(place if place.names('') else Place(folder))}"
        )
    return PiecesBackup(Place(folder), name)


class _GrowingPieces:
    def __init__(self, place: Place, name: str, piece_bytes: int) -> None:
        self._place = place
        self._name = name
        self._piece_bytes = piece_bytes
        self._waiting = bytearray()
        self._pieces: list[Piece] = []

    def write(self, chunk: bytes) -> None:
        """Append to the dump; a piece that is full is sent, and read back."""
        self._waiting += chunk
        while len(self._waiting) >= self._piece_bytes:
            self._send(bytes(memoryview(self._waiting)[: self._piece_bytes]))
            del self._waiting[: self._piece_bytes]

    def finish(self, manifest: Manifest) -> PiecesBackup:
        """Send what is left, then the document."""
        if self._waiting:
            self._send(bytes(self._waiting))
        whole = replace(manifest, pieces=tuple(self._pieces))
        self._place.write_json(self._name + _DOCUMENT, manifests.as_document(whole))
        return PiecesBackup(self._place, self._name)

    def _send(self, content: bytes) -> None:
        if len(self._pieces) == PIECES_MAX:
            raise BackupFailed(
                f"the dump is larger than {PIECES_MAX * self._piece_bytes:,} bytes: back up by base backup"
                " and WAL"
            )
        file = f"{self._name}/{_file(len(self._pieces))}"
        piece = Piece(len(content), _digest(content))
        self._place.write_bytes(file, content)
        if self._place.digest(file) != (piece.bytes, piece.sha256):
            raise BackupFailed(f"{self._place.address(file)} is not what was sent: the store changed it")
        self._pieces.append(piece)


def _file(number: int) -> str:
    return f"{number + 1:06}.dump"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _ours(names: Sequence[str], ending: str) -> list[str]:
    """The backups of which there is a file with this ending, in order."""
    found = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return [name for name in found if _NAME.fullmatch(name)]


def _instead(place: Place) -> str:
    """Which backups a place has, the newest first, and which of them were proven."""
    there = place.names("")
    proven = set(_ours(there, _PROVEN))
    newest = _ours(there, _DOCUMENT)[::-1]
    if not newest:
        return f": {place.address('')} has none; name one as s3://bucket/folder/tollkeeper-<time>-<mark>"
    addresses = (f"{place.address(one)}{' (proven)' if one in proven else ''}" for one in newest[:NAMED_MAX])
    more = f" and {len(newest) - NAMED_MAX} older ones" if len(newest) > NAMED_MAX else ""
    return f"; there are {', '.join(addresses)}{more}"
