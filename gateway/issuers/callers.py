"""Callers with signed tokens: a token is verified once, then recognized by its digest until it expires.

A token stands for an API key of its issuer's subject, which is looked up like any key: a revoked key or a
blocked tenant takes effect as fast as with other keys. Every `AGAIN_S` the key is looked up again, and it is
checked that the issuer still has the key that signed the token. The cache is bounded in bytes, and contains
no refused tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from gateway.core.issuers import (
    SUBJECT_CLAIM,
    UNKNOWN_ISSUER,
    Issuer,
    TokenSubject,
    read_claims,
    read_token,
    refused,
)
from gateway.core.lru import LruCache, LruValue
from gateway.core.model import Caller
from gateway.errors import EndedApiKey, InvalidApiKey
from gateway.issuers.key_set import VerifyingKey
from gateway.issuers.keys import AllKeys, IssuerKeys

KNOWN_BYTES_MAX: Final = 16 * 1024 * 1024
ENTRY_BYTES: Final = 1024
SUBJECT_BYTES: Final = 640
GROUP_BYTES: Final = 128
AGAIN_S: Final = 30.0


class DigestLookup(Protocol):
    """Looks up the caller of an API key's digest."""

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of an API key's digest, if it is known and was read recently; else None."""

    def identify(self, digest: str) -> Awaitable[Caller]:
        """Return the caller of an API key by the key's digest.

        Raise `InvalidApiKey`, or `EndedApiKey` for a key that has ended, or `CountersUnavailable`.
        """


class _VerifiedCaller:
    """A verified token and its caller: `found` by the API key's `digest`, acting for the token's user.

    `again` is the time of the next look-up, in seconds since the epoch.
    """

    __slots__ = ("again", "caller", "digest", "found", "issuer", "key", "meaning", "size")

    def __init__(self, issuer: IssuerKeys, key: VerifyingKey, meaning: TokenSubject) -> None:
        self.issuer, self.key, self.meaning = issuer, key, meaning
        self.size = ENTRY_BYTES + SUBJECT_BYTES * len(meaning.known_as) + GROUP_BYTES * len(meaning.groups)
        self.again = 0.0
        self.digest = ""
        self.found: Caller | None = None
        self.caller: Caller | None = None

    def is_good(self, now: float) -> bool:
        """Return whether the token is valid at `now` without another verification."""
        return self.meaning.ends > now and self.issuer.has(self.key)

    def stands_for(self, found: Caller) -> Caller:
        """Return the caller for this token from the caller of its API key.

        The user is that of the key, or of the token if the key has none. The token's groups are claims.
        """
        meaning, self.found = self.meaning, found
        if meaning.user and not found.user:
            found = replace(found, user=meaning.user)
        self.caller = caller = replace(found, claims=meaning.groups) if meaning.groups else found
        return caller


class TokenCallers:
    """The callers of tokens. `wall` returns seconds since the epoch, `digests_of` the digests of a key."""

    def __init__(
        self,
        keys: AllKeys,
        directory: DigestLookup,
        digests_of: Callable[[str], Sequence[str]],
        wall: Callable[[], float],
        *,
        bytes_max: int = KNOWN_BYTES_MAX,
        again_s: float = AGAIN_S,
    ) -> None:
        self.accepts = False
        self.issuers: tuple[str, ...] = ()
        self._keys, self._directory, self._digests_of, self._wall = keys, directory, digests_of, wall
        self._again_s = again_s
        # By digest.
        self.known: LruCache[str, LruValue[_VerifiedCaller]] = LruCache(bytes_max)

    def renew(self, issuers: Iterable[Issuer]) -> None:
        """Replace the accepted issuers. Every token is then verified again."""
        named = tuple(issuers)
        self.accepts, self.issuers = bool(named), tuple(issuer.issuer for issuer in named)
        self._keys.renew(named)
        for digest in [*self.known.known]:
            self.known.drop(digest)

    async def keep_fresh(self) -> None:
        """Refresh the keys of issuers until cancelled."""
        await self._keys.keep_fresh()

    def snapshot(self) -> dict[str, object]:
        """Return the metric of token issuers whose keys could not be read; {} if none is configured."""
        unread = self._keys.unread()
        return {"issuers_unread": unread} if unread else {}

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a token's digest, if the token was verified recently; else None."""
        kept = self.known.find(digest)
        if kept is None or kept.value.again <= self._wall():
            return None
        known = kept.value
        found = self._directory.cached(known.digest)
        if found is known.found or found is None:
            return known.caller if found is not None else None
        return known.stands_for(found)

    async def identify(self, digest: str, token: bytes) -> Caller:
        """Return the caller of a token, by its `digest`; verify the token if that was not done recently.

        Raise InvalidApiKey if the token is invalid, or the error that prevents the verification.
        """
        now = self._wall()
        kept = self.known.find(digest)
        known = kept.value if kept is not None and kept.value.is_good(now) else await self._verified(token)
        found, known.digest = await self._first(known.meaning.known_as)
        known.again = min(known.meaning.ends, now + self._again_s)
        if self._keys.of(known.issuer.issuer.issuer) is known.issuer:  # issuers may have changed
            self.known.put(digest, LruValue(known), known.size)
        return known.stands_for(found)

    async def _first(self, subjects: Iterable[str]) -> tuple[Caller, str]:
        """Return the caller, and the key's digest, of the first of a token's subjects that has an API key.

        Raise InvalidApiKey if none has. If the first such key has ended, the token is refused as well: the
        key of the next subject must not be charged for it.
        """
        for subject in subjects:
            has_ended = False
            for digest in self._digests_of(subject):
                try:
                    return self._directory.cached(digest) or await self._directory.identify(digest), digest
                except EndedApiKey:
                    has_ended = True
                except InvalidApiKey:
                    pass
            if has_ended:
                raise refused(SUBJECT_CLAIM, "The API key that stands for this token's subject has ended.")
        raise refused(SUBJECT_CLAIM, "No API key stands for this token's subject.")

    async def _verified(self, token: bytes) -> _VerifiedCaller:
        """Verify the signature of a token, and return its issuer, key and subject."""
        signed = read_token(token)
        keys = self._keys.of(signed.issuer)
        if keys is None:
            raise refused(UNKNOWN_ISSUER, "The token's issuer is not one that is accepted.")
        # Only the signature makes the claims true. Invalid claims are refused before keys are fetched.
        meaning = read_claims(keys.issuer, signed.claims, self._wall())
        return _VerifiedCaller(keys, await keys.verify(signed), meaning)
