"""Where connections to a target go, through which proxy, and with which TLS: read again when a file changes.

Connections that are open stay as they are; the next new one is made with what the files have by then. What
cannot be used changes nothing, and is told once.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from gateway.core.calls.route import UpstreamTarget
from gateway.files import https_with, require_regular
from gateway.outbound.tunnel import Tunnel, tls_with

# How often files are looked at, at most.
LOOK_S = 5.0

_Seen = tuple[tuple[int, int, int] | None, ...]


class Place:
    """One target's place; `host` and `port` are dialled, its proxy's where it has one.

    `told` takes an event and its facts.
    """

    def __init__(self, target: UpstreamTarget, told: Callable[..., None]) -> None:
        self._target, self._told = target, told
        via = target.via
        files = (target.ca_file, target.cert_file, target.key_file, via.ca_file if via is not None else None)
        self._files = tuple(file for file in files if file)
        self._seen = _seen(self._files)
        self._made, self._of_proxy = place_of(target), tls_with(via)
        self._look_at = 0.0
        self._why = ""
        self.host = via.host if via is not None else str(self._made["host"])
        self.port = via.port if via is not None else int(self._made["port"])
        self.secured = self._made["ssl"] is not None

    def at(self, now: float) -> dict[str, Any]:
        """How to connect now, a second of any clock, as asyncio takes it."""
        if self._files and now >= self._look_at:
            self._look_at = now + LOOK_S
            found = _seen(self._files)
            if found != self._seen:
                self._renew(found)
        return self._made

    def tunnel(self) -> Tunnel | None:
        """What one connection goes through; None where it goes straight there."""
        via, made = self._target.via, self._made
        return None if via is None else Tunnel(via, self._of_proxy, made["host"], made["port"])

    def _renew(self, found: _Seen) -> None:
        try:
            self._made, self._of_proxy = place_of(self._target), tls_with(self._target.via)
        except OSError as error:  # `ssl.SSLError` is one: a file that is no PEM, or no pair
            why = "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else str(error.strerror)
            if why != self._why:
                self._told("upstream_certificate_kept", why=why, level="error")
            self._why = why
            return
        self._seen, self._why = found, ""
        self._told("upstream_certificate_renewed")


def place_of(target: UpstreamTarget) -> dict[str, Any]:
    """Where to connect, as asyncio takes it. Certificate and name are verified, whoever the authority."""
    parts = urlsplit(target.base_url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return {"host": host, "port": parts.port or 80, "ssl": None}
    context = https_with(target.ca_file)
    if target.cert_file is not None:
        require_regular(target.cert_file, target.key_file)
        context.load_cert_chain(target.cert_file, target.key_file, password=lambda: b"")
    return {"host": host, "port": parts.port or 443, "ssl": context, "server_hostname": host}


def _seen(files: tuple[str, ...]) -> _Seen:
    """By which another content of files is known."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            there = os.stat(file)  # before a connection, so as little as there may be
        except OSError:
            found.append(None)
        else:
            found.append((there.st_ino, there.st_size, there.st_mtime_ns))
    return tuple(found)
