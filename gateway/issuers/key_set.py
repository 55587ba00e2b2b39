"""The keys of an issuer that may verify a token, independent of the library.

The type of a key determines its family of algorithms: the header of a token never changes that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.issuers import FAMILY_OF, SignedToken
from gateway.errors import TollkeeperError

FETCH_S_MAX: Final = 8.0


class UnreadableKeys(TollkeeperError, reason="unreadable_keys", status=502):
    """These are no keys that a token could be verified by."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key: its id if it has one, its family, and the only algorithm it is for, if it names one."""

    key_id: str | None
    family: str
    algorithm: str | None
    public: object
    verify: Callable[[SignedToken, object], bool]

    def fits(self, algorithm: str) -> bool:
        """Return whether this key may sign with an algorithm."""
        return FAMILY_OF[algorithm] == self.family and self.algorithm in {None, algorithm}

    def verifies(self, token: SignedToken) -> bool:
        """Return whether the token's signature was made with this key."""
        return self.verify(token, self.public)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The URLs of an issuer for signing in and for redeeming a code, and how to use them.

    `sends_post`: the client's secret is sent in the form, because the issuer accepts no other method.
    `names_itself`: each of its answers names the issuer (RFC 9207). `end_session` is the URL for signing out,
    empty without one.
    """

    authorization: str
    token: str
    sends_post: bool = False
    names_itself: bool = False
    end_session: str = ""


class KeySet:
    """The usable keys of one issuer at one time, and its sign-in endpoints if they were fetched."""

    def __init__(self, keys: tuple[VerifyingKey, ...], endpoints: Endpoints | None = None) -> None:
        self.keys, self.endpoints = keys, endpoints

    def find(self, token: SignedToken) -> VerifyingKey | None:
        """Return the key that a token names; for a token without key id the only one that fits, or None."""
        fitting = [key for key in self.keys if key.fits(token.algorithm)]
        if token.key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((one for one in fitting if one.key_id == token.key_id), None)
