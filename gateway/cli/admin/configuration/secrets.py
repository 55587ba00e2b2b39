"""Where credentials go that are shown once: a file each that only its owner can read, never the screen.

Files are there, empty, before anything is made: what cannot be kept is not made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.configuration.documents import written

NAME_CHARS_MAX = 48
# Files that are written at once: most of the time of each is the disk's.
WRITTEN_AT_ONCE = 32


class Form(StrEnum):
    """How a secret is written: as it is, or as a Secret of Kubernetes."""

    FILE = "file"
    KUBERNETES = "kubernetes"


@contextmanager
def kept(directory: Path | None, form: Form, coming: Sequence[Json]) -> Iterator[Keeping]:
    """Have a place for the secret of each object that is to be made; places nobody used are gone after it."""
    if coming and directory is None:
        names = ", ".join(f"{each['resource']} {each['name']}" for each in coming[:5])
        raise CommandFailed(f"Secrets would be made (of {names}): say with --secrets-dir where they go.")
    keeping = Keeping(directory or Path(), form)
    try:
        for each in coming:
            keeping.prepare(each)
        yield keeping
    finally:
        keeping.tidy()


class Keeping:
    """Files of secrets in a directory."""

    def __init__(self, directory: Path, form: Form) -> None:
        self._directory = directory
        self._form = form
        self._waiting: dict[Path, Path] = {}

    def prepare(self, each: Json) -> None:
        """Have room for a secret."""
        try:
            self._make(self.path_of(each))
        except OSError as error:
            raise CommandFailed(
                f"{error.filename} cannot be made: {error.strerror}. Nothing was applied."
            ) from error

    def keep_all(self, secrets: Sequence[Json]) -> tuple[list[tuple[Json, Path]], list[str]]:
        """Write each that can be written: those with their paths, and of each other one that it is lost."""
        with ThreadPoolExecutor(WRITTEN_AT_ONCE) as writers:
            kept = list(zip(secrets, writers.map(self._kept, secrets), strict=True))
        paths = [(secret, path) for secret, path in kept if isinstance(path, Path)]
        return paths, [why for _, why in kept if isinstance(why, str)]

    def _kept(self, secret: Json) -> Path | str:
        """Write one: where it is, or that it is lost."""
        try:
            return self._keep(secret)
        except OSError as error:
            return (
                f"The secret of {secret['resource']} {secret['name']} could not be written"
                f" ({error.strerror}) and is lost: revoke or delete it, and apply again."
            )

    def _make(self, path: Path) -> Path:
        """An empty file that only its owner can read, to be renamed to `path`."""
        waiting = path.with_name(f".{path.name}.{os.getpid()}")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(waiting, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._waiting[path] = waiting
        return waiting

    def _keep(self, secret: Json) -> Path:
        path = self.path_of(secret)
        waiting = self._waiting.get(path) or self._make(path)
        with waiting.open("w", encoding="utf-8") as file:
            file.write(self._text(path, secret))
            file.flush()
            os.fsync(file.fileno())
        waiting.replace(path)
        del self._waiting[path]
        return path

    def tidy(self) -> None:
        """Take away what waits."""
        for waiting in self._waiting.values():
            with suppress(OSError):
                waiting.unlink()

    def path_of(self, each: Json) -> Path:
        """Where the secret of an object goes."""
        suffix = ".yaml" if self._form is Form.KUBERNETES else ""
        return self._directory / f"{_name(each)}{suffix}"

    def _text(self, path: Path, secret: Json) -> str:
        if self._form is Form.FILE:
            return f"{secret['value']}\n"
        return written(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": path.stem, "labels": {"app.kubernetes.io/managed-by": "tollkeeper"}},
                "type": "Opaque",
                "stringData": {secret["field"]: secret["value"]},
            }
        )


def _name(each: Json) -> str:
    """A name that is a file's and a Secret's, and no other object's."""
    said = f"{each['resource']} {each['name']}"
    plain = re.sub(r"[^a-z0-9]+", "-", said.lower()).strip("-")[:NAME_CHARS_MAX].strip("-")
    return f"{plain}-{sha256(said.encode()).hexdigest()[:8]}"
