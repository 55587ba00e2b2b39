"""Peppers: the secret keys that digest credentials. New digests use the current one.

Digests by earlier peppers are accepted as long as the settings name them, so credentials need not be issued
again. Each pepper has an id for rows and people, which does not reveal it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

# The name of the URI in a client's certificate, as information of a transport; empty once it has expired.
WORKLOAD = "workload"


class PepperSettings(Protocol):
    @property
    def key_pepper(self) -> str:
        """The current pepper: a secret that is mixed into the digests of API keys."""

    @property
    def earlier_key_peppers(self) -> str:
        """Earlier peppers, separated by spaces: keys that were digested with them stay valid."""


EARLIER_MAX = 3
ID_DIGITS = 12
_ID_OF = b"the id of this pepper"


@dataclass(frozen=True, slots=True)
class Peppers:
    """The current pepper and the earlier ones, latest first."""

    current: bytes
    earlier: tuple[bytes, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Public ids of the peppers, the current one first."""
        return tuple(_digest(pepper, _ID_OF)[:ID_DIGITS] for pepper in (self.current, *self.earlier))

    def digest(self, credential: str) -> str:
        """Return the stored form of a new credential: hex HMAC-SHA-256 with the current pepper."""
        return _digest(self.current, credential.encode())

    def digests(self, credential: str) -> tuple[str, ...]:
        """Return the possible stored forms of a credential, that by the current pepper first."""
        return tuple(_digest(pepper, credential.encode()) for pepper in (self.current, *self.earlier))


def is_among(sent: str, digests: Iterable[str]) -> bool:
    """Return whether a received digest is one of `digests`, compared in constant time."""
    return any(hmac.compare_digest(sent, digest) for digest in digests)


def peppers_of(settings: PepperSettings) -> Peppers:
    """Return the peppers of the settings."""
    earlier = settings.earlier_key_peppers.split()
    return Peppers(settings.key_pepper.encode(), tuple(pepper.encode() for pepper in earlier))


def _digest(pepper: bytes, credential: bytes) -> str:
    return hmac.digest(pepper, credential, "sha256").hex()
