"""What a backup says it holds. The same words in a file's last member and in a bucket's document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.errors import BackupFailed
from persistence.schema import version as schema

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a dump that is a file of its own."""

    bytes: int
    sha256: str


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
    # In their order; none where the dump is one file.
    pieces: Sequence[Piece] = ()


def as_document(manifest: Manifest) -> dict[str, Any]:
    """A manifest as it is written down: without pieces as every version has written it."""
    document = asdict(manifest)
    if not manifest.pieces:
        del document["pieces"]
    return document


def read(found: Any, source: str) -> Manifest:
    """A manifest as it was written down; `BackupFailed` where it is none, or none this program can read."""
    try:
        pieces = tuple(Piece(int(each["bytes"]), str(each["sha256"])) for each in found.get("pieces", ()))
        manifest = Manifest(**{**found, "pieces": pieces})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise none_at(source) from error
    if manifest.format != FORMAT or manifest.schema_version not in schema.KNOWN:
        known = f"this program knows {schema.NEEDED} at most: use a newer one"
        if manifest.schema_version < schema.KNOWN[0]:
            known = f"this program begins at {schema.KNOWN[0]}: restore it with the one that made it"
        raise BackupFailed(
            f"{source} was made by Tollkeeper {manifest.program_version} with schema version"
            f" {manifest.schema_version}; {known}"
        )
    return manifest


def none_at(source: str) -> BackupFailed:
    """What is said of something that is no backup."""
    return BackupFailed(f"{source} is not a backup of Tollkeeper, or not a whole one")


def damaged(source: str) -> BackupFailed:
    """What is said of a backup whose bytes are others than were written."""
    return BackupFailed(f"{source} is damaged: its dump is not the one that was written")
