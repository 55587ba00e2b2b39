"""The certificate of a port: what of its files is refused, what is known of it, what a new one changes."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from gateway.core.certificates import TlsFiles
from gateway.errors import SettingError
from gateway.tls.certificates import Certificates, load, pinned, trusting
from tests.certificates import issued, write

AUTHORITY = trustme.CA()
PREFIX = "TOLLKEEPER_ADMIN_TLS_"


def why(files: TlsFiles) -> str:
    with pytest.raises(SettingError) as caught:
        load(files, PREFIX)
    return caught.value.message


def test_what_cannot_be_used_is_named_with_its_file(tmp_path: Path) -> None:
    files = issued(tmp_path, AUTHORITY)
    pair = f"{PREFIX}CERT_FILE={files.certificate!r} and {PREFIX}KEY_FILE="
    other = issued(tmp_path / "other", AUTHORITY)
    assert why(TlsFiles("", files.certificate, other.key)).startswith(pair)
    assert "the key is not that of the certificate" in why(TlsFiles("", files.certificate, other.key))
    assert "No such file" in why(TlsFiles("", files.certificate, str(tmp_path / "none")))
    assert "not PEM" in why(TlsFiles("", files.key, files.key))
    write(tmp_path / "empty", b"")
    for authority, said in (
        (str(tmp_path / "empty"), "no PEM file of certificates"),
        ("none", "No such file"),
    ):
        message = why(TlsFiles(authority, files.certificate, files.key))
        assert message.startswith(f"{PREFIX}CLIENT_CA_FILE={authority!r} cannot be used: {said}")


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(tmp_path: Path) -> None:
    files, encrypted = issued(tmp_path, AUTHORITY), str(tmp_path / "encrypted.pem")
    subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:hush", "-in", files.key, "-out", encrypted],
        check=True,
    )
    assert "the key is encrypted" in why(TlsFiles("", files.certificate, encrypted))


def test_the_end_is_that_of_the_first_certificate(tmp_path: Path) -> None:
    ends = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    made = AUTHORITY.issue_cert("localhost", not_after=ends)
    write(tmp_path / "key.pem", made.private_key_pem.bytes())
    chain = [
        b"words before it\n",
        *(each.bytes() for each in made.cert_chain_pems),
        AUTHORITY.cert_pem.bytes(),
    ]
    write(tmp_path / "cert.pem", b"".join(chain))
    files = TlsFiles("", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert Certificates(files, PREFIX).ends == ends.timestamp()


def test_a_new_pair_makes_a_new_context_and_a_broken_one_keeps_the_old(tmp_path: Path) -> None:
    files = issued(tmp_path, AUTHORITY)
    held = Certificates(files, PREFIX)
    assert set(held.paths) == {files.certificate, files.key}
    before = held.context
    write(tmp_path / "key.pem", b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    held.renew()
    assert held.context is before
    assert held.stale.startswith(f"{PREFIX}CERT_FILE=")
    issued(tmp_path, AUTHORITY)
    held.renew()
    assert held.context is not before
    assert held.stale == ""


def test_what_commands_connect_with_names_the_file_that_is_no_use(tmp_path: Path) -> None:
    files = issued(tmp_path, AUTHORITY)
    for make in (trusting, pinned):
        with pytest.raises(
            SettingError, match="TOLLKEEPER_ADMIN_CA_FILE='none' cannot be used: No such file"
        ):
            make(TlsFiles("none"), "TOLLKEEPER_ADMIN_")
        with pytest.raises(SettingError, match=r"TOLLKEEPER_ADMIN_CERT_FILE=.* cannot be used: not PEM"):
            make(TlsFiles("", files.key, files.key), "TOLLKEEPER_ADMIN_")
    assert trusting(TlsFiles(files.certificate), "").check_hostname
    assert not pinned(TlsFiles(files.certificate), "").check_hostname
