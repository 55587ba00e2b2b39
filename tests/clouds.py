"""What clouds ask of who calls: signatures checked by botocore, and a place that gives Google's tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import jwt
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

KEY_ID, SECRET, SESSION, REGION = "AKIDEXAMPLE", "secret+key/1", "session/token==", "eu-central-1"
PROFILE = (
    f"[default]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\naws_session_token={SESSION}\n"
)


def is_signed(method: str, path: str, headers: Mapping[str, str], body: bytes, secret: str = SECRET) -> bool:
    """Whether the signature of a request is of all its x-amz- fields, its host, its path and its body."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
    said = dict(one.strip().partition("=")[::2] for one in rest.split(","))
    names = said.get("SignedHeaders", "").split(";")
    moment = headers.get("x-amz-date", "")
    if kind != "AWS4-HMAC-SHA256" or "host" not in names:
        return False
    if any(name.startswith("x-amz-") and name not in names for name in headers):
        return False
    scope = f"{KEY_ID}/{moment[:8]}/{REGION}/bedrock/aws4_request"
    fields = {name: headers[name] for name in names if name in headers}
    request = AWSRequest(method, f"http://{headers['host']}{path}", fields, body)
    request.context["timestamp"] = moment
    judge = SigV4Auth(Credentials(KEY_ID, secret), "bedrock", REGION)
    signature = judge.signature(judge.string_to_sign(request, judge.canonical_request(request)), request)
    return said.get("Credential") == scope and said.get("Signature") == signature


@dataclass
class TokenPlace:
    """Gives tokens for assertions of one service account: `token-1`, `token-2`, …, or refuses."""

    url: str = ""
    lifetime_s: int = 3600
    refuses: bool = False
    given: list[str] = field(default_factory=list)

    def answer(self, form: bytes) -> tuple[int, dict[str, object]]:
        assertion = parse_qs(form.decode())["assertion"][0]
        jwt.decode(
            assertion, private_key().public_key(), ["RS256"], audience="https://oauth2.googleapis.com/token"
        )
        if self.refuses:
            return 400, {"error": "invalid_grant", "error_description": "account is disabled"}
        self.given.append(f"token-{len(self.given) + 1}")
        return 200, {"access_token": self.given[-1], "expires_in": self.lifetime_s, "token_type": "Bearer"}

    def account(self, folder: Path) -> Path:
        """The key file of the service account."""
        file = folder / "account.json"
        pem = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        said = {
            "type": "service_account", "client_email": "a@example.com", "private_key": pem,
            "private_key_id": sha256(pem.encode()).hexdigest()[:8], "token_uri": self.url, "project_id": "p",
        }  # fmt: skip
        file.write_text(json.dumps(said))
        return file


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@contextmanager
def token_place() -> Iterator[TokenPlace]:
    place = TokenPlace()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, said = place.answer(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    place.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()
