"""Certificates: the files of a TLS connection, and the expiry of a peer's certificate.

The expiry is read from the certificate itself, because Python's `ssl` returns it only for verified ones.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

from gateway.core.issuers import FAILURES
from gateway.errors import TollkeeperError

VERSION, UTC_TIME = 0xA0, 0x17
# The name of the URI in a client's certificate, as information of a transport; empty once it has expired.
WORKLOAD = "workload"


class UnreadableCertificate(TollkeeperError, reason="unreadable_certificate", status=502):
    """This is no X.509 certificate."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files for a TLS connection.

    Empty means the system's authorities, and no client certificate.
    """

    authority: str = ""
    certificate: str = ""
    key: str = ""


class Connection(Protocol):
    """The part of an asyncio transport that is used here."""

    def get_extra_info(self, name: str, /) -> Any:
        """Return information about the connection by its asyncio name."""


def end_of(connection: Connection) -> float | None:
    """Return the Unix time at which the peer's certificate expires; None if it showed none.

    Also None for an unreadable certificate: a working connection must not fail for that.
    """
    session = connection.get_extra_info("ssl_object")
    certificate = session.getpeercert(binary_form=True) if session is not None else None
    try:
        return not_after(certificate) if certificate else None
    except UnreadableCertificate:
        return None


def not_after(certificate: bytes) -> float:
    """Return the last second (Unix time) at which a DER certificate is valid (RFC 5280, 4.1.2.5)."""
    try:
        (_, whole), *_ = _parts(certificate)
        (_, signed), *_ = _parts(whole)
        fields = [(kind, value) for kind, value in _parts(signed) if kind != VERSION]
        # serial number, signature's algorithm, issuer, validity
        _, (kind, moment) = _parts(fields[3][1])
        return _seconds(kind, moment.decode("ascii"))
    except (ValueError, IndexError) as error:
        raise UnreadableCertificate from error


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in a DER sequence."""
    at = 0
    while at < len(der):
        kind, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        if at + length > len(der):
            raise ValueError("an element ends after its end")
        yield kind, der[at : at + length]
        at += length


def _seconds(kind: int, text: str) -> float:
    """Parse a UTCTime (two digits of the year, 1950 to 2049) or GeneralizedTime into Unix time."""
    if kind == UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


# Wrong credentials at one port: counted, logged at a bounded rate, and answered later each time.
#
# A right credential never waits, even if others from the same address were wrong. Addresses are counted by
# site: in IPv6 that is the network of one customer.

REASONS = ("missing", "malformed", "unknown", "revoked", *FAILURES)
FREE_MAX = 5  # failures of a site within the window that are answered at once
WINDOW_S = 60.0
DELAY_S_FIRST = 0.1
DELAY_S_MAX = 1.0
DELAYED_MAX = 256  # answers that wait at once; further ones are not delayed, to save memory
SITES_MAX = 10_000
TOLD_MAX = 10  # sites named in one report
IPV6_SITE_BITS = 64


@dataclass(slots=True)
class FailureReport:
    """Failures of a site since the last report. `site` is empty for all sites beyond the maximum."""

    site: str
    attempts: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Failures:
    """Failed authentications at a port. `clock` is monotonic.

    `counts` are by reason, `delayed` is the number of answers that wait now. The first `free_max` failures of
    a site within a window are answered at once.
    """

    def __init__(self, clock: Callable[[], float], free_max: int = FREE_MAX) -> None:
        self.free_max = free_max
        # Counters exist from the start, so that the metric shows the first failure too.
        self.counts = dict.fromkeys(REASONS, 0)
        self.delayed = 0
        self._clock = clock
        # By site: the failures in its current window, and the begin of the window.
        self._sites: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._untold: dict[str, FailureReport] = {}

    def count(self, address: str, reason: str) -> float:
        """Count a failed authentication, and return the seconds by which to delay its answer."""
        site = site_of(address)
        self.counts[reason] += 1
        self._note(site, reason)
        now = self._clock()
        failed, since = self._sites.pop(site, (0, now))
        if now - since > WINDOW_S:
            failed, since = 0, now
        self._sites[site] = failed + 1, since
        if len(self._sites) > SITES_MAX:
            self._sites.popitem(last=False)
        if failed < self.free_max or self.delayed >= DELAYED_MAX:
            return 0.0
        return min(DELAY_S_MAX, DELAY_S_FIRST * 2.0 ** min(failed - self.free_max, 16))

    def take_reports(self) -> list[FailureReport]:
        """Return the reports of failures since the last call of this method, those of most attempts first."""
        untold, self._untold = self._untold, {}
        return sorted(untold.values(), key=lambda told: (not told.site, -told.attempts))

    def rows(self, port: str) -> list[tuple[str, str, int]]:
        """Return the counts of failed authentications as (port, reason, count), for a metric."""
        return [(port, reason, count) for reason, count in self.counts.items()]

    def _note(self, site: str, reason: str) -> None:
        known = site in self._untold or len(self._untold) < TOLD_MAX
        told = self._untold.setdefault(site if known else "", FailureReport(site if known else ""))
        told.attempts += 1
        told.reasons[reason] = told.reasons.get(reason, 0) + 1


def site_of(address: str) -> str:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> IPV6_SITE_BITS << IPV6_SITE_BITS))
    return str(parsed)


# Peppers: the secret keys that digest credentials. New digests use the current one.
#
# Digests by earlier peppers are accepted as long as the settings name them, so credentials need not be issued
# again. Each pepper has an id for rows and people, which does not reveal it.
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
        return tuple(_digest(one, _ID_OF)[:ID_DIGITS] for one in (self.current, *self.earlier))

    def digest(self, credential: str) -> str:
        """Return the stored form of a new credential: hex HMAC-SHA-256 with the current pepper."""
        return _digest(self.current, credential.encode())

    def digests(self, credential: str) -> tuple[str, ...]:
        """Return the possible stored forms of a credential, that by the current pepper first."""
        return tuple(_digest(one, credential.encode()) for one in (self.current, *self.earlier))


def is_among(sent: str, digests: Iterable[str]) -> bool:
    """Return whether a received digest is one of `digests`, compared in constant time."""
    return any(hmac.compare_digest(sent, one) for one in digests)


def peppers_of(settings: PepperSettings) -> Peppers:
    """Return the peppers of the settings."""
    earlier = settings.earlier_key_peppers.split()
    return Peppers(settings.key_pepper.encode(), tuple(one.encode() for one in earlier))


def _digest(pepper: bytes, credential: bytes) -> str:
    return hmac.digest(pepper, credential, "sha256").hex()
