"""The keys of an issuer as far as they may verify a token, whichever library does it.

A key is for one family of algorithms and says so by what it is: what a token says of itself never makes a
key of another kind of it.
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
    """One public key: its id if it has one, its family, and for which algorithm it is alone, if for one."""

    key_id: str | None
    family: str
    algorithm: str | None
    public: object
    verify: Callable[[SignedToken, object], bool]

    def fits(self, algorithm: str) -> bool:
        """Return whether signatures of this algorithm may be by this key."""
        return FAMILY_OF[algorithm] == self.family and self.algorithm in {None, algorithm}

    def verifies(self, token: SignedToken) -> bool:
        """Return whether the token was signed by this key."""
        return self.verify(token, self.public)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where people sign in at an issuer, and where the code is redeemed; what is said of both.

    `sends_post`: the client's secret goes into the form, since the issuer does not take it otherwise.
    `names_itself`: it says in each answer who it is (RFC 9207). `end_session` is where they sign out, empty
    where it does not say.
    """

    authorization: str
    token: str
    sends_post: bool = False
    names_itself: bool = False
    end_session: str = ""


class KeySet:
    """The usable keys of one issuer at one time; and where people sign in, where that was asked for."""

    def __init__(self, keys: tuple[VerifyingKey, ...], endpoints: Endpoints | None = None) -> None:
        self.keys, self.endpoints = keys, endpoints

    def find(self, token: SignedToken) -> VerifyingKey | None:
        """Return the key a token names; where it names none, the only one that fits."""
        fitting = [one for one in self.keys if one.fits(token.algorithm)]
        if token.key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((one for one in fitting if one.key_id == token.key_id), None)
