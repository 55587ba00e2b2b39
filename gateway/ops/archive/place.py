"""Where an archive is: a directory, or a bucket of an S3-compatible store. It knows files, not rows."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import ArchiveFailed

CHUNK_BYTES = 1 << 20
MANIFEST_BYTES_MAX = 1 << 22
SCHEMES = ("", "file", "s3")
LOCAL = "local"


class Place:
    """Files below one address. What is written is there as a whole, and durable, before its name is noted."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        scheme, authority = urlsplit(url)[:2]
        if scheme not in SCHEMES:
            raise ArchiveFailed(
                f"{scheme}:// is no place for an archive: a directory, file:///… or s3://bucket/…"
            )
        # A secret may hold a slash, so that only its beginning stands here; no bucket's name has either mark.
        if scheme and not {"@", ":"}.isdisjoint(authority):
            raise ArchiveFailed(
                f"{scheme}://…: no user or password in an archive's address, which is kept and shown: "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
            )
        fs: Any = importlib.import_module("pyarrow.fs")
        with told(url):
            if scheme == "":
                self._files, self._root = fs.LocalFileSystem(), str(Path(url).absolute())
            else:
                self._files, self._root = fs.FileSystem.from_uri(url)
        self._kinds = fs.FileType
        self._selector = fs.FileSelector
        self._is_local = self._files.type_name == LOCAL

    def open(self, name: str) -> Any:
        """A file to read, at any place in it."""
        return self._files.open_input_file(self._path(name))

    def fragment(self, name: str, format_: Any) -> Any:
        """A file to read by parts, of a format of `pyarrow.dataset`."""
        return format_.make_fragment(self._path(name), self._files)

    @contextmanager
    def write(self, name: str) -> Iterator[Any]:
        """A file to write from its beginning."""
        path = self._path(name)
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(path) as sink:
            yield sink
        self._keep(path)

    def digest(self, name: str) -> tuple[int, str]:
        """How many bytes a file has, and their SHA-256."""
        size, digest = 0, hashlib.sha256()
        with self._files.open_input_stream(self._path(name)) as source:
            while piece := source.read(CHUNK_BYTES):
                size += len(piece)
                digest.update(piece)
        return size, digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """What a document says; None where there is none."""
        path = self._path(name)
        if self._files.get_file_info(path).type == self._kinds.NotFound:
            return None
        with self._files.open_input_stream(path) as source:
            found = source.read(MANIFEST_BYTES_MAX)
        try:
            return json.loads(found)
        except ValueError as error:
            raise ArchiveFailed(f"{self.url}/{name} is not a document of an archive") from error

    def write_json(self, name: str, value: Any) -> None:
        """Put a document there: the one before it is there until this one is whole."""
        growing = f"{name}.part" if self._is_local else name
        with self.write(growing) as sink:
            sink.write(json.dumps(value, indent=1).encode())
        if growing != name:
            self._files.move(self._path(growing), self._path(name))
            self._keep(self._path(name))

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        path = self._path(name)
        if self._files.get_file_info(path).type != self._kinds.NotFound:
            self._files.delete_file(path)

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, in order."""
        selector = self._selector(self._path(folder), allow_not_found=True)
        found = self._files.get_file_info(selector)
        return sorted(each.base_name for each in found if each.type == self._kinds.File)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _keep(self, path: str) -> None:
        """A directory's files are forgotten by a machine that loses power, unless it is told to keep them."""
        if not self._is_local:
            return
        for each in (path, path.rpartition("/")[0]):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def told(url: str) -> Iterator[None]:
    """What a place does not allow, on one line."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArchiveFailed(f"{url}: {said}") from error
