"""Peppers: the keys under which credentials are digested. New digests are of the current one.

Digests of earlier ones are taken as long as those are named: no credential is issued again for another
pepper. Each has an id by which rows and people tell it from others, and from which nothing follows.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Protocol


class Settings(Protocol):
    """What is set of them."""

    @property
    def key_pepper(self) -> str:
        """The current one."""

    @property
    def earlier_key_peppers(self) -> str:
        """Those before it."""


EARLIER_MAX = 3
ID_DIGITS = 12
_ID_OF = b"the id of this pepper"


@dataclass(frozen=True, slots=True)
class Peppers:
    """The current pepper and the earlier ones, the latest first."""

    current: bytes
    earlier: tuple[bytes, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """What each is called, the current one first."""
        return tuple(_digest(one, _ID_OF)[:ID_DIGITS] for one in (self.current, *self.earlier))

    def digest(self, credential: str) -> str:
        """What a new credential is kept as: hex HMAC-SHA-256."""
        return _digest(self.current, credential.encode())

    def digests(self, credential: str) -> tuple[str, ...]:
        """What a credential may be kept as, by the current pepper first."""
        return tuple(_digest(one, credential.encode()) for one in (self.current, *self.earlier))


def peppers_of(settings: Settings) -> Peppers:
    """As settings have them: the earlier ones with a space between two."""
    earlier = settings.earlier_key_peppers.split()
    return Peppers(settings.key_pepper.encode(), tuple(one.encode() for one in earlier))


def _digest(pepper: bytes, credential: bytes) -> str:
    return hmac.digest(pepper, credential, "sha256").hex()
