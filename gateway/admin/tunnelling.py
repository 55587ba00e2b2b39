"""Connections of aiohttp's of which some go through a proxy, by `CONNECT` as the data plane's do.

A proxy looks names up by itself, and may stand where private addresses are. So where those are forbidden the
name is looked up here, checked, and the proxy is asked for the very address: what it would take the name for
is no matter. Certificate and name are verified all the same.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler

from gateway.core.addresses import literal
from gateway.core.upstreams.proxies import DIRECT, Proxies, Proxy

CONNECTIONS_MAX = 32
# Has a protocol speak with a host and port through a proxy: over TLS with a name, where there is a context.
Through = Callable[
    [Proxy, tuple[str, int], ResponseHandler, ssl.SSLContext | None, str | None], Awaitable[ResponseHandler]
]
# The proxies of now: whoever connects asks each time, so that another file of theirs needs no restart.
ProxiesNow = Callable[[], Proxies]


def no_proxies() -> Proxies:
    """Everybody is reached directly."""
    return DIRECT


class Tunnelling(TCPConnector):
    """What goes through `proxies`, and what does not. Where there are `checks`, they look names up."""

    def __init__(self, proxies: ProxiesNow, through: Through, checks: AbstractResolver | None) -> None:
        super().__init__(limit=CONNECTIONS_MAX, use_dns_cache=False, force_close=True, resolver=checks)
        self._proxies, self._through, self._checks = proxies, through, checks
        self._tls: ssl.SSLContext | None = None

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109  # its name there
    ) -> ResponseHandler:
        """As aiohttp's connectors have it."""
        proxy = self._proxies().to(str(req.url))
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        host, port = req.url.host or "", req.url.port or 0
        to = await self._checked(host, port) if self._checks is not None else host
        if not req.is_ssl():
            return await self._through(proxy, (to, port), self._factory(), None, None)
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return await self._through(proxy, (to, port), self._factory(), self._tls, host.rstrip("."))

    async def _checked(self, host: str, port: int) -> str:
        """The address to ask the proxy for; IPv4 first, which more proxies have."""
        if literal(host) is not None:
            return host
        assert self._checks is not None
        found = await self._checks.resolve(host, port, socket.AF_UNSPEC)
        return first_of([one["host"] for one in found])


def first_of(addresses: Sequence[str]) -> str:
    """The address that is most likely to be reached from anywhere."""
    if not addresses:
        raise OSError(None, "the name has no address")
    return min(addresses, key=lambda one: ":" in one)
