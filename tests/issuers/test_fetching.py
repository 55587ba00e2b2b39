"""Keys over the network: HTTPS, bounded, nobody followed; from files; by discovery."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from gateway.core.issuers import Issuer
from gateway.core.network import Proxies, Proxy
from gateway.issuers.fetching import DOCUMENT_BYTES_MAX, fetch_keys
from gateway.issuers.key_set import UnreadableKeys
from tests.proxy_server import ProxyServer
from tests.signing import issuer, jwks

AUTHORITY = trustme.CA()
KNOWN = "Basic dXM6ZXI="
DISCOVERY = "/.well-known/openid-configuration"


class Site:
    """A web site of an issuer: `pages` by path, as status and body; `asked` is what came, and with what."""

    def __init__(self, port: int) -> None:
        self.url = f"https://localhost:{port}"
        self.pages: dict[str, tuple[int, bytes]] = {"/keys": (200, jwks())}
        self.asked: list[tuple[str, str | None]] = []
        self.slow: dict[str, bytes] = {}
        self.left, self.over = threading.Event(), threading.Event()

    def discovery(self, **more: object) -> None:
        said = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | more
        self.pages[DISCOVERY] = 200, json.dumps(said).encode()


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers["authorization"]))
            if self.path in found.slow:
                self.trickle(found.slow[self.path])
                return
            status, body = found.pages.get(self.path, (404, b"no such page"))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", body.decode())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def trickle(self, begins: bytes) -> None:
            """A byte now and then, for 20 s."""
            try:
                self.wfile.write(begins)
                for _ in range(400):
                    self.wfile.write(b" ")
                    found.over.wait(0.05)
            except OSError:
                found.left.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the library calls it
            """Nothing is said."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    found = Site(server.server_address[1])
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield found
    finally:
        found.over.set()
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture
def trusting(tmp_path: Path) -> Issuer:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(AUTHORITY.cert_pem.bytes())
    return issuer(ca_file=str(ca_file), jwks_uri="")


def why(of: Issuer) -> str:
    with pytest.raises(UnreadableKeys) as caught:
        fetch_keys(of)
    return caught.value.message


def test_keys_are_where_the_configuration_says(site: Site, trusting: Issuer) -> None:
    found = fetch_keys(replace(trusting, jwks_uri=f"{site.url}/keys"))
    assert [one.key_id for one in found.keys] == ["one"]
    assert site.asked == [("/keys", None)]


def test_else_where_the_issuers_discovery_document_says(site: Site, trusting: Issuer) -> None:
    site.discovery()
    assert fetch_keys(replace(trusting, issuer=site.url)).keys
    assert [path for path, _ in site.asked] == [DISCOVERY, "/keys"]


def test_the_discovery_document_of_another_issuer_counts_for_nothing(site: Site, trusting: Issuer) -> None:
    site.discovery(issuer="https://issuer.example")
    assert "another issuer" in why(replace(trusting, issuer=site.url))
    for place in (None, "http://issuer.example/keys", "file:///etc/passwd", 7):
        site.discovery(jwks_uri=place)
        assert "names no jwks_uri" in why(replace(trusting, issuer=site.url))


def test_nobody_is_followed_elsewhere(site: Site, trusting: Issuer) -> None:
    site.pages["/moved"] = 302, f"{site.url}/keys".encode()
    assert "answers 302" in why(replace(trusting, jwks_uri=f"{site.url}/moved"))
    assert [path for path, _ in site.asked] == ["/moved"]


def test_an_issuer_that_is_not_who_it_says_is_not_believed(site: Site, trusting: Issuer) -> None:
    assert "certificate cannot be verified" in why(replace(trusting, jwks_uri=f"{site.url}/keys", ca_file=""))


def test_answers_are_bounded_and_understood(site: Site, trusting: Issuer) -> None:
    place = replace(trusting, jwks_uri=f"{site.url}/keys")
    site.pages["/keys"] = 200, b" " * (DOCUMENT_BYTES_MAX + 1)
    assert "more than 262144 bytes" in why(place)
    site.pages["/keys"] = 200, b"<html>"
    assert "no JSON" in why(place)
    site.pages["/keys"] = 500, b""
    assert "answers 500" in why(place)
    assert why(replace(trusting, jwks_uri="https://127.0.0.1:1/keys"))


def test_what_an_issuer_is_asked_with_goes_to_nobody_else(
    site: Site, trusting: Issuer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("its-own\n")
    asking = replace(trusting, issuer=site.url, token_file=str(tmp_path / "token"))
    site.discovery()
    fetch_keys(asking)
    assert [said for _, said in site.asked] == ["Bearer its-own", "Bearer its-own"]
    site.asked.clear()
    # Another place than the issuer's own, which such a certificate does not name: only the first was asked.
    site.discovery(jwks_uri=site.url.replace("localhost", "127.0.0.1") + "/keys")
    why(asking)
    assert [said for _, said in site.asked] == ["Bearer its-own"]


def test_keys_in_a_file_need_no_network(trusting: Issuer, tmp_path: Path) -> None:
    place = tmp_path / "jwks.json"
    assert "No such file" in why(replace(trusting, jwks_file=str(place)))
    place.write_bytes(jwks())
    assert [one.key_id for one in fetch_keys(replace(trusting, jwks_file=str(place))).keys] == ["one"]


@pytest.mark.parametrize("begins", [b"HTTP/1.1 200 OK\r\nx:", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_who_sends_a_byte_now_and_then_is_left_at_the_deadline(
    site: Site, trusting: Issuer, begins: bytes
) -> None:
    site.slow["/keys"] = begins
    with pytest.raises(UnreadableKeys, match="was not read in time"):
        fetch_keys(replace(trusting, jwks_uri=f"{site.url}/keys"), within_s=2.0)
    assert site.left.wait(30)  # amid the answer, not behind it


@pytest.mark.parametrize("secured", [False, True])
def test_keys_are_asked_for_through_a_proxy(site: Site, trusting: Issuer, secured: bool) -> None:
    """By discovery too, each of whose addresses may be another host; the issuer's certificate is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    with ProxyServer(wants=KNOWN).running(context if secured else None) as proxy:
        there = Proxy("127.0.0.1", proxy.port, secured, KNOWN)
        behind = replace(trusting, issuer=site.url, proxies=Proxies(https=there, ca_file=trusting.ca_file))
        site.discovery()
        assert [one.key_id for one in fetch_keys(behind).keys] == ["one"]
        assert proxy.targets == [site.url.removeprefix("https://")] * 2
        site.pages["/keys"] = 200, jwks() + b" " * 200_000
        assert fetch_keys(behind).keys
        assert "certificate cannot be verified" in why(replace(behind, ca_file=""))
        refused = why(replace(behind, proxies=Proxies(https=replace(there, authorization="Basic eA=="))))
        assert ("407 to CONNECT" in refused) is not secured  # of whom nobody said that it can be trusted
        assert f"the proxy 127.0.0.1:{proxy.port}: " in refused
        before = len(proxy.asked)
        assert fetch_keys(replace(behind, proxies=Proxies(https=there, exempt=("localhost",)))).keys
        assert len(proxy.asked) == before


def test_a_proxy_of_whom_nobody_can_say_who_it_is_is_not_asked(trusting: Issuer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        there = Proxy("127.0.0.1", listening.getsockname()[1], secured=True)
        lacking = Proxies(https=there, ca_file=str(tmp_path / "none.pem"))
        refused = why(replace(trusting, jwks_uri="https://id.test/keys", proxies=lacking))
        assert "No such file" in refused
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("how", ["silent", "endless", "closes"])
def test_a_proxy_keeps_nobody_waiting_for_long(trusting: Issuer, how: str) -> None:
    hostile = ProxyServer()
    hostile.silent, hostile.closes = how == "silent", how == "closes"
    if how == "endless":
        hostile.says, hostile.endless = b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"
    with hostile.running() as proxy:
        place = replace(trusting, jwks_uri="https://id.test/keys")
        place = replace(place, proxies=Proxies(https=Proxy("127.0.0.1", proxy.port)))
        with pytest.raises(UnreadableKeys):
            fetch_keys(place, within_s=1.0)
