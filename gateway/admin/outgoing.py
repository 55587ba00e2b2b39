"""Calls the product makes on somebody's behalf: to public addresses only, once, bounded.

A name is resolved here and the connection made to the very address that was checked, so that a
name which changes its mind between the two reaches nothing private. Redirects are not followed.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from gateway.core.addresses import is_public, refusal
from gateway.core.alerts.webhook import Outcome

TIMEOUT_S = 10.0
CONNECTIONS_MAX = 32
ERROR_CHARS_MAX = 200


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses; a name with any other is refused whole."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name; `OSError` where one of them is private."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(ip_address(one["host"].partition("%")[0])) for one in found):
            raise OSError(None, f"{host} stands for a private address")
        return found

    async def close(self) -> None:
        """Let go of nothing."""


class Outgoing:
    """Posts to other people's servers; `private` allows private addresses and plain HTTP."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._session: ClientSession | None = None

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Post once; whatever the other side does is told, not raised."""
        refused = refusal(url, private=self._private)
        if refused is not None:
            return Outcome(None, f"the URL {refused}")
        try:
            async with self._opened().post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return Outcome(response.status, None if response.ok else response.reason)
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            return Outcome(None, (str(error) or type(error).__name__)[:ERROR_CHARS_MAX])

    async def aclose(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> ClientSession:
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(
                    limit=CONNECTIONS_MAX,
                    use_dns_cache=False,
                    force_close=True,
                    resolver=None if self._private else PublicResolver(),
                ),
                timeout=ClientTimeout(total=TIMEOUT_S),
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session
