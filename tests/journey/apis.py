"""Every API as bytes on a socket: what is asked, how its events are told apart, who hangs up when."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SSE, ELEMENT = b"data: ", b'"modelVersion"'
ANSWER_S_MAX = 60.0
LEAVE_S = 0.1
HELLO = [{"role": "user", "content": "hello there, how are you today?"}]
CONTENTS = [{"role": "user", "parts": [{"text": HELLO[0]["content"]}]}]
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Api:
    """One way to call. `mark` is in each event of its stream once, empty for a whole document."""

    name: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    mark: bytes = b""

    def request(self, key: str, model: str, demo: dict[str, str]) -> bytes:
        """The bytes of a call of `model`; `demo` dictates to the upstream."""
        body = dict(self.body)
        if "{model}" not in self.path:
            body["model"] = model
        content = json.dumps(body).encode()
        path = self.path.replace("{model}", model)
        fields = "".join(f"x-demo-{name.replace('_', '-')}: {value}\r\n" for name, value in demo.items())
        return (
            f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n{fields}"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        ).encode() + content


GEMINI = "/v1beta/models/{model}"
STREAMS = (
    Api("chat", "/v1/chat/completions", {"messages": HELLO, "stream": True, "max_tokens": 64}, SSE),
    Api("completions", "/v1/completions", {"prompt": "hello there", "stream": True, "max_tokens": 64}, SSE),
    Api("responses", "/v1/responses", {"input": "hello there", "stream": True}, SSE),
    Api("messages", "/v1/messages", {"messages": HELLO, "stream": True, "max_tokens": 64}, SSE),
    Api("gemini (events)", f"{GEMINI}:streamGenerateContent?alt=sse", {"contents": CONTENTS}, SSE),
    Api("gemini (array)", f"{GEMINI}:streamGenerateContent", {"contents": CONTENTS}, ELEMENT),
)
DOCUMENTS = (
    Api("chat", "/v1/chat/completions", {"messages": HELLO, "n": 2, "max_tokens": 64}),
    Api("completions", "/v1/completions", {"prompt": ["hello", "there"], "max_tokens": 64}),
    Api("responses", "/v1/responses", {"input": "hello there", "max_output_tokens": 64}),
    Api("embeddings", "/v1/embeddings", {"input": ["hello", "there"]}),
    Api("messages", "/v1/messages", {"messages": HELLO, "max_tokens": 64}),
    Api("gemini", f"{GEMINI}:generateContent", {"contents": CONTENTS}),
    Api("gemini embeddings", f"{GEMINI}:embedContent", {"content": CONTENTS[0]}),
)


@dataclass(frozen=True)
class Heard:
    """What came back: all bytes, and whether the answer came to its end."""

    raw: bytes
    complete: bool

    @property
    def status(self) -> int:
        """The status, 0 where nothing came."""
        return int(self.raw[9:12] or b"0")

    @property
    def request_id(self) -> str:
        """The id the gateway gave the call."""
        return self.raw.split(b"x-request-id: ", 1)[1][:36].decode()


def call(url: str, request: bytes, *, leave_at: int | None = None, mark: bytes = SSE) -> Heard:
    """Send a request and read its answer; hang up once `leave_at` events came (0: while it is waited for)."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), ANSWER_S_MAX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sendall(request)
        raw = b""
        if leave_at == 0:
            time.sleep(LEAVE_S)
            return Heard(raw, False)
        with contextlib.suppress(ConnectionError):
            while not _is_over(raw):
                if leave_at is not None and raw.count(mark) >= leave_at:
                    return Heard(raw, False)
                piece = client.recv(65536)
                if not piece:
                    break
                raw += piece
        return Heard(raw, _is_over(raw))


def _is_over(raw: bytes) -> bool:
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        return False
    if b"transfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return len(body) >= int(length or b"0")
