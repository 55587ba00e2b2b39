"""Posts messages to other people's servers; the HTTP client is loaded with the first message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.core.alerts.messages import Answer, DeliveryOutcome
from gateway.core.network import DIRECT, Proxies, address_refusal

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT_S = 10.0
# Equal to `client.ANSWER_BYTES_MAX`, whose module loads aiohttp; a test compares them.
READ_BYTES_MAX = 256 * 1024
ERROR_CHARS_MAX = 200


class Outgoing:
    """Posts to other people's servers; `private` allows private addresses and plain HTTP."""

    def __init__(self, *, private: bool, proxies: Callable[[], Proxies] = lambda: DIRECT) -> None:
        self._private, self._proxies = private, proxies
        self._opened: ClientSession | None = None

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        """Send one POST request and return its outcome; a failure is an outcome, too, and not raised."""
        answer = await self.ask(url, headers, body, read_bytes=0)
        return DeliveryOutcome(answer.status, answer.error)

    async def ask(
        self, url: str, headers: dict[str, str], body: bytes, *, read_bytes: int = READ_BYTES_MAX
    ) -> Answer:
        """Send one POST request; return the answer with up to `read_bytes` of its body.

        A failure is an answer, too, and not raised.
        """
        refused = address_refusal(url, private=self._private)
        if refused is not None:
            return Answer(None, f"the URL {refused}")
        from aiohttp import ClientError, ClientTimeout  # noqa: PLC0415  # heavy, and few keepers post

        from gateway.outbound import client  # noqa: PLC0415  # as above

        if self._opened is None:
            checks = None if self._private else client.PublicResolver()
            timeout = ClientTimeout(total=TIMEOUT_S)
            self._opened = client.open_session(client.Connector(self._proxies, checks), timeout)
        try:
            async with self._opened.post(url, data=body, headers=headers, allow_redirects=False) as response:
                said = await client.read_most(response, read_bytes)
                error = None if response.ok else response.reason
                return Answer(response.status, error, said, response.headers.get("Retry-After", ""))
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            return Answer(None, (str(error) or type(error).__name__)[:ERROR_CHARS_MAX])

    async def aclose(self) -> None:
        """Close the open connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None
