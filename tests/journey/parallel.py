"""Many calls at the same instant against funds for one: how far past the limit they get."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.journey.apis import DOCUMENTS
from tests.journey.stack import Stack
from tests.waiting import wait_until

CALLS = 500

# Tokens each call uses. What it states for its answers alone is as much, so its hold is never
# less, whatever the workers have learned of prompts from calls before.
SIZE = 60
# What a call that states no maximum would write.
LONG, READ, ROUNDS = 5_000, 20, 3
CHAT = DOCUMENTS[0]


@dataclass(frozen=True)
class Crowd:
    """What became of the calls: by (status, reason), tokens used, and the funds there were."""

    outcomes: dict[tuple[int, str], int]
    used: int
    funds: int

    @property
    def admitted(self) -> int:
        """Calls that reached the upstream."""
        return sum(count for (status, _), count in self.outcomes.items() if status == 200)

    @property
    def overshoot(self) -> int:
        """Tokens used beyond the funds."""
        return self.used - self.funds

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {reason}" for (_, reason), count in self.outcomes.items() if reason)
        return (
            f"{sum(self.outcomes.values())} calls of {SIZE} tokens against {self.funds}: "
            f"{self.admitted} admitted, {refused}; {self.used} used, overshoot {max(0, self.overshoot)}"
        )


def against_quota(stack: Stack, funds: int = SIZE, calls: int = CALLS) -> Crowd:
    """A tenant whose cycle has tokens for one call."""
    tenant, key = stack.tenant(funds)
    return _crowd(stack, tenant, key, funds, calls)


def _crowd(stack: Stack, tenant: int, key: str, funds: int, calls: int) -> Crowd:
    demo = {"usage": f"{SIZE - 40},40", "delay_s": "2"}
    request = CHAT.request(key, "demo-small", demo).replace(b'"max_tokens": 64', b'"max_tokens": 30')
    outcomes = asyncio.run(at_once(stack.gateway_url, request, calls))
    wait_until(lambda: stack.quota(tenant)["tokens_held"] == 0)
    return Crowd(dict(outcomes), stack.quota(tenant)["tokens_used"], funds)


def against_credits(stack: Stack, funds: int = 5_000, calls: int = CALLS) -> Crowd:
    """An organization with prepaid credits, one a token."""
    prices = {"*": {"input": 1_000_000, "output": 1_000_000}}
    tenant, key = stack.tenant(None)
    owner = stack.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    services = stack.admin("GET", "/services?limit=100")[1]["items"]
    (chat,) = (one["id"] for one in services if one["key"] == "chat")
    models = stack.admin("GET", "/business-models")[1]["items"]
    (consumption,) = (one["id"] for one in models if one["meter"] == "consumption")
    stack.make(
        "organization-services", organization_id=owner, service_id=chat, negotiated_credits=1,
        business_model_id=consumption, pricing={"per_million": prices},
    )  # fmt: skip
    stack.make("credit-additions", organization_id=owner, credits_added=funds)

    def balance() -> int:
        return int(stack.admin("GET", f"/organizations/{owner}")[1]["credit_balance"])

    wait_until(lambda: balance() == funds)
    one = _chat(key, b',"max_tokens":1')
    wait_until(lambda: asyncio.run(at_once(stack.gateway_url, one, 1)).keys() == {(200, "")})
    outcomes = _rounds(stack, _chat(key), calls)
    rows = sum(count for (status, _), count in outcomes.items() if status == 200) + 1
    written = f"select count(*) from credit_transaction where organization_id = {owner}"
    wait_until(lambda: stack.rows(written) == [(rows,)])
    return Crowd(dict(outcomes), funds - balance(), funds)


def _rounds(stack: Stack, request: bytes, calls: int) -> Counter[tuple[int, str]]:
    """The same crowd again: what a call held and did not use lets others in."""
    rounds = (asyncio.run(at_once(stack.gateway_url, request, calls)) for _ in range(ROUNDS))
    return sum(rounds, Counter())


def _chat(key: str, more: bytes = b"") -> bytes:
    body = b'{"model":"demo-small","messages":[{"role":"user","content":"hello there"}]%b}' % more
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


@contextmanager
def obedient() -> Iterator[str]:
    """The URL of an upstream that writes `LONG` tokens, or the maximum it is told, after a moment."""

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told = asked.get("max_completion_tokens", asked.get("max_tokens", LONG))
            time.sleep(1.0)
            usage = {"prompt_tokens": READ, "completion_tokens": min(told, LONG)}
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            body = json.dumps({"model": asked["model"], "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = CALLS
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


async def at_once(url: str, request: bytes, calls: int) -> Counter[tuple[int, str]]:
    """Open every connection first, then send on all of them in one go."""
    parts = urlsplit(url)
    opened = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(calls)]
    for _, writer in opened:
        writer.write(request)
    outcomes: Counter[tuple[int, str]] = Counter()
    for head in await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in opened)):
        reason = head.partition(b"x-tollkeeper-reason: ")[2].split(b"\r\n")[0]
        outcomes[int(head[9:12]), reason.decode()] += 1
    for _, writer in opened:
        writer.close()
    return outcomes
