"""What taking, restoring and proving need of where backups are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from gateway.ops.backup.manifest import Manifest


class Backup(Protocol):
    """One that is there as a whole."""

    @property
    def name(self) -> str:
        """What it is noted by."""
        ...

    @property
    def address(self) -> str:
        """Where a person finds it."""
        ...

    def manifest(self) -> Manifest:
        """What it says it holds; `BackupFailed` where it is none."""
        ...

    def dump(self, manifest: Manifest) -> Iterator[bytes]:
        """Its dump, in order; `BackupFailed` before a byte is lent that is not the one written."""
        ...


class Growing(Protocol):
    """One that is being written: nobody takes it for a backup."""

    def write(self, chunk: bytes) -> None:
        """Append to its dump."""
        ...

    def finish(self, manifest: Manifest) -> Backup:
        """It is whole, and durable: from here on it is a backup."""
        ...


class Backups(Protocol):
    """A place that has some."""

    def growing(self, now: datetime) -> AbstractContextManager[Growing]:
        """A new one; nothing of it stays that is not finished. What killed ones left goes."""
        ...

    def names(self) -> list[str]:
        """Those that are there, the oldest first."""
        ...

    def address(self, name: str) -> str:
        """Where a person finds one."""
        ...

    def remove(self, name: str) -> None:
        """Take one away."""
        ...

    def note_proof(self, name: str) -> None:
        """Say beside a backup that it was restored and is right, where the database alone is not enough."""
        ...

    def proven(self) -> list[str] | None:
        """Those of which that is said there; None where only the database knows."""
        ...
