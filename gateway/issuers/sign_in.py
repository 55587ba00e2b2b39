"""Sign-in of people at an identity provider: the URL they are sent to, and the person who returns.

An authorization code with PKCE is redeemed once, for an ID token that this provider signed for this client
and this sign-in (OpenID Connect Core 1.0, 3.1). Only published data of a provider is cached.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from gateway.core.failures import site_of
from gateway.core.issuers import (
    UNKNOWN_ISSUER,
    Arrival,
    IdentityProvider,
    Issuer,
    Person,
    SignIn,
    read_person,
    read_token,
    refused,
)
from gateway.errors import InvalidApiKey, IssuerUnavailable, NotFound, SignInRefused, TollkeeperError
from gateway.extras import loading
from gateway.issuers.key_set import Endpoints, KeySet, UnreadableKeys
from gateway.issuers.keys import IssuerKeys, Log, Read, in_thread

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


# URLs of an identity provider for browsers: to sign in there, and to sign out.

# A longer token is not sent at sign-out: servers accept URLs of about 8 KiB.
HINT_BYTES_MAX: Final = 4096


def to_sign_in(
    provider: IdentityProvider, endpoints: Endpoints, back: str, *, state: str, nonce: str, challenge: str
) -> str:
    """Return the URL for signing in (OpenID Connect Core 1.0, 3.1.2.1), which leads `back`; PKCE by S256."""
    query = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": back,
        "scope": " ".join(provider.scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return _add_query(endpoints.authorization, query)


def to_sign_out(
    provider: IdentityProvider, endpoints: Endpoints, back: str, *, state: str, id_token: str
) -> str:
    """Return the URL for signing out (OpenID Connect RP-Initiated Logout 1.0, 2); empty without one.

    The `id_token` identifies the session. Without it most providers ask the person.
    """
    if not endpoints.end_session or not provider.end_session:
        return ""
    query = {"client_id": provider.client_id, "post_logout_redirect_uri": back, "state": state}
    return _add_query(endpoints.end_session, {"id_token_hint": id_token} | query if id_token else query)


def _add_query(address: str, query: Mapping[str, str]) -> str:
    return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}"


# A provider's tokens for a session, stored so that only the session's cookie opens them.
#
# Only the browser has the cookie: stored tokens are of no use to anybody who reads them.

NONCE_BYTES: Final = 12
RENEWAL: Final = b"renewal"
ID_TOKEN: Final = b"id token"


def seal(text: str, cookie: str, use: bytes = RENEWAL) -> str:
    """Encrypt a text with a key made of a session's cookie and `use` (AES-256-GCM, NIST SP 800-38D)."""
    nonce = os.urandom(NONCE_BYTES)
    return urlsafe_b64encode(nonce + _cipher(cookie, use).encrypt(nonce, text.encode(), use)).decode()


def opened(sealed: str, cookie: str, use: bytes = RENEWAL) -> str:
    """Decrypt a text that `seal` encrypted. Raise `ValueError` for another cookie or `use`."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # for keepers that have providers alone

    data = urlsafe_b64decode(sealed)
    try:
        return _cipher(cookie, use).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], use).decode()
    except InvalidTag as error:
        raise ValueError("sealed for another cookie") from error


def _cipher(cookie: str, use: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # as above

    return AESGCM(hmac.digest(cookie.encode(), use, "sha256"))


# Most requests at once to one provider, by grant: a flood of codes blocks no renewal, and no other provider.
ASKED_AT_ONCE_MAX: Final = 16
# Most of these for one site of clients: made-up codes from there leave room for others.
ASKED_BY_SITE_MAX: Final = 4
# Shorter than the time between two renewals of a session: a refresh token may be valid only once.
ANSWERED_S_MAX: Final = 20.0
AGAIN_S: Final = 5
# The person is already signed out here, so a provider that does not answer is skipped.
SIGN_OUT_S_MAX: Final = 5.0
_RENEWAL: Final = re.compile(r"[\x20-\x7e]{1,8192}")  # RFC 6749, A.17
# Errors of a provider that do not concern the person (RFC 6749, 5.2 and 4.1.2.1).
_NOT_ABOUT_PEOPLE: Final = frozenset({"invalid_client", "server_error", "temporarily_unavailable"})
Ask = Callable[[IdentityProvider, Endpoints, Mapping[str, str]], Mapping[str, Any]]
_AWAY: Final = "The provider of identities does not answer; try again in a moment."


def read_provider(issuer: Issuer) -> KeySet:
    """Return the keys and endpoints of a provider. Raise `UnreadableKeys` with the reason if that fails."""
    with loading("oidc"):  # some 20 MB, only for keepers with providers
        from gateway.issuers import fetching  # noqa: PLC0415  # as above

    return fetching.read_provider(issuer)


def ask_for_tokens(
    provider: IdentityProvider, endpoints: Endpoints, form: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return a provider's answer to a token request. Raise `UnreadableKeys` without an answer."""
    from gateway.issuers import fetching as redeeming  # noqa: PLC0415  # as above

    return redeeming.redeem(provider, endpoints, form)


class SignIns:
    """The configured identity providers. `clock` is monotonic, `wall` returns seconds since the epoch."""

    def __init__(
        self,
        sign_in: SignIn,
        clock: Callable[[], float],
        wall: Callable[[], float],
        log: Log,
        read: Read = read_provider,
        *,
        ask: Ask = ask_for_tokens,
        answered_s_max: float = ANSWERED_S_MAX,
    ) -> None:
        self.console_url = sign_in.console_url
        self.labels: dict[str, str] = {}
        self._providers: dict[str, IdentityProvider] = {}
        self._keys: dict[str, IssuerKeys] = {}
        self._clock, self._wall, self._log, self._read = clock, wall, log, read
        self._ask, self._answered_s_max = ask, answered_s_max
        # Numbers of running requests, by provider and grant.
        self._asking: Counter[tuple[str, str]] = Counter()
        # Numbers of codes being redeemed, by provider and by site of the client.
        self._redeeming: Counter[tuple[str, str]] = Counter()
        self.renew_providers(sign_in)

    def renew_providers(self, sign_in: SignIn) -> None:
        """Replace the providers. Keys of unchanged ones are kept."""
        before, providers = self._providers, {provider.name: provider for provider in sign_in.providers}
        self._keys = {
            name: self._keys[name]
            if name in before and before[name].issuer == provider.issuer
            else IssuerKeys(provider.issuer, self._clock, self._log, self._read)
            for name, provider in providers.items()
        }
        self._providers = providers
        self.labels.clear()  # pages hold this dict
        self.labels.update((provider.name, provider.label) for provider in sign_in.providers)

    async def address(self, name: str, *, state: str, nonce: str, challenge: str) -> str:
        """Return the URL for signing in at a provider; `challenge` is that of PKCE, by S256 (RFC 7636)."""
        provider, endpoints = self._provider_of(name), await self._find_endpoints(name)
        back = self._comes_back(name)
        return to_sign_in(provider, endpoints, back, state=state, nonce=nonce, challenge=challenge)

    def name_of(self, issuer: str) -> str:
        """Return the configured name of the provider with this issuer; empty if there is none."""
        return next(
            (provider.name for provider in self._providers.values() if provider.issuer.issuer == issuer), ""
        )

    async def sign_out_address(self, name: str, sealed: str, cookie: str, *, state: str) -> str:
        """Return the URL for signing out at the provider `name` too; empty if it has none, or is away.

        `sealed` is the ID token of the person's session, encrypted with the cookie, or empty.
        """
        try:
            id_token = opened(sealed, cookie, ID_TOKEN) if sealed else ""
            async with asyncio.timeout(SIGN_OUT_S_MAX):
                endpoints = await self._find_endpoints(name)
            back = f"{self.console_url}/sign-out/{name}/back"
            return to_sign_out(self._provider_of(name), endpoints, back, state=state, id_token=id_token)
        except (TollkeeperError, TimeoutError, ValueError):
            return ""

    async def redeem(
        self, name: str, *, code: str, issuer: str | None, verifier: str, nonce: str, address: str
    ) -> Arrival:
        """Redeem a sign-in code at the provider `name`; return who signed in. Raise `SignInRefused`.

        `issuer` is the one in the provider's redirect, or None. `verifier` is that of PKCE, and `address` the
        IP address from which the code came.
        """
        provider = self._provider_of(name)
        async with self._limit_time():
            return await self._redeem_code(
                provider, code, issuer, verifier, nonce=nonce, place=(name, site_of(address))
            )

    async def _redeem_code(
        self,
        provider: IdentityProvider,
        code: str,
        issuer: str | None,
        verifier: str,
        *,
        nonce: str,
        place: tuple[str, str],
    ) -> Arrival:
        """Redeem a code for tokens; return who has arrived, with what renews and ends the session."""
        endpoints = await self._find_endpoints(provider.name)
        if issuer != provider.issuer.issuer and (issuer is not None or endpoints.names_itself):
            raise SignInRefused("The answer is of another provider than was asked.")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._comes_back(provider.name),
            "code_verifier": verifier,
        }
        tokens = await self._tokens(provider, endpoints, form, place)
        person, id_token = await self._person(provider, tokens, nonce), str(tokens["id_token"])
        is_told = provider.end_session and endpoints.end_session and len(id_token) <= HINT_BYTES_MAX
        return Arrival(person, _renewal(tokens), id_token if is_told else "")

    async def renew(self, issuer: str, sealed: str, cookie: str) -> Arrival:
        """Check at the provider whether a person still has access. Raise `SignInRefused` if not.

        `sealed` is the session's refresh token, encrypted with its cookie.
        """
        provider = self._providers.get(self.name_of(issuer))
        if provider is None:
            raise SignInRefused("The provider is none of ours any more.")
        try:
            renewal = opened(sealed, cookie)
        except ValueError as error:
            raise SignInRefused("The session is another's.") from error
        form = {"grant_type": "refresh_token", "refresh_token": renewal}
        async with self._limit_time():
            tokens = await self._tokens(provider, await self._find_endpoints(provider.name), form)
            # A provider need not say again who it is (OpenID Connect Core 1.0, 12.2).
            person = await self._person(provider, tokens, None) if "id_token" in tokens else None
        return Arrival(person, _renewal(tokens) or renewal)

    def seal(self, renewal: str, cookie: str) -> str:
        """Return the refresh token `renewal`, encrypted with the session's cookie, for storage."""
        return seal(renewal, cookie)

    def seal_id_token(self, id_token: str, cookie: str) -> str:
        """Return an ID token encrypted with the session's cookie, for storage."""
        return seal(id_token, cookie, ID_TOKEN)

    async def _person(self, provider: IdentityProvider, said: Mapping[str, Any], nonce: str | None) -> Person:
        """Verify the ID token in a provider's answer, and return the person that it names.

        Raise `SignInRefused` if it is not valid. `nonce` is that of the sign-in, None for a renewal.
        """
        written = said.get("id_token")
        try:
            token = read_token(written.encode(errors="replace") if isinstance(written, str) else b"")
            if token.issuer != provider.issuer.issuer:
                raise refused(UNKNOWN_ISSUER, "The token is of another provider.")
            await self._keys_of(provider.name).verify(token)
            return read_person(provider, token.claims, nonce, self._wall())
        except InvalidApiKey as error:
            self._say(provider, error.message)
            wrong = SignInRefused(f"What the provider says of you cannot be believed. {error.message}")
            wrong.failure = error.failure
            raise wrong from error
        except IssuerUnavailable as error:
            raise IssuerUnavailable(_AWAY, retry_after_s=AGAIN_S) from error

    async def _tokens(
        self,
        provider: IdentityProvider,
        endpoints: Endpoints,
        form: Mapping[str, str],
        site: tuple[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Return a provider's tokens; `site` is the person's site, with a maximum of running exchanges."""
        from gateway.issuers.fetching import TokensRefused  # noqa: PLC0415  # as above

        place = provider.name, form["grant_type"]
        is_crowded = site is not None and self._redeeming[site] >= ASKED_BY_SITE_MAX
        if is_crowded or self._asking[place] >= ASKED_AT_ONCE_MAX:
            raise IssuerUnavailable("Too many people sign in just now.", retry_after_s=AGAIN_S)
        asked = in_thread(
            lambda: self._ask(provider, endpoints, form), ended=lambda: self._release_request(place, site)
        )
        self._asking[place] += 1
        if site is not None:
            self._redeeming[site] += 1
        try:
            return await asked
        except TokensRefused as error:
            self._say(provider, error.message)
            if error.message in _NOT_ABOUT_PEOPLE and "code" not in form:
                raise IssuerUnavailable(_AWAY, retry_after_s=AGAIN_S) from error
            raise SignInRefused(f"The provider refuses this sign-in: {error.message}.") from error
        except UnreadableKeys as error:
            self._say(provider, error.message)
            raise IssuerUnavailable(_AWAY, retry_after_s=AGAIN_S) from error

    def _release_request(self, place: tuple[str, str], site: tuple[str, str] | None) -> None:
        """Lower the numbers of running requests after one has finished.

        `place` is the provider with the kind of request, `site` the provider with the person's network, if
        counted.
        """
        self._asking[place] -= 1
        if site is not None:
            self._redeeming[site] -= 1
            if self._redeeming[site] == 0:
                del self._redeeming[site]

    @asynccontextmanager
    async def _limit_time(self) -> AsyncIterator[None]:
        """Raise `IssuerUnavailable` if the requests to a provider inside the block take too long."""
        try:
            async with asyncio.timeout(self._answered_s_max):
                yield
        except TimeoutError as error:
            raise IssuerUnavailable(_AWAY, retry_after_s=AGAIN_S) from error

    async def _find_endpoints(self, name: str) -> Endpoints:
        """Return the endpoints of a provider; raise `IssuerUnavailable` if it does not answer."""
        try:
            endpoints = (await self._keys_of(name).at_hand()).endpoints
        except NotFound:
            raise
        except TollkeeperError as error:
            raise IssuerUnavailable(_AWAY, retry_after_s=AGAIN_S) from error
        assert endpoints is not None
        return endpoints

    def _keys_of(self, name: str) -> IssuerKeys:
        keys = self._keys.get(name)
        if keys is None:  # the provider was removed meanwhile
            raise NotFound
        return keys

    def _provider_of(self, name: str) -> IdentityProvider:
        provider = self._providers.get(name)
        if provider is None:
            raise NotFound
        return provider

    def _comes_back(self, name: str) -> str:
        """Return the URL that a provider sends people back to: each has its own (RFC 9700, 4.4)."""
        return f"{self.console_url}/sign-in/{name}/back"

    def _say(self, provider: IdentityProvider, why: str) -> None:
        self._log("sign_in_failed", provider=provider.name, why=why, level="warning")


def _renewal(document: Mapping[str, Any]) -> str:
    """Return the refresh token of a provider's answer; empty if there is none."""
    renewal = document.get("refresh_token")
    return renewal if isinstance(renewal, str) and _RENEWAL.fullmatch(renewal) else ""
