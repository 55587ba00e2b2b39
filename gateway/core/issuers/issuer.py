"""Who may say who calls: an issuer of signed tokens, and by which of their claims."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from gateway.core.upstreams.proxies import DIRECT, Proxies

# A token may be signed by these alone: a secret that both sides know signs nothing here, and none is none.
FAMILY_OF: Final = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}  # fmt: skip
USUAL_ALGORITHMS: Final = ("RS256", "ES256")
LEEWAY_S: Final = 30.0
SUBJECT: Final = "/sub"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer as the configuration has it. Claims are named by JSON pointers (RFC 6901).

    Its keys are in a file, at `jwks_uri`, or where its discovery document says; `token_file` holds what it is
    asked with. `subject` is the claim that API keys of tokens are found by, `subjects` what its values are
    called there; without any they are called as they are. `user` is the claim whose value is the user, empty
    for none. `require` are claims of which a token must have one of these values. `proxies` are before it.
    """

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...] = USUAL_ALGORITHMS
    jwks_uri: str = ""
    jwks_file: str = ""
    ca_file: str = ""
    token_file: str = ""
    leeway_s: float = LEEWAY_S
    subject: str = SUBJECT
    subjects: tuple[tuple[str, str], ...] = ()
    user: str = ""
    require: tuple[tuple[str, tuple[str, ...]], ...] = ()
    proxies: Proxies = DIRECT


def known_as(issuer: str, subject: str) -> str:
    """What stands in a key's place for the tokens of a subject: no request can send it as a key."""
    return f"\0{issuer}\0{subject}"


def may_be_asked(url: str) -> bool:
    """Whether an address is one that keys may come from: HTTPS, or this machine."""
    try:
        parts = urlsplit(url)
        well = bool(parts.hostname) and parts.port != 0 and parts.username is None and not parts.fragment
    except ValueError:
        return False
    return well and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK))


def may_lead_to(issuer: str, url: str) -> bool:
    """Whether an issuer may say that something of its own is there: this machine is for its own issuers."""
    return may_be_asked(url) and (not _is_here(url) or _is_here(issuer))


def _is_here(url: str) -> bool:
    """Whether an address is this machine's by what it says. Any other name would need its certificate."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified
