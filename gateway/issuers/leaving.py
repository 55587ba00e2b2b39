"""Addresses of a provider of identities that browsers are sent to: to sign in there, and to sign out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from gateway.core.issuers.sign_in import Provider
from gateway.issuers.key_set import Endpoints

# A longer token is not shown when somebody signs out: servers take addresses of some 8 KiB.
HINT_BYTES_MAX: Final = 4096


def to_sign_in(
    provider: Provider, endpoints: Endpoints, back: str, *, state: str, nonce: str, challenge: str
) -> str:
    """Where somebody signs in (OpenID Connect Core 1.0, 3.1.2.1), and comes `back` from; PKCE is by S256."""
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
    return _with(endpoints.authorization, query)


def to_sign_out(provider: Provider, endpoints: Endpoints, back: str, *, state: str, id_token: str) -> str:
    """Where somebody signs out (OpenID Connect RP-Initiated Logout 1.0, 2); empty where nowhere.

    The `id_token` says whose session it is. Without one most providers ask.
    """
    if not endpoints.end_session or not provider.end_session:
        return ""
    query = {"client_id": provider.client_id, "post_logout_redirect_uri": back, "state": state}
    return _with(endpoints.end_session, {"id_token_hint": id_token} | query if id_token else query)


def _with(address: str, query: Mapping[str, str]) -> str:
    return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}"
