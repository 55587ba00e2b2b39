"""Certificates: the files of a TLS connection, and the expiry of a peer's certificate.

The expiry is read from the certificate itself, because Python's `ssl` returns it only for verified ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from gateway.errors import TollkeeperError

VERSION, UTC_TIME = 0xA0, 0x17


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
