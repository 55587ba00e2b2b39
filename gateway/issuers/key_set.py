"""The keys of an issuer as far as they may verify a token, whichever library does it.

A key is for one family of algorithms and says so by what it is: what a token says of itself never makes a
key of another kind of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.issuers.issuer import FAMILY_OF
from gateway.core.issuers.signed_token import SignedToken
from gateway.errors import TollkeeperError

FETCH_S_MAX: Final = 8.0


class UnreadableKeys(TollkeeperError):
    """These are no keys that a token could be verified by."""

    reason = "unreadable_keys"
    status = 502


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key: its id if it has one, its family, and for which algorithm it is alone, if for one."""

    key_id: str | None
    family: str
    algorithm: str | None
    public: object
    verify: Callable[[SignedToken, object], bool]

    def fits(self, algorithm: str) -> bool:
        """Whether signatures of this algorithm may be by this key."""
        return FAMILY_OF[algorithm] == self.family and self.algorithm in {None, algorithm}

    def verifies(self, token: SignedToken) -> bool:
        """Whether the token was signed by this key."""
        return self.verify(token, self.public)


class KeySet:
    """The usable keys of one issuer at one time."""

    def __init__(self, keys: tuple[VerifyingKey, ...]) -> None:
        self.keys = keys

    def find(self, token: SignedToken) -> VerifyingKey | None:
        """The key a token names; where it names none, the only one that fits."""
        fitting = [one for one in self.keys if one.fits(token.algorithm)]
        if token.key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((one for one in fitting if one.key_id == token.key_id), None)
