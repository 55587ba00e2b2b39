"""What one key can leave in Redis, whatever its calls say: each family within its row of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
import redis

from gateway.core.times import DAY_MS
from tests import plain_http
from tests.stacks import OTHER
from tests.stage import Stage
from tests.waiting import wait_until

README = Path(__file__).parents[2] / "lua" / "README.md"
CALLS, AT_ONCE, OBJECTS_MAX = 240, 8, int(OTHER["OBJECTS_MAX"])
GROWN_MAX = 1024  # bytes of a key that was there
# Budgets of one organization: of all its calls, and of each user and session. A step has a model for each of them.
BUDGETS = (("day", None), ("day", "user"), ("total", "session"))
STEP = {"at": 1, "models": {f"{digit}*": "gpt-4o-mini" for digit in range(10)}}
# Keys that workers share, one a call at most: milliseconds and bytes at most.
SHARED = {
    "cooling": (61_000, 64 * 1_500), "call-lessons": (3_600_000, 256 * 1024), "look:": (60_000, 256),
    "session:": (3_660_000, 200), "sessions:": (3_660_000, 80 * (CALLS + 1)),
}  # fmt: skip
# What is there while calls are, and no longer.
GONE = {"h:", "d", "x", "w:", "w", "late", "g", "refused"}


class Keeping(BaseHTTPRequestHandler):
    """An upstream that keeps what it made, and has enough where a call says so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "input_tokens": 3, "output_tokens": 2}
        made = {"id": f"resp_{uuid4().hex}", "object": "response", "status": "completed", "store": True}
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}]
        body = json.dumps(made | {"output": [], "choices": choices, "usage": usage | {"total_tokens": 5}})
        enough = self.headers["x-enough"]
        self.send_response(429 if enough else 200)
        if enough:
            self.send_header("retry-after", enough)
            for number in range(20):
                self.send_header(f"x-ratelimit-limit-{number}", "9" * 40)
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
        short = re.sub(r"^tk:(\{p(NN|00)\}:)?", "", name).partition(":")
        pattern = re.escape(name).replace("NN", r"\d\d")
        # An account of each is named behind the account of all.
        pattern = pattern.replace(":b:<account>", ":b:[^:]+(:[^:]+)?")
        found["".join(short[:2])] = re.compile(re.sub(r"<\w+>", "[^:]+", pattern) + "$")
    return found


def held(stage: Stage) -> dict[str, int]:
    """Every key there is, and its bytes."""
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:
        return {name: int(client.memory_usage(name) or 0) for name in client.scan_iter(count=1000)}


def call(stage: Stage, key: str, number: int) -> int:
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
    answer = plain_http.post(f"{stage.gateway_url}{path}", json=body, headers=encoded(headers), timeout=60)
    return answer.status_code


def refused(stage: Stage, key: str, number: int) -> int:
    """One call of a model of its own, whose upstream wants to be left alone."""
    body = {"model": f"{number}-{uuid4().hex}", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {key}", "x-enough": str(30 + number)}
    url = f"{stage.gateway_url}/v1/chat/completions"
    return plain_http.post(url, json=body, headers=headers, timeout=60).status_code


def give_budgets(stage: Stage, tenant: int, key: str) -> None:
    """Have the tenant's organization have budgets that every worker knows."""
    organization = stage.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    for interval, each in BUDGETS:
        stage.make(
            "budgets", organization_id=organization, name=f"{interval} {each}", unit="requests",
            amount=10**6, interval=interval, each=each, steps=[STEP] if each is None else [],
        )  # fmt: skip
    url, headers = f"{stage.gateway_url}/.tollkeeper/usage", {"authorization": f"Bearer {key}"}

    def known() -> bool:
        limits = plain_http.get(url, headers=headers, timeout=60).json().get("limits", ())
        return sum(limit["scope"] == "budget" for limit in limits) == len(BUDGETS)

    wait_until(lambda: all(known() for _ in range(stage.together)))


def encoded(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in headers.items()}


def waiting(stage: Stage) -> dict[str, int]:
    """What is not yet a row, or has a deadline, by its key."""
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:
        return {
            name: int(client.xlen(name) if client.type(name) == "stream" else client.zcard(name))
            for name in client.scan_iter("tk:{p*", count=1000)
            if name.endswith((":x", ":late", ":d"))
        }


def test_calls_that_say_something_else_each_time_leave_what_the_table_says(
    other_stage: Stage, upstream: str
) -> None:
    with other_stage.switch.to(upstream):
        calls_leave_what_the_table_says(other_stage)


def calls_leave_what_the_table_says(stage: Stage) -> None:
    others = waiting(stage)  # a job of another test lives for hours

    def is_at_rest() -> bool:
        return all(count <= others.get(name, 0) for name, count in waiting(stage).items())

    (tenant, key), (limited, limited_key) = stage.tenant(None), stage.tenant(None)
    status, _ = stage.admin("PATCH", f"/tenants/{limited}", {"user_limits": {"tokens_per_minute": 1}})
    assert status == 200
    for one, its in ((tenant, key), (limited, limited_key)):
        wait_until(lambda its=its: stage.chat(its).status_code == 200)
        stage.settled(one, 1)
    give_budgets(stage, tenant, key)
    wait_until(is_at_rest)
    before = held(stage)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda number: call(stage, key, number), range(CALLS)))
        limited_answers = list(pool.map(lambda number: call(stage, limited_key, number), range(0, CALLS, 4)))
        for wrong in range(20):
            assert call(stage, f"tk_{wrong:040d}", wrong) in {401, 404}
        left_alone = set(pool.map(lambda number: refused(stage, key, number), range(CALLS)))
    assert (set(answers), set(limited_answers), left_alone) == ({200, 404}, {200}, {429})
    for one in (key, limited_key):
        url, headers = f"{stage.gateway_url}/.tollkeeper/usage", {"authorization": f"Bearer {one}"}
        assert plain_http.get(url, headers=headers, timeout=60).status_code == 200
    wait_until(is_at_rest)

    now, known = held(stage), families()
    added = now.keys() - before.keys()
    assert [name for name in added if not any(one.match(name) for one in known.values())] == []
    found = {
        family: {name: now[name] for name in added if pattern.match(name)}
        for family, pattern in known.items()
    }
    check(stage, found, len(limited_answers))
    assert found["session:"], "each call names a session, and a model that a step has"
    of_the_table = {name for name in now if any(one.match(name) for one in known.values())}
    grown = {name: now[name] - before[name] for name in now.keys() & before.keys() - of_the_table}
    assert {name: more for name, more in grown.items() if more > GROWN_MAX} == {}


def check(stage: Stage, found: dict[str, dict[str, int]], users: int) -> None:
    """Each family against its row."""
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:
        for family, keys in found.items():
            lives = {name: int(client.pttl(name)) for name in keys}
            if family == "u:":
                assert len(keys) <= users
                assert keys, "the limited tenant's users are kept for a while"
                assert all(0 < life <= DAY_MS for life in lives.values())
                assert max(keys.values()) <= 250
            elif family == "b:":
                somebodys = {name for name in keys if name.count(":") == 4}
                assert len(keys.keys() - somebodys) == 1
                assert 0 < len(somebodys) <= 2 * (CALLS + 1), "each call has another user and session"
                assert all(0 < lives[name] <= 31 * DAY_MS for name in somebodys)
                assert max(int(client.strlen(name)) for name in keys) <= 70 + 57
            elif family == "each:":
                assert len(keys) == 2
                assert sum(int(client.zcard(name)) for name in keys) <= 2 * (CALLS + 1)
                assert max(keys.values()) <= 150 * (CALLS + 1)
            elif family in {"told:", "obj:"}:  # a list of each organization, and an owner of each in them
                counts = {name: int(client.zcard(name)) if family == "told:" else 1 for name in keys}
                assert set(counts.values()) == ({OBJECTS_MAX} if family == "told:" else {1})
                assert sum(counts.values()) == 2 * OBJECTS_MAX
                assert all(life > 0 for life in lives.values())
                assert all(keys[name] <= 150 * count for name, count in counts.items())
            elif family == "q:":
                assert len(keys) <= 2
                assert all(life <= 60_000 for life in lives.values())
            elif family == "busy:":
                assert all(0 < life <= 80_000 for life in lives.values())
                assert all(int(client.hlen(name)) <= 60 for name in keys)
            elif family in SHARED:
                life_max, bytes_max = SHARED[family]
                assert all(0 < life <= life_max for life in lives.values())
                assert max(keys.values(), default=0) <= bytes_max
                assert len(keys) <= CALLS
            elif family == "keepers":
                assert len(keys) <= 1
                assert all(0 < life <= 60_000 for life in lives.values())
                assert max(keys.values(), default=0) <= 500
            elif family == "programs":
                assert sum(int(client.zcard(name)) for name in keys) <= 10
                assert max(keys.values(), default=0) <= 10 * 500
            # Nothing is billed by the unit or made to be kept; no call names a run or takes an own hold.
            elif family in {
                "a:", "own:", "run:", "runs:", "opened:", "children:", "hold:", "end:", "idem:", "holds:",
                "mine:", "ended:", "idems:", "job:", "jobs", "open:", "cap:", "caps:", "note:",
                "since", "empty", "empty:", "empty-asked:", "unstored",
            }:  # fmt: skip
                assert keys == {}
            else:
                assert family in GONE, f"the table has a row nobody checks: {family}"
                assert all(client.type(name) == "stream" and not client.xlen(name) for name in keys), (
                    f"at rest nothing is left of {family}"
                )
