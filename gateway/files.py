"""Read files named by people: without blocking, and only if they are regular files.

Reading a pipe would block until somebody writes, in a thread that cannot be ended.
"""

from __future__ import annotations

import errno
import os
import re
import select
import ssl
import stat
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, urlsplit

# Most bytes of a file with a secret, such as a URL with a password.
SECRET_BYTES_MAX = 64 * 1024
_UNREADABLE = (
    "write its servers as host:port, an IPv6 address in brackets, ports from 1 to 65535, and @ : / ? # % of a user or"
    " password as %40 %3A %2F %3F %23 %25"
)
# Scheme, login and servers of a URL, and the rest of it; and one server.
_SERVERS = re.compile(r"([^:/?#]*://)([^/?#]*@)?([^/?#]*)(.*)", re.DOTALL)
_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]*))(?::([0-9]{0,5}))?", re.ASCII)
# A login that has servers in it: each of several servers had its own.
_SERVERS_IN_LOGIN = re.compile(r"[\[\]]|,.*@.|@.*,")
PORT_MAX = 65_535
# Inode, size and time of files; None for a missing one.
Seen = tuple[tuple[int, int, int] | None, ...]


def read_regular(path: str | os.PathLike[str], bytes_max: int) -> bytes:
    """Return a file's content, cut off after `bytes_max` + 1 bytes; that many mean that it is too long.

    Raise `OSError` if it is no regular file.
    """
    with open(path, "rb", opener=_opened) as file:
        _require_regular(os.fstat(file.fileno()), path)
        return file.read(bytes_max + 1)


def require_regular(*paths: str | os.PathLike[str] | None) -> None:
    """Raise `OSError` if a file that a library will open is not regular. Empty paths are skipped."""
    for path in paths:
        if path:
            _require_regular(os.stat(path), path)


def is_readable(descriptor: int) -> bool:
    """Return whether an idle connection has something to read: its end, or unexpected bytes."""
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def stat_files(files: Iterable[str | None]) -> Seen:
    """Return inode, size and modification time of each file, to detect changes; None for a missing file."""
    states: list[tuple[int, int, int] | None] = []
    for file in filter(None, files):
        try:
            there = os.stat(file)  # runs before each connection, so it must be cheap
        except OSError:
            states.append(None)
        else:
            states.append((there.st_ino, there.st_size, there.st_mtime_ns))
    return tuple(states)


def https_with(ca_file: str | None) -> ssl.SSLContext:
    """Return a TLS context for HTTP/1.1 with the authorities in a file; empty means the system's.

    Raise `OSError` if the file cannot be used.
    """
    require_regular(ca_file)
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class UrlFile:
    """The URL of a server, and optionally the file that contains it, which is read for each connection.

    Only user and password may change in the file. A URL of another server, or an unreadable file, has no
    effect; the file's watcher reports it.
    """

    def __init__(self, url: str, path: str = "") -> None:
        self._url, self._path = url, path

    def __bool__(self) -> bool:
        """Return whether the URL of a server is configured."""
        return bool(self._url)

    def url(self) -> str:
        """Return the URL for a new connection: read from its file, or the last valid one.

        A URL of another server in the file has no effect.
        """
        with suppress(OSError, ValueError):
            url = read_regular(self._path, SECRET_BYTES_MAX).decode().strip() if self._path else ""
            if is_same_place(url, self._url):
                self._url = url
        return self._url


def split_servers(url: str) -> tuple[SplitResult, tuple[tuple[str, int | None], ...]]:
    """Split a URL that may name several servers; return its parts without servers, and their hosts and ports.

    Raise `ValueError`, whose message has nothing of the URL, if it cannot be split. `urlsplit` reads one server:
    since CVE-2025-0938 was mended, it refuses brackets behind other text. All servers have one login.
    """
    match = _SERVERS.fullmatch(url)
    scheme, login, servers, rest = match.groups("") if match else ("", "", "", url)
    with suppress(ValueError):
        if not _SERVERS_IN_LOGIN.search(login):
            return urlsplit(f"{scheme}{login}{rest}"), tuple(
                [_read_server(server) for server in servers.split(",")]
            )
    raise ValueError(_UNREADABLE)


def _read_server(server: str) -> tuple[str, int | None]:
    """Return host and port of a server as a URL has it; raise `ValueError` if it is none."""
    match = _SERVER.fullmatch(server)
    if match is None or int(match[3] or 0) > PORT_MAX:
        raise ValueError
    host = str(ip_address(match[1])) if match[1] else match[2].lower()
    return host, int(match[3]) if match[3] else None


def is_same_place(one: str, other: str) -> bool:
    """Return whether two URLs lead to the same server. Raise `ValueError` if one is invalid."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[object, ...]:
    parts, servers = split_servers(url)
    options = [
        pair
        for pair in parse_qsl(parts.query, keep_blank_values=True)
        if pair[0] not in ("username", "user", "password")
    ]
    return parts.scheme, servers, parts.path, options


def _require_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
