"""What the console asks of providers of identities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.core.issuers.sign_in import Arrival


class SignIns(Protocol):
    """People who sign in elsewhere. Every method may raise `IssuerUnavailable`, or `NotFound` of a name."""

    @property
    def console_url(self) -> str:
        """Where browsers find the console."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What people read of each provider, by its name."""

    async def address(self, name: str, *, state: str, nonce: str, challenge: str) -> str:
        """Where a person signs in at a provider; `challenge` is PKCE's, by S256."""

    async def redeem(
        self, name: str, *, code: str, issuer: str | None, verifier: str, nonce: str, address: str
    ) -> Arrival:
        """Who came back with a code, from an address; `SignInRefused` where that is nobody to believe."""

    async def renew(self, issuer: str, sealed: str, cookie: str) -> Arrival:
        """Ask whether a person still may come in; `SignInRefused` where they may not."""

    def seal(self, renewal: str, cookie: str) -> str:
        """What may be stored of a renewal: the session's cookie alone opens it."""
