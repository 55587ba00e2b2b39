"""The HTTP client for all but the data plane: bounded in bytes and seconds, directly or through a proxy.

Redirects are not followed, no cookie is kept, and no variable is read. The time is that of the whole
exchange, so a server that sends a byte now and then is left at its end.

Where private addresses are forbidden, a name is resolved here and the connection made to the very address
that was checked: a name which changes its mind between the two reaches nothing private. A proxy looks names
up by itself, so it is asked for that address as well. Certificate and name are verified all the same.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from aiohttp import (
    ClientError,
    ClientRequest,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.resolver import ThreadedResolver

from gateway.core.network import Proxies, is_public, literal
from gateway.outbound.tunnel import tunnelled

CONNECTIONS_MAX = 32
# Of what is answered, where somebody reads it.
ANSWER_BYTES_MAX = 256 * 1024
# A socket, TLS with a proxy, TLS with a server: each closes in a turn of the loop of its own.
LAYERS = 3

# The proxies of now: each connection asks for them, so that another file of theirs needs no restart.
ProxiesNow = Callable[[], Proxies]


class Unanswered(OSError):
    """There is no connection, or no answer that is HTTP."""


class TooLarge(ValueError):
    """An answer has more bytes than are read."""


async def ask(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    proxies: ProxiesNow,
    context: ssl.SSLContext | None,
    connect_s: float,
    within_s: float,
    bytes_max: int = ANSWER_BYTES_MAX,
    arrive: Callable[[int], None] | None = None,
) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request; return status, fields whatever the case of their names, and the whole body.

    `arrive` receives the byte count of each part as it comes. `OSError`, `TimeoutError` or `TooLarge` where
    there is no answer.
    """
    connector = Connector(proxies, None, context, is_for_one=True)
    timeout = ClientTimeout(total=within_s, connect=connect_s)
    try:
        async with (
            open_session(connector, timeout) as session,
            session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            said = await read_most(response, bytes_max + 1, arrive)
            if len(said) > bytes_max:
                raise TooLarge(f"answers more than {bytes_max} bytes")
            return response.status, response.headers, said
    except ClientError as error:
        raise Unanswered(str(error) or type(error).__name__) from error
    finally:
        await connector.abort()


class Connector(TCPConnector):
    """Connects directly, or through one of `proxies`. Where there are `checks`, they look names up.

    `context` is what TLS with a server is spoken by, the system's authorities where there is none.
    """

    def __init__(
        self,
        proxies: ProxiesNow,
        checks: AbstractResolver | None,
        context: ssl.SSLContext | None = None,
        *,
        is_for_one: bool = False,
    ) -> None:
        super().__init__(
            limit=CONNECTIONS_MAX, use_dns_cache=False, force_close=True, resolver=checks, ssl=context or True
        )
        self._proxies, self._checks, self._tls = proxies, checks, context
        # Of one exchange alone: its loop may end right behind it.
        self._is_for_one, self._made = is_for_one, list[asyncio.Transport]()

    async def abort(self) -> None:
        """Close every connection by now: the loop may end behind this."""
        for one in self._made:
            one.abort()
        for _ in range(LAYERS):
            await asyncio.sleep(0)

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109  # its name there
    ) -> ResponseHandler:
        """Create a connection as aiohttp's connectors do; note its transport for `abort`."""
        made = await self._connected(req, traces, timeout)
        if self._is_for_one and made.transport is not None:
            self._made.append(made.transport)
        return made

    async def _connected(
        self, req: ClientRequest, traces: list[Any], timeout: ClientTimeout  # noqa: ASYNC109  # as above
    ) -> ResponseHandler:  # fmt: skip
        proxy = self._proxies().to(str(req.url))
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        host, port = req.url.host or "", req.url.port or 0
        to = await self._checked(host, port) if self._checks is not None else host
        if not req.is_ssl():
            return await tunnelled(proxy, (to, port), self._factory(), None, None)
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return await tunnelled(proxy, (to, port), self._factory(), self._tls, host.rstrip("."))

    async def _checked(self, host: str, port: int) -> str:
        """Return the address to ask the proxy for; IPv4 first, which more proxies have."""
        if literal(host) is not None:
            return host
        assert self._checks is not None
        found = await self._checks.resolve(host, port, socket.AF_UNSPEC)
        return first_of([one["host"] for one in found])


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses; a name with any other is refused whole."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name; `OSError` where one of them is private."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(ip_address(one["host"].partition("%")[0])) for one in found):
            raise OSError(None, f"{host} stands for a private address")
        return found

    async def close(self) -> None:
        """Close nothing."""


def first_of(addresses: Sequence[str]) -> str:
    """Return the address that is most likely to be reached from anywhere."""
    if not addresses:
        raise OSError(None, "the name has no address")
    return min(addresses, key=lambda one: ":" in one)


def open_session(connector: Connector, timeout: ClientTimeout) -> ClientSession:
    return ClientSession(
        connector=connector, timeout=timeout, cookie_jar=DummyCookieJar(), trust_env=False,
        auto_decompress=False, headers={"Accept-Encoding": "identity"},
    )  # fmt: skip


async def read_most(
    response: ClientResponse, most: int, arrive: Callable[[int], None] | None = None
) -> bytes:
    """Return the beginning of an answer's body."""
    parts, left = list[bytes](), most
    while left and (part := await response.content.read(left)):
        if arrive is not None:
            arrive(len(part))
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
