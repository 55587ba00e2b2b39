"""Keys at hand: read ahead, again for an unknown one, kept while their issuer is away."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from gateway.core.issuers import FAMILY_OF, Issuer, SignedToken, read_token
from gateway.core.network import Proxies, Proxy
from gateway.errors import InvalidApiKey, IssuerUnavailable
from gateway.issuers.fetching import DOCUMENT_BYTES_MAX, KEYS_MAX, fetch_keys, read_key_set
from gateway.issuers.key_set import KeySet, UnreadableKeys
from gateway.issuers.keys import AGAIN_S, FRESH_S, KEPT_S, WAITING_MAX, AllKeys, IssuerKeys
from tests.proxy_server import ProxyServer
from tests.signing import (
    ISSUER,
    claims,
    ec_key,
    ed_key,
    encoded_json,
    issuer,
    jwks,
    private_of,
    public_jwk,
    rsa_key,
    token,
)
from tests.waiting import HUNG_S, eventually

ONE, TWO = public_jwk(rsa_key(), kid="one"), public_jwk(ec_key(), kid="two")


class Server:
    """What an issuer publishes; `why` it cannot be read, and `held` until it answers."""

    def __init__(self) -> None:
        self.document, self.why, self.asked = jwks(ONE), "", 0
        self.held: threading.Event | None = None

    def read(self, _: object) -> KeySet:
        self.asked += 1
        if self.held is not None:
            assert self.held.wait(HUNG_S)
        if self.why:
            raise UnreadableKeys(self.why)
        return read_key_set(self.document)


class Scene:
    """The keys of one issuer, by a clock of the test."""

    def __init__(self) -> None:
        self.now, self.server = 1000.0, Server()
        self.logged: list[tuple[str, object]] = []
        self.all = AllKeys(lambda: self.now, self.log, self.server.read)
        self.all.renew([issuer()])

    def log(self, event: str, **facts: object) -> None:
        self.logged.append((event, facts.get("why")))

    @property
    def keys(self) -> IssuerKeys:
        found = self.all.of(ISSUER)
        assert found is not None
        return found

    async def failure(self, said: SignedToken) -> str:
        with pytest.raises((InvalidApiKey, IssuerUnavailable)) as caught:
            await self.keys.find(said)
        wrong = caught.value
        return wrong.failure if isinstance(wrong, InvalidApiKey) else wrong.reason


GOOD = read_token(token())
OTHER = read_token(token(algorithm="ES256", kid="two"))


async def test_the_first_token_has_the_keys_read_and_whoever_comes_meanwhile_waits_for_them() -> None:
    scene = Scene()
    found = await asyncio.gather(*(scene.keys.find(GOOD) for _ in range(20)))
    assert {one.key_id for one in found} == {"one"}
    assert scene.server.asked == 1


async def test_a_new_key_is_good_after_a_pause_whatever_others_make_up_and_until_then_nobody_knows() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.server.document = jwks(ONE, TWO)
    told = []
    for second in range(int(AGAIN_S)):
        await scene.failure(read_token(token(kid=f"made up {second}")))
        with pytest.raises(IssuerUnavailable) as unknown:  # it was asked a moment ago
            await scene.keys.find(OTHER)
        told.append(unknown.value.retry_after_s)
        scene.now += 1.0
    assert told == list(range(int(AGAIN_S), 0, -1))
    assert (await scene.keys.find(OTHER)).key_id == "two"


async def test_a_flood_of_unknown_keys_asks_once_in_a_while() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    refused = 0
    for second in range(100):
        scene.now += 1.0
        failure = await scene.failure(read_token(token(kid=f"made up {second}")))
        assert failure in {"token_key", "issuer_unavailable"}
        refused += failure == "token_key"  # the issuer was asked for this very one
    assert scene.server.asked == 1 + refused == 1 + 100 // AGAIN_S


async def test_keys_are_kept_while_their_issuer_is_away_but_not_for_ever() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.server.why = "it is gone"
    scene.now += FRESH_S
    await scene.keys.refresh()
    assert scene.logged == [("issuer_read", None), ("issuer_unread", "it is gone")]
    assert (await scene.keys.find(GOOD)).key_id == "one"
    # Whether it has that key nobody knows.
    assert await scene.failure(OTHER) == "issuer_unavailable"
    has = scene.keys.keys.keys[0] if scene.keys.keys is not None else None
    assert has is not None
    assert scene.keys.has(has)
    scene.now += KEPT_S
    assert not scene.keys.has(has)  # nor by tokens that are known
    assert await scene.failure(GOOD) == "issuer_unavailable"
    scene.server.why = ""
    scene.now += AGAIN_S
    assert (await scene.keys.find(GOOD)).key_id == "one"
    assert scene.logged[2:] == [("issuer_read", None)]


async def test_metrics_say_which_issuer_cannot_be_read() -> None:
    scene = Scene()
    assert scene.all.unread() == [(ISSUER, 1)]  # not yet
    await scene.keys.refresh()
    assert scene.all.unread() == [(ISSUER, 0)]
    scene.server.why = "it is gone"
    scene.now += FRESH_S
    await scene.keys.refresh()
    assert scene.all.unread() == [(ISSUER, 1)]


async def test_no_more_calls_than_a_bound_wait_for_an_issuer() -> None:
    scene = Scene()
    held = scene.server.held = threading.Event()
    waiting = [asyncio.ensure_future(scene.keys.find(GOOD)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    assert await scene.failure(GOOD) == "issuer_unavailable"
    held.set()
    assert {one.key_id for one in await asyncio.gather(*waiting)} == {"one"}


async def test_who_waits_no_more_leaves_the_others_waiting() -> None:
    scene = Scene()
    held = scene.server.held = threading.Event()
    gone, stays = (asyncio.ensure_future(scene.keys.find(GOOD)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    held.set()
    assert (await stays).key_id == "one"
    assert scene.server.asked == 1


async def test_what_nobody_expected_of_a_document_is_a_failure_to_read_it() -> None:
    scene = Scene()

    def read(_: object) -> KeySet:
        raise LookupError

    scene.all = AllKeys(lambda: scene.now, scene.log, read)
    scene.all.renew([issuer()])
    assert await scene.failure(GOOD) == "issuer_unavailable"
    assert scene.logged == [("issuer_unread", "LookupError")]


async def test_keys_of_an_issuer_that_stays_as_it_was_stay_too() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.all.renew([issuer(), issuer(issuer="https://another.example")])
    await scene.keys.find(GOOD)
    assert scene.server.asked == 1
    scene.all.renew([issuer(audiences=("another",))])
    await scene.keys.find(GOOD)
    assert scene.server.asked == 2
    scene.all.renew([])
    assert scene.all.of(ISSUER) is None


async def test_keys_are_read_ahead_of_tokens() -> None:
    scene = Scene()
    keeping = asyncio.ensure_future(scene.all.keep_fresh())
    try:
        await eventually(lambda: scene.keys.keys is not None)
        assert not scene.keys.is_due
        scene.now += FRESH_S
        await eventually(lambda: scene.server.asked == 2)
    finally:
        keeping.cancel()


async def test_what_is_kept_is_at_hand_while_it_is_read_anew() -> None:
    scene = Scene()
    assert len((await scene.keys.at_hand()).keys) == 1
    scene.now += FRESH_S
    scene.server.document, scene.server.held = jwks(ONE, TWO), threading.Event()
    try:
        assert len((await scene.keys.at_hand()).keys) == 1
        await eventually(lambda: scene.server.asked == 2)
    finally:
        scene.server.held.set()

    async def has_both() -> bool:
        return len((await scene.keys.at_hand()).keys) == 2

    await eventually(has_both)
    scene.now += KEPT_S
    scene.server.why = "away"
    with pytest.raises(IssuerUnavailable):
        await scene.keys.at_hand()


# --- fetching ---------------------------------------------------------------------------
# Keys over the network: HTTPS, bounded, nobody followed; from files; by discovery.


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
    assert site.left.wait(HUNG_S)  # amid the answer, not behind it


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


# --- signatures -------------------------------------------------------------------------
# Keys and signatures: each algorithm by its own kind of key, and nothing else.


ALL = jwks(*(public_jwk(private_of(name), kid=name) for name in FAMILY_OF))


def verified(text: bytes, keys: bytes) -> bool:
    said = read_token(text)
    key = read_key_set(keys).find(said)
    return key is not None and key.verifies(said)


@pytest.mark.parametrize("algorithm", FAMILY_OF)
def test_each_algorithm_is_verified_by_its_own_key(algorithm: str) -> None:
    good = token(algorithm=algorithm, kid=algorithm)
    assert verified(good, ALL)
    head, said, signature = good.split(b".")
    other = encoded_json(claims(sub="somebody else"))
    assert not verified(b".".join((head, other, signature)), ALL)
    flipped = (b"A" if signature[:1] != b"A" else b"B") + signature[1:]
    assert not verified(b".".join((head, said, flipped)), ALL)
    shorter = signature[: len(signature) // 4 * 4 - 4]  # whole bytes: else it is no token at all
    assert not verified(b".".join((head, said, shorter)), ALL)


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    public = rsa_key().public_key()
    for form in (serialization.Encoding.PEM, serialization.Encoding.DER):
        secret = public.public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
        forged = token(algorithm="HS256", key=secret)
        with pytest.raises(Exception, match="algorithm is not accepted"):
            read_token(forged)


def test_a_key_verifies_algorithms_of_its_own_family_alone() -> None:
    keys = jwks(public_jwk(rsa_key(), kid="one", alg="RS256"), public_jwk(ec_key("ES384"), kid="two"))
    assert verified(token(kid="one"), keys)
    assert not verified(token(algorithm="PS256", kid="one"), keys)
    assert not verified(token(algorithm="ES256", kid="two"), keys)
    assert not verified(token(algorithm="ES256", kid="one"), keys)


def test_the_key_is_the_named_one_and_without_a_name_the_only_one() -> None:
    other = rsa_key(1)
    two = jwks(public_jwk(rsa_key(), kid="one"), public_jwk(other, kid="two"))
    assert verified(token(kid="one"), two)
    assert not verified(token(kid="two"), two)
    assert not verified(token(kid="three"), two)
    assert not verified(token(kid=None), two)
    assert verified(token(kid=None), jwks(public_jwk(rsa_key()), public_jwk(ec_key())))
    assert verified(token(kid=None), jwks(public_jwk(rsa_key(), kid="one")))
    for injected in ("../one", "one' OR '1'='1", "/dev/null", ""):
        assert not verified(token(kid=injected), two)


def test_a_key_that_the_token_brings_is_not_its_issuers() -> None:
    mine = rsa_key(1)
    brought = token(key=mine, jwk=public_jwk(mine, kid="one"), kid="one")
    assert not verified(brought, jwks())


@pytest.mark.parametrize(
    "written",
    [
        public_jwk(rsa_key(), kid="one", use="enc"), public_jwk(rsa_key(), kid="one", key_ops=["encrypt"]),
        public_jwk(rsa_key(), kid="one", key_ops="verify"), public_jwk(rsa_key(), kid="one", alg="HS256"),
        public_jwk(rsa_key(), kid="one", alg="RSA-OAEP"), public_jwk(rsa_key(), kid="one", d="AQAB"),
        public_jwk(rsa_key(), kid=1), public_jwk(rsa_key(2, 1024), kid="one"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"}, {"kty": "RSA", "kid": "one"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "one"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "one"}, "one", None,
    ],
)  # fmt: skip
def test_other_keys_are_left_alone_and_do_not_spoil_the_rest(written: Any) -> None:
    with pytest.raises(UnreadableKeys, match="none of its keys"):
        read_key_set(jwks(written))
    both = read_key_set(jwks(written, public_jwk(ed_key(), kid="two")))
    assert [one.key_id for one in both.keys] == ["two"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no JSON"), (b"<html>", "no JSON"), (b"[" * 100_000, "no JSON"), (b"[]", "no list"),
        (b'{"keys":{}}', "no list"), (b'{"keys":[]}', "none of its keys"),
        (json.dumps({"keys": [{}] * (KEYS_MAX + 1)}).encode(), "65 keys, 64 are read at most"),
    ],
)  # fmt: skip
def test_a_document_without_keys_is_told(document: bytes, why: str) -> None:
    with pytest.raises(UnreadableKeys, match=why):
        read_key_set(document)
