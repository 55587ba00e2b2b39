"""Stores files in a directory, or in a bucket of an S3-compatible store."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from uuid import uuid4

from gateway.core.text import read_json
from gateway.errors import PlaceFailed
from gateway.extras import loading

# Bytes read at once: in a bucket each is a request.
CHUNK_BYTES = 8 << 20
DOCUMENT_BYTES_MAX = 1 << 22
# The library uploads a file in parts of this size, and a store accepts this number of parts:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
STORED_BYTES_MAX = 10_000 * (10 << 20)
SCHEMES = ("", "file", "s3")
LOCAL = "local"
# The suffix of a file's name in a directory while it is written.
GROWING = ".part"
# The parameters that an address may have.
PARAMETERS = (
    "region", "endpoint_override", "scheme", "tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates",
    "force_virtual_addressing", "allow_bucket_creation",
)  # fmt: skip
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE, instead"
# Advice for errors of a store, by a word in the message.
_HELPS = {
    "NO_SUCH_BUCKET": "make the bucket, or name another one",
    "Bucket '": "make the bucket, or name another one",
    "ACCESS_DENIED": "the credentials must be allowed to list, read, write and delete there",
    "INVALID_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID is not of this store",
    "SIGNATURE_DOES_NOT_MATCH": "AWS_SECRET_ACCESS_KEY is not of this access key",
    "NETWORK_CONNECTION": "does the store answer there? endpoint_override=… and scheme=… say where",
    "PermanentRedirect": "name the bucket's own region: region=…",
}


class FileStore:
    """Files below one address. A file is complete and durable before its name is recorded.

    `PlaceFailed` reports an address or an error. `file_bytes_max` is the largest file of a bucket
    (`stored_bytes_max`), and None for a directory.
    """

    def __init__(self, url: str, *, extra: str = "archive", stored_bytes_max: int = STORED_BYTES_MAX) -> None:
        self.url = url.rstrip("/") or url
        scheme = urlsplit(url)[0]
        _refuse(url)
        with loading(extra):
            fs: Any = importlib.import_module("pyarrow.fs")
        with translate_errors(url):
            if scheme == "":
                self._files, self._root = fs.LocalFileSystem(), str(Path(url).absolute())
            else:
                self._files, self._root = fs.FileSystem.from_uri(url)
        self._kinds = fs.FileType
        self._selector = fs.FileSelector
        self._is_local = self._files.type_name == LOCAL
        self.file_bytes_max = None if self._is_local else stored_bytes_max
        self._made_folders: set[str] = set()

    @staticmethod
    def parted(url: str) -> tuple[str, str]:
        scheme, authority, path, query, _ = urlsplit(url)
        folder, _, name = path.rstrip("/").rpartition("/")
        return urlunsplit((scheme, authority, folder, query, "")), name

    def address(self, name: str) -> str:
        scheme, authority, path, query, _ = urlsplit(self.url)
        return urlunsplit((scheme, authority, f"{path.rstrip('/')}/{name}".rstrip("/"), query, ""))

    def open(self, name: str) -> Any:
        with translate_errors(self.url):
            return self._files.open_input_file(self._path(name))

    def fragment(self, name: str, format_: Any) -> Any:
        """Return the file `name` as a fragment to read in parts, in a format of `pyarrow.dataset`."""
        with translate_errors(self.url):
            return format_.make_fragment(self._path(name), self._files)

    @contextmanager
    def write(self, name: str) -> Iterator[Any]:
        path = self._path(name)
        folder = path.rpartition("/")[0]
        with translate_errors(self.url):
            if folder not in self._made_folders:
                self._files.create_dir(folder, recursive=True)
                self._made_folders.add(folder)
            with self._files.open_output_stream(path) as sink:
                yield sink
            self._keep(path)

    @contextmanager
    def write_whole(self, name: str, still: Callable[[], object]) -> Iterator[Any]:
        """Open a file for writing, which gets its name only when it is complete.

        `still` is called before that, and raises an error if the file must not be written any more. Then a
        directory still has the old file, but a bucket gets the new bytes.
        """
        growing = f"{name}.{uuid4().hex}{GROWING}" if self._is_local else name
        if self._is_local:  # files of runs that were killed, or stopped by `still`
            folder = name.rpartition("/")[0]
            for each in self.names(folder):
                if each.endswith(GROWING):
                    self.remove(f"{folder}/{each}")
        with self.write(growing) as sink:
            yield sink
            still()
        still()
        if growing != name:
            self._rename(growing, name)

    def write_bytes(self, name: str, content: bytes) -> None:
        with self.write(name) as sink:
            sink.write(content)

    def digest(self, name: str) -> tuple[int, str]:
        """Return the size of a file in bytes, and its SHA-256 in hex."""
        size, digest = 0, hashlib.sha256()
        with translate_errors(self.url), self._files.open_input_stream(self._path(name)) as source:
            while piece := source.read(CHUNK_BYTES):
                size += len(piece)
                digest.update(piece)
        return size, digest.hexdigest()

    def read(self, name: str, most: int) -> bytes:
        """Return up to `most` bytes of a file."""
        with translate_errors(self.url), self._files.open_input_stream(self._path(name)) as source:
            return bytes(source.read(most))

    def has(self, name: str) -> bool:
        with translate_errors(self.url):
            return bool(self._files.get_file_info(self._path(name)).type != self._kinds.NotFound)

    def read_json(self, name: str) -> Any:
        """Return a decoded JSON document; None if it does not exist."""
        if not self.has(name):
            return None
        try:
            found = read_json(self.read(name, DOCUMENT_BYTES_MAX))
        except ValueError as error:
            raise PlaceFailed(f"{self.address(name)} is not a document of Tollkeeper") from error
        if found is None:
            raise PlaceFailed(f"{self.address(name)} says nothing")
        return found

    def write_json(self, name: str, value: Any) -> None:
        """Store a JSON document; in a directory the old one remains until the new one is complete."""
        growing = f"{name}{GROWING}" if self._is_local else name
        self.write_bytes(growing, json.dumps(value, indent=1).encode())
        if growing != name:
            self._rename(growing, name)

    def remove(self, name: str) -> None:
        if self.has(name):
            with translate_errors(self.url):
                self._files.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        if self.has(name):
            with translate_errors(self.url):
                self._files.delete_dir(self._path(name))

    def names(self, folder: str) -> list[str]:
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file in a folder, by name."""
        return {info.base_name: info.size for info in self._infos(folder) if info.type == self._kinds.File}

    def folders(self, folder: str) -> list[str]:
        return sorted(info.base_name for info in self._infos(folder) if info.type == self._kinds.Directory)

    def _infos(self, folder: str) -> Any:
        with translate_errors(self.url):
            return self._files.get_file_info(self._selector(self._path(folder), allow_not_found=True))

    def _rename(self, name: str, to: str) -> None:
        with translate_errors(self.url):
            self._files.move(self._path(name), self._path(to))
            self._keep(self._path(to))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")

    def _keep(self, path: str) -> None:
        """Sync a path and its directory to disk, so that its files survive a power cut."""
        if not self._is_local:
            return
        for each in (path, path.rpartition("/")[0]):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def without_query(url: str) -> str:
    """Return a URL without its query and fragment, for messages."""
    return urlunsplit((*urlsplit(url)[:3], "", ""))


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Raise errors at the store `url` inside the block as `PlaceFailed`, in one line with known advice."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        help_ = next((f": {words}" for word, words in _HELPS.items() if word in line), "")
        raise PlaceFailed(f"{url}: {line}{help_}") from error


def _refuse(url: str) -> None:
    """Raise `PlaceFailed` for an invalid address, or one with credentials; the message repeats no secret."""
    scheme, authority, _, query, _ = urlsplit(url)
    if not url.strip():
        raise PlaceFailed("an empty address is no place for files: a directory, file:///… or s3://bucket/…")
    if scheme not in SCHEMES:
        raise PlaceFailed(f"{scheme}:// is no place for files: a directory, file:///… or s3://bucket/…")
    said = parse_qsl(query, keep_blank_values=True) if scheme else []
    # A secret may contain a slash, so authority has only its beginning; bucket names have neither @ nor
    # colon.
    hosts = [value for name, value in said if name == "endpoint_override"]
    if scheme and (not {"@", ":"}.isdisjoint(authority) or any("@" in host for host in hosts)):
        raise PlaceFailed(
            f"{scheme}://…: no user or password in an address, which is kept and shown: {_CREDENTIALS}"
        )
    unknown = sorted({name for name, _ in said} - set(PARAMETERS))
    if unknown:
        raise PlaceFailed(
            f"{without_query(url)}: {unknown[0]} is nothing an address says; known are {', '.join(PARAMETERS)}."
            f" For credentials {_CREDENTIALS}"
        )
