"""The client of holds: an answer that is lost is asked for again, and a refusal is raised at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from gateway.client.holds import TRIES_MAX, HoldRefused, Holds

TAKEN = {"id": "h1", "held": 5, "remaining": None, "expires_at": "2026-01-01T00:00:00Z"}


class Gateway(BaseHTTPRequestHandler):
    """Answers by turns; 0 breaks the connection off."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[int]] = []
    keys: ClassVar[list[str]] = []
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers.get("idempotency-key", ""))
        status = self.answers.pop(0)
        if not status:
            self.close_connection = True
            self.connection.close()
            return
        body = json.dumps(TAKEN if status < 300 else {"detail": "no"}).encode()
        body = self.bodies.pop() if self.bodies else body
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-tollkeeper-reason", "quota_held")
        self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[str]:
    Gateway.answers, Gateway.keys = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_whose_answer_is_lost_is_sent_again_with_the_same_key(gateway: str) -> None:
    pauses: list[float] = []
    holds = Holds(gateway, "tk_1", pause=pauses.append)
    Gateway.answers += [0, 503, 201]
    assert holds.take("chat", max_tokens=5).held == 5
    assert len(set(Gateway.keys)) == 1
    assert len(pauses) == 2
    holds.close()


def test_it_gives_up_after_a_few(gateway: str) -> None:
    holds = Holds(gateway, "tk_1", pause=lambda _: None)
    Gateway.answers += [503] * TRIES_MAX
    with pytest.raises(HoldRefused, match="503"):
        holds.take("chat", max_tokens=5)
    assert Gateway.answers == []
    holds.close()


def test_a_refusal_is_raised_at_once(gateway: str) -> None:
    holds = Holds(gateway, "tk_1")
    Gateway.answers += [429]
    with pytest.raises(HoldRefused) as refused:
        holds.take("chat", max_tokens=5)
    assert (refused.value.reason, refused.value.retry_after_s, refused.value.detail) == (
        "quota_held",
        7,
        "no",
    )
    holds.close()


def test_more_is_never_asked_for_twice(gateway: str) -> None:
    holds = Holds(gateway, "tk_1", pause=lambda _: None)
    Gateway.answers += [201, 0, 200, 503, 200]
    hold = holds.take("chat", max_tokens=5)
    with pytest.raises((OSError, HTTPException)):
        hold.extend(60, more=5)
    assert len(Gateway.keys) == 2
    hold.extend(60, more=5)
    with pytest.raises(HoldRefused, match="503"):
        hold.extend(60, more=5)
    hold.extend(60)
    holds.close()


def test_what_answers_in_the_gateways_place_is_a_refusal(gateway: str) -> None:
    holds = Holds(gateway, "tk_1", pause=lambda _: None)
    Gateway.answers += [502]
    Gateway.bodies += [b"<html>Bad Gateway</html>"]
    with pytest.raises(HoldRefused, match="502"):
        holds.take("chat", max_tokens=5)
    holds.close()


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="must be http"):
        Holds("gateway:8080", "tk_1")
