"""The administration commands at an `https` URL: whom they trust, and what they show."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from gateway.cli.admin.client import CommandFailed, find
from gateway.core.certificates import TlsFiles
from gateway.errors import SettingError
from gateway.tls.certificates import load
from tests.certificates import issued, write

AUTHORITY, CLIENTS = trustme.CA(), trustme.CA()


class Answers(BaseHTTPRequestHandler):
    """An Admin API of one answer."""

    def do_GET(self) -> None:
        body = json.dumps({"items": [], "next_cursor": None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told: object) -> None:
        """Say nothing."""


class Quiet(HTTPServer):
    """Who is not let in is no news here."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


def served(context: ssl.SSLContext) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("tls")
    write(folder / "ca.pem", AUTHORITY.cert_pem.bytes())
    return issued(folder, AUTHORITY, "127.0.0.1", clients=CLIENTS)


@pytest.fixture(scope="module")
def url(files: TlsFiles) -> Iterator[str]:
    yield from served(load(TlsFiles("", files.certificate, files.key), "").context)


@pytest.fixture(scope="module")
def mutual(files: TlsFiles) -> Iterator[str]:
    yield from served(load(files, "").context)


def reads(environ: dict[str, str]) -> bool:
    return find(environ | {"TOLLKEEPER_ADMIN_TOKEN": "a-token"}).get("tenants") == {
        "items": [],
        "next_cursor": None,
    }


def test_an_authority_of_ones_own_is_named(url: str, files: TlsFiles) -> None:
    with pytest.raises(CommandFailed, match=r"is not trusted: .* Set TOLLKEEPER_ADMIN_CA_FILE"):
        reads({"TOLLKEEPER_ADMIN_URL": url})
    authority = str(Path(files.certificate).with_name("ca.pem"))
    assert reads({"TOLLKEEPER_ADMIN_URL": url, "TOLLKEEPER_ADMIN_CA_FILE": authority})
    assert reads(
        {"TOLLKEEPER_ADMIN_URL": url, "TOLLKEEPER_ADMIN_CA_FILE": files.certificate}
    )  # that one alone
    with pytest.raises(SettingError, match="TOLLKEEPER_ADMIN_CA_FILE='/none' cannot be used"):
        reads({"TOLLKEEPER_ADMIN_URL": url, "TOLLKEEPER_ADMIN_CA_FILE": "/none"})


def test_beside_a_data_directory_the_certificate_is_known(url: str, files: TlsFiles, tmp_path: Path) -> None:
    noted = {"admin_url": url, "admin_token": "t", "admin_ca_file": files.certificate}
    (tmp_path / "up.json").write_text(json.dumps(noted))
    assert reads({"TOLLKEEPER_DATA_DIR": str(tmp_path)})
    other = issued(tmp_path / "other", AUTHORITY)
    (tmp_path / "up.json").write_text(json.dumps(noted | {"admin_ca_file": other.certificate}))
    with pytest.raises(CommandFailed, match="is not trusted"):
        reads({"TOLLKEEPER_DATA_DIR": str(tmp_path)})


def test_a_certificate_is_shown_where_one_is_asked_for(mutual: str, files: TlsFiles, tmp_path: Path) -> None:
    ours = issued(tmp_path, CLIENTS, "me@example.com")
    known = {"TOLLKEEPER_ADMIN_URL": mutual, "TOLLKEEPER_ADMIN_CA_FILE": files.certificate}
    with pytest.raises(CommandFailed, match="Nothing usable answers"):
        reads(known)
    shown = {"TOLLKEEPER_ADMIN_CERT_FILE": ours.certificate, "TOLLKEEPER_ADMIN_KEY_FILE": ours.key}
    assert reads(known | shown)


def test_a_token_may_be_in_a_file(url: str, files: TlsFiles, tmp_path: Path) -> None:
    write(tmp_path / "token", b"from-a-file\n")
    environ = {
        "TOLLKEEPER_ADMIN_URL": url,
        "TOLLKEEPER_ADMIN_CA_FILE": files.certificate,
        "TOLLKEEPER_ADMIN_TOKEN_FILE": str(tmp_path / "token"),
    }
    assert find(environ).token == "from-a-file"
