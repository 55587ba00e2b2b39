"""The HTTP client of all parts but the data plane: bounded in bytes and seconds, direct or through a proxy.

It follows no redirects, stores no cookies, and reads no environment variables. The timeout covers the whole
exchange, so a server that sends a byte now and then cannot extend it.

If private addresses are forbidden, the name is resolved here and the connection goes to exactly the checked
address, so a name that changes in between reaches nothing private. A proxy is asked for that address, too.
Certificate and name are verified as usual.
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
# Default maximum of an answer's body.
ANSWER_BYTES_MAX = 256 * 1024
# A socket, TLS with a proxy, TLS with a server: each needs an iteration of the event loop to close.
LAYERS = 3

# Returns the present proxies for each connection, so that a changed file needs no restart.
ProxiesNow = Callable[[], Proxies]


class Unanswered(OSError):
    """No connection, or no valid HTTP answer."""


class TooLarge(ValueError):
    """The answer has more bytes than the maximum."""


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
    """Send one request; return the status, the case-insensitive header fields, and the whole body.

    `arrive` is called with the number of bytes of each received part. Raises `OSError` or `TimeoutError` if
    there is no answer, and `TooLarge` if its body exceeds `bytes_max`.
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
    """Connects directly, or through one of `proxies`; with `checks`, that resolver looks up and checks names.

    `context` is for TLS with a server; None trusts the system's authorities.
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
        # For a single exchange: its event loop may end right after it.
        self._is_for_one, self._transports = is_for_one, list[asyncio.Transport]()

    async def abort(self) -> None:
        """Close every connection before this returns, as the event loop may end afterwards."""
        for one in self._transports:
            one.abort()
        for _ in range(LAYERS):
            await asyncio.sleep(0)

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109  # the parameter's name in aiohttp
    ) -> ResponseHandler:
        """Create a connection as aiohttp's connectors do; note its transport, which `abort` closes."""
        made = await self._connect_host(req, traces, timeout)
        if self._is_for_one and made.transport is not None:
            self._transports.append(made.transport)
        return made

    async def _connect_host(
        self, req: ClientRequest, traces: list[Any], timeout: ClientTimeout  # noqa: ASYNC109  # as above
    ) -> ResponseHandler:  # fmt: skip
        """Connect to a host, through the proxy for its URL if there is one."""
        proxy = self._proxies().to(str(req.url))
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        host, port = req.url.host or "", req.url.port or 0
        to = await self._checked_address(host, port) if self._checks is not None else host
        if not req.is_ssl():
            return await tunnelled(proxy, (to, port), self._factory(), None, None)
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return await tunnelled(proxy, (to, port), self._factory(), self._tls, host.rstrip("."))

    async def _checked_address(self, host: str, port: int) -> str:
        """Return the address of a host, which was checked not to be private, for the request to the proxy.

        IPv4 is preferred, because more proxies support it.
        """
        if literal(host) is not None:
            return host
        assert self._checks is not None
        found = await self._checks.resolve(host, port, socket.AF_UNSPEC)
        return first_of([one["host"] for one in found])


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses; a name with any private address is refused."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name; raise `OSError` if one of them is private."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(ip_address(one["host"].partition("%")[0])) for one in found):
            raise OSError(None, f"{host} stands for a private address")
        return found

    async def close(self) -> None:
        """Close nothing: the resolver holds no resources."""


def first_of(addresses: Sequence[str]) -> str:
    """Return the address that most networks can reach: an IPv4 address if there is one."""
    if not addresses:
        raise OSError(None, "the name has no address")
    return min(addresses, key=lambda address: ":" in address)


def open_session(connector: Connector, timeout: ClientTimeout) -> ClientSession:
    return ClientSession(
        connector=connector, timeout=timeout, cookie_jar=DummyCookieJar(), trust_env=False,
        auto_decompress=False, headers={"Accept-Encoding": "identity"},
    )  # fmt: skip


async def read_most(
    response: ClientResponse, most: int, arrive: Callable[[int], None] | None = None
) -> bytes:
    """Return up to `most` bytes of an answer's body; call `arrive` with the number of bytes of each part."""
    parts, left = list[bytes](), most
    while left and (part := await response.content.read(left)):
        if arrive is not None:
            arrive(len(part))
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
