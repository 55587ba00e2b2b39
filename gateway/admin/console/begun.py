"""A sign-in that was begun in a browser and goes on at a provider: what its cookie holds, and proves.

The cookie alone has what a sign-in is made of, so that any keeper ends it. It is signed under the pepper,
over in minutes, and made anew for each. Its `state` and `nonce` are shown to others, its
`verifier` to who asked. A sign-out that goes on there has one of its own, of which `farewell` is shown.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256

BEGUN_S = 600
SEED_BYTES = 32
_WRITTEN = re.compile(r"([\w-]{1,4000})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in at a provider that leads to an address of ours; `ends` is in seconds since the epoch."""

    provider: str
    address: str
    ends: int
    seed: str = field(repr=False)

    @staticmethod
    def now(provider: str, address: str, at: float) -> Begun:
        """One that begins at a moment."""
        return Begun(provider, address, int(at) + BEGUN_S, secrets.token_urlsafe(SEED_BYTES))

    @property
    def state(self) -> str:
        """What comes back with the answer to this sign-in alone."""
        return self._made("state")

    @property
    def farewell(self) -> str:
        """What comes back from this sign-out alone: no sign-in takes it for a state."""
        return self._made("farewell")

    @property
    def nonce(self) -> str:
        """What stands in the ID token of this sign-in alone."""
        return self._made("nonce")

    @property
    def verifier(self) -> str:
        """What only who began can redeem the code with (RFC 7636, 4.1)."""
        return self._made("verifier")

    @property
    def challenge(self) -> str:
        """What is shown of the verifier beforehand (RFC 7636, 4.2)."""
        return _encoded(sha256(self.verifier.encode()).digest())

    def written(self, digest: Callable[[str], str]) -> str:
        """What a cookie holds of it."""
        said = json.dumps([self.provider, self.address, self.ends, self.seed], separators=(",", ":"))
        text = _encoded(said.encode())
        return f"{text}.{digest(_marked(text))}"

    def _made(self, use: str) -> str:
        return _encoded(hmac.digest(self.seed.encode(), use.encode(), "sha256"))


def read_begun(written: str, digests: Callable[[str], Iterable[str]], at: float) -> Begun | None:
    """What a cookie holds; None where it is none of ours, or is over at this moment."""
    found = _WRITTEN.fullmatch(written)
    if found is None or not any(hmac.compare_digest(one, found[2]) for one in digests(_marked(found[1]))):
        return None
    text = found[1]
    begun = Begun(*json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4))))
    return begun if at < begun.ends else None


def _marked(text: str) -> str:
    """As no credential reads, so that its digest is nobody's."""
    return f"signing in {text}"


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
