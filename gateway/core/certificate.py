"""Certificates: the files a TLS connection is made with, and until when one that was met is valid.

The latter is read from the certificate itself: Python's own `ssl` tells it only of those it has verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from gateway.errors import TollkeeperError

VERSION, UTC_TIME = 0xA0, 0x17
# What a transport is asked for: the one URI of its client's certificate, empty once that is over.
WORKLOAD = "workload"


class UnreadableCertificate(TollkeeperError):
    """This is no X.509 certificate."""

    reason = "unreadable_certificate"
    status = 502


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS connection, by path. Empty: the system's authorities, and no certificate of ours."""

    authority: str = ""
    certificate: str = ""
    key: str = ""


class Connection(Protocol):
    """What a transport is asked here."""

    def get_extra_info(self, name: str, /) -> Any:
        """Whatever is known of the connection by this name."""


def end_of(connection: Connection) -> float | None:
    """Until when, Unix time, the certificate of the other side is valid; None where it showed none.

    None too where that cannot be read: a connection that is good otherwise does not fail for it.
    """
    session = connection.get_extra_info("ssl_object")
    certificate = session.getpeercert(binary_form=True) if session is not None else None
    try:
        return not_after(certificate) if certificate else None
    except UnreadableCertificate:
        return None


def not_after(certificate: bytes) -> float:
    """The last second, Unix time, at which a DER certificate is valid (RFC 5280, 4.1.2.5)."""
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
    """The elements side by side in some DER: tag and content of each."""
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
    """Unix time of a UTCTime (two digits of the year, 1950 to 2049) or GeneralizedTime."""
    if kind == UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
