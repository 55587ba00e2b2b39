"""What the Admin API and the console ask of the store about who may come in, and who is signed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from gateway.core.accounts.administration import Actor, ConsoleSession, Row
from persistence.resources import access, webhooks

T = TypeVar("T")


class SignInStore(ABC):
    """The side of the store that knows credentials of people."""

    @abstractmethod
    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do something in a transaction."""

    async def staff_token(self, digest: str) -> Actor | None:
        """Find a named admin token that is neither expired nor revoked."""
        return await self.run(lambda connection: access.find_admin_token(connection, digest))

    async def key_holder(self, digest: str) -> Actor | None:
        """Find who holds an API key that is neither expired nor revoked."""
        return await self.run(lambda connection: access.find_key_holder(connection, digest))

    async def mail_consent(self, digest: str) -> Row | None:
        """What a link of a mail asks: `organization`, `address`, `given_at`; None where it is not good."""
        return await self.run(lambda connection: webhooks.consent_by(connection, digest))

    async def consent_to_mail(self, digest: str, *, given: bool) -> bool:
        """Let mail be sent to the address of a link, or no more; False where the link is not good."""
        return await self.run(lambda connection: webhooks.consent(connection, digest, given=given))

    async def has_ended_token(self, digest: str) -> bool:
        """Whether there is a named admin token that is expired or revoked."""
        return await self.run(lambda connection: access.admin_token_has_ended(connection, digest))

    async def use_sign_in(self, state: str) -> bool:
        """Note that somebody came back from a sign-in; False where somebody did before."""
        return await self.run(lambda connection: access.use_sign_in(connection, state))

    async def console_session(self, digest: str) -> ConsoleSession | None:
        return await self.run(lambda connection: access.find_session(connection, digest))

    async def ask_of_session(self, session_id: int) -> bool:
        """Take it upon the caller to ask whether its person still may come in; False where another does."""
        return await self.run(lambda connection: access.ask_session(connection, session_id))

    async def keep_renewal(self, session_id: int, renewal: str, *, vouched: bool) -> None:
        """Keep what is asked with next; the session goes on where its person was `vouched` for."""
        await self.run(
            lambda connection: access.keep_renewal(connection, session_id, renewal, vouched=vouched)
        )
