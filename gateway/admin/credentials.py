"""New credentials: shown once, stored only as a digest."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARS = 32  # of 62 letters: 190 bits
SHOWN_CHARS = 5

API_KEY = "tk_"
ADMIN_TOKEN = "tka_"  # noqa: S105  # a prefix, not a secret


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A new secret, and its beginning, which may be shown to recognize it."""

    secret: str = field(repr=False)
    prefix: str


def spelled(number: int) -> str:
    """Return the last `RANDOM_CHARS` base-62 digits of a number, as the random part of a credential."""
    letters = []
    for _ in range(RANDOM_CHARS):
        number, letter = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)


def mint_credential(kind: str) -> NewCredential:
    """Return a new secret of a kind (its prefix) with 190 random bits."""
    random = spelled(secrets.randbelow(len(ALPHABET) ** RANDOM_CHARS))
    return NewCredential(kind + random, kind + random[:SHOWN_CHARS])
