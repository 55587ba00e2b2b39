"""The names of data: which history it is of, and how often it was exchanged before."""

from __future__ import annotations

from hashlib import sha1
from secrets import token_hex


def history(run_id: bytes, name: bytes) -> bytes:
    """What markers are compared with: the process, and from its second history on which one it is."""
    if generation(name) == 0:
        return run_id
    return sha1(run_id + name, usedforsecurity=False).hexdigest().encode()


def generation(name: bytes) -> int:
    """How often the data was exchanged; 0 where it has no name yet."""
    number, _, nonce = name.partition(b":")
    return int(number) if nonce and number.isdigit() else 0


def fresh(number: int) -> bytes:
    """A name of this generation that no other data has."""
    return b"%d:%b" % (number, token_hex(16).encode())
