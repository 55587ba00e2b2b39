"""TLS to Redis: read again when a file of it changes.

Connections that are open stay as they are; the next new one is made with what the files hold by then. What
cannot be used changes nothing, and is told once.
"""

from __future__ import annotations

import logging
import os
import ssl

from gateway.core.certificate import TlsFiles
from gateway.errors import SettingError
from gateway.files import require_regular

_PREFIX = "TOLLKEEPER_REDIS_"
_log = logging.getLogger("tollkeeper.redis")
_Seen = tuple[tuple[int, int, int] | None, ...]


class Secured:
    """What connections to Redis are made with; `SettingError` where a file cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = _seen(files)
        self._context = _made(files)
        self._why = ""

    def context(self) -> ssl.SSLContext:
        """For a connection that is made now."""
        found = _seen(self._files)
        if found != self._seen:
            self._renew(found)
        return self._context

    def _renew(self, found: _Seen) -> None:
        try:
            self._context = _made(self._files)
        except SettingError as error:  # tried again with the next connection: rights may change
            if error.message != self._why:
                _log.error("TLS to Redis is kept as it was", extra={"why": error.message})
            self._why = error.message
            return
        self._seen, self._why = found, ""
        _log.info("files of TLS to Redis read again")


def _made(files: TlsFiles) -> ssl.SSLContext:
    """Certificate and name are always verified; who may sign them can be said."""
    try:
        require_regular(files.authority)
        context = ssl.create_default_context(cafile=files.authority or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{_PREFIX}CA_FILE={files.authority!r} cannot be used: {_why(error)}") from error
    if files.certificate:
        try:
            require_regular(files.certificate, files.key)
            context.load_cert_chain(files.certificate, files.key or None, password="")
        except (OSError, ssl.SSLError) as error:
            shown = f"{_PREFIX}CERT_FILE={files.certificate!r} and {_PREFIX}KEY_FILE={files.key!r}"
            raise SettingError(f"{shown} cannot be used: {_why(error)}") from error
    return context


def _why(error: OSError) -> str:
    return "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else str(error.strerror)


def _seen(files: TlsFiles) -> _Seen:
    """By which another content of files is known."""
    found: list[tuple[int, int, int] | None] = []
    for file in filter(None, (files.authority, files.certificate, files.key)):
        try:
            there = os.stat(file)
        except OSError:
            found.append(None)
        else:
            found.append((there.st_ino, there.st_size, there.st_mtime_ns))
    return tuple(found)
