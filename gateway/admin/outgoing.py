"""Calls the product makes on somebody's behalf: to public addresses only, once, bounded.

A name is resolved here and the connection made to the very address that was checked, so that a
name which changes its mind between the two reaches nothing private; a proxy is asked for that address
too. Redirects are not followed.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from gateway.admin.tunnelling import ProxiesNow, Through, Tunnelling, no_proxies
from gateway.core.addresses import is_public, refusal
from gateway.core.alerts.webhook import Answer, Outcome

TIMEOUT_S = 10.0
# Of what is answered, where somebody reads it.
ANSWER_BYTES_MAX = 256 * 1024
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
    """Posts to other people's servers; `private` allows private addresses and plain HTTP.

    Those that `proxies` are before are reached by `through`, which has a protocol speak through a proxy.
    """

    def __init__(self, through: Through, *, private: bool, proxies: ProxiesNow = no_proxies) -> None:
        self._private, self._proxies, self._through = private, proxies, through
        self._session: ClientSession | None = None

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Post once; whatever the other side does is told, not raised."""
        answer = await self.ask(url, headers, body, read_bytes=0)
        return Outcome(answer.status, answer.error)

    async def ask(
        self, url: str, headers: dict[str, str], body: bytes, *, read_bytes: int = ANSWER_BYTES_MAX
    ) -> Answer:
        """Post once, and read so much of what is answered; told, not raised, as well."""
        refused = refusal(url, private=self._private)
        if refused is not None:
            return Answer(None, f"the URL {refused}")
        try:
            async with self._opened().post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                said = await _read(response, read_bytes)
                error = None if response.ok else response.reason
                return Answer(response.status, error, said, response.headers.get("Retry-After", ""))
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            return Answer(None, (str(error) or type(error).__name__)[:ERROR_CHARS_MAX])

    async def aclose(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> ClientSession:
        if self._session is None:
            self._session = ClientSession(
                connector=Tunnelling(
                    self._proxies, self._through, None if self._private else PublicResolver()
                ),
                timeout=ClientTimeout(total=TIMEOUT_S),
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session


async def _read(response: ClientResponse, most: int) -> bytes:
    """The beginning of an answer's body."""
    read = b""
    while len(read) < most and (chunk := await response.content.read(most - len(read))):
        read += chunk
    return read
