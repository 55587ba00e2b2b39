"""Whoever asked to be told of a budget is: by a signed message and by mail, once, also after a restart."""

from __future__ import annotations

import asyncio
import email
import json
import threading
from collections.abc import Iterator
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.core.alerts.messages import signature
from tests.journey.stack import Body, Stack
from tests.mail_server import FakeMailServer
from tests.stacks import MAIL_FROM
from tests.waiting import wait_until


class Receiver(ThreadingHTTPServer):
    """Somebody's own program: notes what it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def told(self) -> list[tuple[str, Any]]:
        """Events, and how much of a budget was used."""
        bodies = [json.loads(body) for _, body in self.got]
        return sorted((body["type"], body["data"].get("percent", 0)) for body in bodies)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        fields = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((fields | {":path": self.path}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def mailbox(other_stack: Stack) -> Iterator[FakeMailServer]:
    """A mail server on this machine, so without TLS, in a thread of its own."""
    server, loop, there = (
        FakeMailServer(offers=(), port=other_stack.mail_port),
        asyncio.new_event_loop(),
        threading.Event(),
    )

    async def listen() -> None:
        async with server.listening():
            there.set()
            await ended.wait()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),))
    thread.start()
    there.wait()
    yield server
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


def organization_of(stack: Stack, tenant: int) -> int:
    return int(stack.admin("GET", f"/tenants/{tenant}")[1]["organization_id"])


def test_a_budget_that_is_used_up_is_told_once_by_message_and_by_mail(
    other_stack: Stack, receiver: Receiver, mailbox: FakeMailServer
) -> None:
    stack = other_stack
    tenant, key = stack.tenant(None)
    organization = organization_of(stack, tenant)
    budget = stack.make(
        "budgets", organization_id=organization, name="Team A", unit="requests", amount=6, interval="total"
    )
    hook = stack.make("webhooks", url=receiver.url, organization_id=organization)
    stack.make("webhooks", url="mailto:ada@example.com,ops@example.com", events=["budget.exceeded"])

    def used_after_a_call() -> int:
        stack.chat(key)
        found: Body = stack.admin("GET", f"/budgets/{budget['id']}")[1]
        return int(found["used"])

    wait_until(lambda: used_after_a_call() >= 3)
    wait_until(lambda: ("budget.threshold", 50) in receiver.told())
    wait_until(lambda: stack.chat(key).status_code == 429)
    everything = [("budget.exceeded", 100), *(("budget.threshold", percent) for percent in (50, 80, 100))]
    wait_until(lambda: receiver.told() == everything)
    fields, body = receiver.got[0]
    signed = signature(hook["secret"], fields["webhook-id"], fields["webhook-timestamp"], body)
    assert fields["webhook-signature"] == f"v1,{signed}"
    assert json.loads(body)["text"].startswith("50 % of a budget are used: “Team A”")
    wait_until(lambda: mailbox.mails)
    [mail] = mailbox.mails
    read = email.message_from_bytes(mail, policy=default)
    assert (read["from"], read["to"]) == (f"Tollkeeper <{MAIL_FROM}>", "ada@example.com, ops@example.com")
    assert str(read["subject"]).startswith("[Tollkeeper] A budget is used up: “Team A”")
    assert mailbox.said[1:4] == [
        f"MAIL FROM:<{MAIL_FROM}>", "RCPT TO:<ada@example.com>", "RCPT TO:<ops@example.com>",
    ]  # fmt: skip

    assert stack.stop() == 0
    stack.start()
    for action, event in (("block", "tenant.blocked"), ("unblock", "tenant.unblocked")):
        stack.act(tenant, action)
        wait_until(lambda event=event: (event, 0) in receiver.told())
    assert receiver.told() == [*everything, ("tenant.blocked", 0), ("tenant.unblocked", 0)]
    assert len(mailbox.mails) == 1
