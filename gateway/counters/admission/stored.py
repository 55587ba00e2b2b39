"""What the keeper writes into Redis for workers to read: the catalogue, identities and terms, as JSON."""

from __future__ import annotations

import msgspec

from gateway.core.accounts.definitions import OrganizationTerms
from gateway.core.model import USER_ACCEPTED, Caller, Service


class Identity(msgspec.Struct):
    """Who a credential stands for: organization, tenant, key, partition and user, the models it may call
    (None: all), until when, in ms since the epoch (0: without end), and what its requests may say of
    their user (`user_header`).
    """

    o: int
    t: int
    k: int
    p: int
    u: str = ""
    m: list[str] | None = None
    x: int = 0
    h: str = USER_ACCEPTED


class Catalogue(msgspec.Struct):
    """All services by key."""

    version: int
    services: dict[str, Service]


class _Versioned(msgspec.Struct):
    version: int


class _Terms(_Versioned):
    terms: OrganizationTerms


# What each of the three was written as.
decode_identity = msgspec.json.Decoder(Identity).decode
decode_catalogue = msgspec.json.Decoder(Catalogue).decode
_decode_terms, _decode_version = msgspec.json.Decoder(_Terms).decode, msgspec.json.Decoder(_Versioned).decode


def encode_catalogue(version: int, services: list[Service]) -> bytes:
    """The catalogue as the keeper writes it."""
    return msgspec.json.encode({"version": version, "services": {one.key: one for one in services}})


def encode_identity(caller: Caller, expires_ms: int = 0) -> bytes:
    """An identity as the keeper writes it; `expires_ms` 0 is never."""
    more: dict[str, object] = {"x": expires_ms} if expires_ms else {}
    if caller.user_header != USER_ACCEPTED:
        more["h"] = caller.user_header
    return msgspec.json.encode(
        {
            **more,
            "o": caller.organization_id,
            "t": caller.tenant_id,
            "k": caller.key_id,
            "p": caller.partition,
            "u": caller.user,
            "m": sorted(caller.models) if caller.models is not None else None,
        }
    )


def encode_terms(version: int, terms: OrganizationTerms) -> bytes:
    """The terms as the keeper writes them."""
    return msgspec.json.encode(_Terms(version, terms))


def decode_terms(raw: bytes) -> OrganizationTerms:
    """An organization's terms as they were written."""
    return _decode_terms(raw).terms


def version_of(raw: bytes) -> int:
    """The version that terms, or a catalogue, were written under."""
    return _decode_version(raw).version
