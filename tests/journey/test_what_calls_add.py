"""What one key can leave in Redis, whatever its calls say: each family within its row of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import httpx2 as httpx
import pytest
import redis

from tests.journey.stack import Stack
from tests.waiting import wait_until

README = Path(__file__).parents[2] / "lua" / "README.md"
CALLS, AT_ONCE, OBJECTS_MAX = 240, 8, 20
DAY_MS = 86_400_000
GROWN_MAX = 1024  # bytes of a key that was there
# What calls of a tenant leave, and those of one with user limits.
GONE = {"h:", "d", "x", "w:", "w", "late", "g", "refused"}


class Keeping(BaseHTTPRequestHandler):
    """An upstream that keeps what it made."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "input_tokens": 3, "output_tokens": 2}
        made = {"id": f"resp_{uuid4().hex}", "object": "response", "status": "completed", "store": True}
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}]
        body = json.dumps(made | {"output": [], "choices": choices, "usage": usage | {"total_tokens": 5}})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Keeping)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def families() -> dict[str, re.Pattern[str]]:
    """The rows of the table, by the family's short name."""
    text = README.read_text().partition("## What calls may add")[2].partition("\n## ")[0]
    found = {}
    for name in re.findall(r"^\| `(tk:\S+)` \|", text, re.MULTILINE):
        short = name.removeprefix("tk:").removeprefix("{pNN}:").partition(":")
        pattern = re.escape(name).replace("NN", r"\d\d")
        found["".join(short[:2])] = re.compile(re.sub(r"<\w+>", "[^:]+", pattern) + "$")
    return found


def held(stack: Stack) -> dict[str, int]:
    """Every key there is, and its bytes."""
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        return {name: int(client.memory_usage(name) or 0) for name in client.scan_iter(count=1000)}


def call(stack: Stack, key: str, number: int) -> int:
    """One call that says of itself what no other says; each third one keeps an object."""
    unlike = f"{number}-{uuid4().hex}"
    headers = {
        "authorization": f"Bearer {key}",
        "x-tollkeeper-user": unlike.ljust(128, "ü"),
        "x-tollkeeper-session": unlike,
        "x-tollkeeper-feature-version": unlike[:64],
        "x-tollkeeper-project-id": str(number),
        "x-tollkeeper-content-id": str(number),
        "x-tollkeeper-metadata": f'{{"{unlike}":"{"m" * 1900}"}}',
        "x-request-id": unlike,
        "idempotency-key": unlike,
        "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
    }
    model = f"{unlike}".ljust(256, "x")
    body, path = {"model": model, "messages": [{"role": "user", "content": unlike}]}, "/v1/chat/completions"
    if number % 3 == 0:
        body, path = {"model": model, "input": unlike}, "/v1/responses"
    if number % 3 == 1:
        path = f"/services/{unlike}/x" if number % 2 else path
    answer = httpx.post(f"{stack.gateway_url}{path}", json=body, headers=encoded(headers), timeout=60)
    return answer.status_code


def encoded(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in headers.items()}


def at_rest(stack: Stack) -> bool:
    """Everything charged is a row."""
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        return not any(
            client.xlen(name) if client.type(name) == "stream" else client.zcard(name)
            for name in client.scan_iter("tk:{p*", count=1000)
            if name.endswith((":x", ":late", ":d"))
        )


def test_calls_that_say_something_else_each_time_leave_what_the_table_says(
    own_stack: Callable[..., Stack], upstream: str
) -> None:
    stack = own_stack("--upstream", upstream, TOLLKEEPER_OBJECTS_MAX=str(OBJECTS_MAX))
    (tenant, key), (limited, limited_key) = stack.tenant(None), stack.tenant(None)
    status, _ = stack.admin("PATCH", f"/tenants/{limited}", {"user_limits": {"tokens_per_minute": 1}})
    assert status == 200
    for one, its in ((tenant, key), (limited, limited_key)):
        wait_until(lambda its=its: stack.chat(its).status_code == 200)
        stack.settled(one, 1)
    wait_until(lambda: at_rest(stack))
    before = held(stack)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda number: call(stack, key, number), range(CALLS)))
        limited_answers = list(pool.map(lambda number: call(stack, limited_key, number), range(0, CALLS, 4)))
        for wrong in range(20):
            assert call(stack, f"tk_{wrong:040d}", wrong) in {401, 404}
    assert (set(answers), set(limited_answers)) == ({200, 404}, {200})
    for one in (key, limited_key):
        url, headers = f"{stack.gateway_url}/.tollkeeper/usage", {"authorization": f"Bearer {one}"}
        assert httpx.get(url, headers=headers, timeout=60).status_code == 200
    wait_until(lambda: at_rest(stack), within_s=60)

    now, known = held(stack), families()
    added = now.keys() - before.keys()
    assert [name for name in added if not any(one.match(name) for one in known.values())] == []
    found = {
        family: {name: used for name, used in now.items() if pattern.match(name)}
        for family, pattern in known.items()
    }
    check(stack, found, len(limited_answers))
    of_the_table = {name for keys in found.values() for name in keys}
    grown = {name: now[name] - before[name] for name in now.keys() & before.keys() - of_the_table}
    assert {name: more for name, more in grown.items() if more > GROWN_MAX} == {}


def check(stack: Stack, found: dict[str, dict[str, int]], users: int) -> None:
    """Each family against its row."""
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        for family, keys in found.items():
            lives = {name: int(client.pttl(name)) for name in keys}
            if family == "u:":
                assert len(keys) <= users
                assert keys, "the limited tenant's users are kept for a while"
                assert all(0 < life <= DAY_MS for life in lives.values())
                assert max(keys.values()) <= 250
            elif family == "own:":
                assert {int(client.zcard(name)) for name in keys} == {OBJECTS_MAX}
                assert all(life > 0 for life in lives.values())
                assert max(keys.values()) <= 150 * OBJECTS_MAX
            elif family == "q:":
                assert len(keys) <= 2
                assert all(life <= 60_000 for life in lives.values())
            elif family == "busy:":
                assert all(0 < life <= 80_000 for life in lives.values())
                assert all(int(client.hlen(name)) <= 60 for name in keys)
            elif family == "a:":
                assert keys == {}
            else:
                assert family in GONE, f"the table has a row nobody checks: {family}"
                assert all(client.type(name) == "stream" and not client.xlen(name) for name in keys), (
                    f"at rest nothing is left of {family}"
                )
