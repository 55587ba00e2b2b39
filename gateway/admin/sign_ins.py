"""What the console asks of providers of identities, and of the store about who is signed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.core.accounts.administration import ConsoleSession, Row
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

    def name_of(self, issuer: str) -> str:
        """What the provider that is this issuer is called here; empty where none of ours is."""

    async def sign_out_address(self, name: str, sealed: str, cookie: str, *, state: str) -> str:
        """Where who is signed out here signs out at a provider too; empty where nowhere, or it is away."""

    def seal(self, renewal: str, cookie: str) -> str:
        """What may be stored of a renewal: the session's cookie alone opens it."""

    def seal_id_token(self, id_token: str, cookie: str) -> str:
        """The same of an ID token."""


class KeptSessions(Protocol):
    """Sessions of the console, as PostgreSQL has them."""

    async def use_sign_in(self, state: str) -> bool:
        """Note that somebody came back from a sign-in, by its state; False where somebody did before."""

    async def console_session(self, digest: str) -> ConsoleSession | None:
        """Find a session of the console that is not over."""

    async def mail_consent(self, digest: str) -> Row | None:
        """What a link of a mail asks: `organization`, `address`, `given_at`; None where it is not good."""

    async def consent_to_mail(self, digest: str, *, given: bool) -> bool:
        """Let mail be sent to the address of a link, or no more; False where the link is not good."""

    async def ask_of_session(self, session_id: int) -> bool:
        """Take it upon the caller to ask whether its person still may come in; False where another does."""

    async def keep_renewal(self, session_id: int, renewal: str, *, vouched: bool) -> None:
        """Keep what is asked with next; the session goes on where its person was `vouched` for."""
