"""A provider of identities on a socket of its own: it knows one client and signs in whoever is there.

It checks what a client sends as strictly as providers do: the client's secret, the address people are sent
back to, PKCE, and that a code is used once. `bent` makes it say wrong things. Where
it has an `out`, people sign out there and are sent on to it.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from tests.signing import Json, jwks, rsa_key, token

CLIENT, SECRET = "console", "a+secret/of:the client"
DISCOVERY = "/.well-known/openid-configuration"


class _Server(ThreadingHTTPServer):
    """One that many ask at once: what the usual queue of five has no room for waits a second and longer."""

    request_queue_size = 64


@dataclass
class FakeIdentityProvider:
    """What the provider knows, and what it was asked."""

    url: str
    back: str = ""
    out: str = ""
    person: Json = field(default_factory=lambda: {"sub": "u-1", "name": "Kim", "groups": ["staff"]})
    sends_post: bool = False
    names_itself: bool = True
    published: Json = field(default_factory=dict)
    is_away: bool = False
    has_pages: bool = False
    renews: bool = False
    is_gone: bool = False
    also: Json = field(default_factory=dict)
    bent: Callable[[Json], Json | None] = field(default=lambda claims: claims)
    signs: Callable[[Json], bytes] = field(default=lambda claims: token(claims, key=rsa_key()))
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    renewals: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def discovery(self) -> Json:
        """Its discovery document."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["code"],
            "token_endpoint_auth_methods_supported": [
                "client_secret_post" if self.sends_post else "client_secret_basic"
            ],
            "authorization_response_iss_parameter_supported": self.names_itself,
            **({"end_session_endpoint": f"{self.url}/end?tenant=1"} if self.out else {}),
            **self.published,
        }

    def page(self, address: str) -> tuple[int, Any, str]:
        """What is at an address: its status, what is there, and where a browser is sent on to."""
        parts = urlsplit(address)
        self.asked.append(parts.path)
        if self.is_away:
            return 503, {}, ""
        if parts.path == "/end":
            return 302, {}, self.end(_single(parts.query))
        if parts.path != "/authorize":
            there = {DISCOVERY: self.discovery(), "/keys": json.loads(jwks())}.get(parts.path)
            return (404, {}, "") if there is None else (200, there, "")
        back = self.authorize(_single(parts.query))
        if self.has_pages:  # as where people type in their password: its page sends them back
            return 200, f"<script>location.href = {json.dumps(back)}</script>", ""
        return 302, {}, back

    def authorize(self, query: dict[str, str]) -> str:
        """Where a browser is sent back to, with a code."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["redirect_uri"] == self.back
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        said = {"code": code, "state": query["state"]} | ({"iss": self.url} if self.names_itself else {})
        return f"{self.back}?{urlencode(said)}"

    def end(self, query: dict[str, str]) -> str:
        """Where a browser is sent back to once a session is over; nobody is asked, since it is said whose."""
        assert (query["tenant"], query["client_id"]) == ("1", CLIENT)
        assert query["post_logout_redirect_uri"] == self.out
        assert query["id_token_hint"] in self.given
        self.ended.append(query["id_token_hint"])
        return f"{self.out}?{urlencode({'state': query['state']})}"

    def redeem(self, form: dict[str, str], authorization: str | None) -> tuple[int, Json]:
        """The answer of the token endpoint (RFC 6749, 5)."""
        if self._client(form, authorization) != (CLIENT, SECRET):
            return 401, {"error": "invalid_client"}
        if form["grant_type"] == "refresh_token":
            known = self.renewals.pop(form["refresh_token"], False)  # each is good once (RFC 9700, 4.14)
            return (200, self._given()) if known and not self.is_gone else (400, {"error": "invalid_grant"})
        begun = self.codes.pop(form["code"], None)
        verifier = form["code_verifier"].encode()
        challenge = urlsafe_b64encode(sha256(verifier).digest()).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != challenge or form["redirect_uri"] != self.back:
            return 400, {"error": "invalid_grant"}
        return 200, self._given(nonce=begun["nonce"])

    def _given(self, **more: str) -> Json:
        """Tokens that are given; the ID token of a renewal need have no nonce."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, **more, **self.person}
        said = self.bent(claims)
        answer: Json = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer"}
        if self.renews:
            answer["refresh_token"] = secrets.token_urlsafe(16)
            self.renewals[answer["refresh_token"]] = True
        if said is not None:
            answer["id_token"] = self.signs(said).decode()
            self.given.append(answer["id_token"])
        return answer | self.also

    def _client(self, form: dict[str, str], authorization: str | None) -> tuple[str, str]:
        if self.sends_post:
            return form.get("client_id", ""), form.get("client_secret", "")
        pair = b64decode((authorization or "").removeprefix("Basic ")).decode()
        who, _, secret = pair.partition(":")
        return unquote_plus(who), unquote_plus(secret)


@contextmanager
def identity_provider() -> Iterator[FakeIdentityProvider]:
    """A provider that answers for as long as this lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(*found.page(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            found.asked.append(self.path)
            said = (503, {}) if found.is_away else found.redeem(_single(body), self.headers["authorization"])
            self._say(*said)

        def _say(self, status: int, said: Any, location: str = "") -> None:
            is_page = isinstance(said, str)
            body = said.encode() if is_page else json.dumps(said).encode()
            self.send_response(status)
            if location:
                self.send_header("location", location)
            self.send_header("content-type", "text/html" if is_page else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the library calls it
            """Nothing is said."""

    server = _Server(("127.0.0.1", 0), Handler)
    found = FakeIdentityProvider(f"http://127.0.0.1:{server.server_address[1]}")
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield found
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def _single(query: str) -> dict[str, str]:
    """What a form or a query says, each name once."""
    said = parse_qs(query, strict_parsing=True)
    assert all(len(values) == 1 for values in said.values())
    return {name: values[0] for name, values in said.items()}
