"""What a provider of identities says of whom it signed out (OpenID Connect Back-Channel Logout 1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.issuers.claims import moment, require_audience
from gateway.core.issuers.sign_in import Provider, name_in
from gateway.core.issuers.signed_token import CLAIMS, EXPIRED, refused

EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
# Such a word is sent at once: an older one was kept by somebody.
SAID_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class SignedOut:
    """Whom a provider has signed out: one of its sessions, or where that is empty all of an identity.

    `token_id` tells one word of this issuer from another: each counts once.
    """

    issuer: str
    token_id: str
    identity: str
    session: str


def read_signed_out(provider: Provider, claims: Mapping[str, Any], now: float) -> SignedOut:
    """Whom a verified logout token names; `InvalidApiKey` where it is none, is old, or names nobody (2.6)."""
    require_audience(provider.issuer, claims)
    _require_fresh(provider.issuer.leeway_s, claims, now)
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict) or "nonce" in claims:
        raise refused(CLAIMS, "The token does not say that somebody is signed out.")
    token_id, identity, session = (name_in(claims, claim) for claim in ("jti", "sub", "sid"))
    if not token_id:
        raise refused(CLAIMS, "The token has no id.")
    unread = [claim for claim, name in (("sub", identity), ("sid", session)) if claim in claims and not name]
    if unread or not (identity or session):
        raise refused(CLAIMS, "The token does not say who is signed out.")
    return SignedOut(provider.issuer.issuer, token_id, identity, session)


def _require_fresh(leeway_s: float, claims: Mapping[str, Any], now: float) -> None:
    """Refuse a token of another time; as first published, the specification asks for no end."""
    issued, ends = moment(claims, "iat"), moment(claims, "exp")
    if issued is None:
        raise refused(CLAIMS, "The token does not say since when it is.")
    is_over = ends is not None and ends + leeway_s <= now
    if is_over or not -leeway_s <= now - issued <= SAID_S_MAX + leeway_s:
        raise refused(EXPIRED, "The token is of another time.")
