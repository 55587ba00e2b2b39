"""Reading until when a certificate is valid."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
import trustme

from gateway.core.certificates import UnreadableCertificate, end_of, not_after


def der(until: datetime) -> bytes:
    certificate = trustme.CA().issue_cert("gateway.example", not_after=until)
    return ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())


@pytest.mark.parametrize(
    "until",
    [
        datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),  # the last one written with two digits
        datetime(2050, 1, 1, tzinfo=UTC),
    ],
)
def test_the_end_is_read_in_both_spellings(until: datetime) -> None:
    assert not_after(der(until)) == until.timestamp()


@pytest.mark.parametrize("wrong", [b"", b"\x30", b"\x30\x05abc", b"not a certificate at all", b"\x30\x00"])
def test_what_is_no_certificate_is_told_so(wrong: bytes) -> None:
    with pytest.raises(UnreadableCertificate):
        not_after(wrong)


def test_a_cut_certificate_is_told_so() -> None:
    whole = der(datetime(2030, 1, 1, tzinfo=UTC))
    for end in range(0, len(whole), 7):
        with pytest.raises(UnreadableCertificate):
            not_after(whole[:end])


class Session:
    """A TLS session whose peer showed these bytes."""

    def __init__(self, shown: bytes | None) -> None:
        self.shown = shown

    def get_extra_info(self, _name: str) -> Session:
        return self

    def getpeercert(self, *, binary_form: bool) -> bytes | None:
        assert binary_form
        return self.shown


def test_a_certificate_that_cannot_be_read_fails_no_connection() -> None:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    shown = (der(until), b"something", None)
    assert [end_of(Session(one)) for one in shown] == [until.timestamp(), None, None]
