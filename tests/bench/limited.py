"""Contenders that are let so many calls through and no more: how each is started, killed, and started again.

Each limit is one that its contender documents, on as much as so many calls use. All ask the demo upstream,
which is told what a call uses and when to answer.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.contenders import LITELLM_ENVIRONMENT, envoy, litellm, nginx_lua, nginx_proxy
from tests.bench.machine import BenchError, await_port, family, free_port, signal_all, spawn
from tests.bench.scenes import SCENES
from tests.bench.stage import Contender, Stage, python_path
from tests.bench.tollkeeper import TOTAL_TOKENS, up

INPUT, OUTPUT = 240, 60  # tokens of each call
FAILS = 500
COST_NANO = INPUT * 150 + OUTPUT * 600  # gpt-4o-mini, whose price all who know prices agree on
DELAY_S = 0.3  # before each answer: calls that come together are in flight together
FIELDS = {"x-demo-usage": f"{INPUT},{OUTPUT}", "x-demo-delay-s": f"{DELAY_S}"}
PATH = "/v1/chat/completions"
BODY_BYTES = 4 * (INPUT + OUTPUT - 16)  # of which the hand-made limiter estimates just what a call uses
WAIT_S_MAX = 60.0
ASK_S = 1.0  # no key may ask more often for long


@dataclass(frozen=True, slots=True)
class Limited:
    """One that runs, its limit in force: the message of a call, what to kill, and how it comes back."""

    port: int
    message: bytes
    pids: list[int]
    again: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A contender's title, what its limit is of, and how to start it with one that is worth so many calls."""

    title: str
    limit: str
    in_money: bool
    start: Callable[[Stage, int], Limited]


def message(key: str) -> bytes:
    """A chat of the same bytes for every contender, but for its key."""
    shape = {"model": "gpt-4o-mini", "max_tokens": OUTPUT, "messages": [{"role": "user", "content": ""}]}
    text = ("What is owed at the gate? " * 60)[: BODY_BYTES - len(json.dumps(shape))]
    body = json.dumps({**shape, "messages": [{"role": "user", "content": text}]})
    fields = {"host": "127.0.0.1", "authorization": f"Bearer {key}", "content-type": "application/json",
              **FIELDS, "connection": "close", "content-length": f"{len(body)}"}  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {PATH} HTTP/1.1\r\n{lines}\r\n{body}".encode()


def demo_upstream(stage: Stage, log: Path) -> None:
    """Start the upstream that all of a run ask; those who start it stop it."""
    stage.upstream_port = free_port()
    command = [stage.python, "-m", "gateway", "demo-upstream", "--port", str(stage.upstream_port)]
    program = spawn(command, stage.placement.upstream, log, PYTHONPATH=python_path(stage.compiled))
    stage.programs.append(program)
    await_port(stage.upstream_port, program, log)


def kill(pids: list[int]) -> None:
    """End processes with no chance to write anything down, and wait until they are gone."""
    signal_all(pids, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S_MAX
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise BenchError("killed processes go on")
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _nginx(stage: Stage, worth: int) -> Limited:
    zone = "limit_req_zone $http_authorization zone=calls:1m rate=1r/m; limit_req_status 429;"
    burst = f"burst={worth - 1} " if worth > 1 else ""
    return _peer(stage, nginx_proxy(stage, zone, f"limit_req zone=calls {burst}nodelay;"))


def _envoy(stage: Stage, worth: int) -> Limited:
    everyone = {"default_value": {"numerator": 100}}
    filter_ = {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": worth, "tokens_per_fill": 1, "fill_interval": "86400s"},
            "filter_enabled": everyone,
            "filter_enforced": everyone,
        },
    }
    return _peer(stage, envoy(stage, f"- {json.dumps(filter_)}"))


def _nginx_lua(stage: Stage, worth: int) -> Limited:
    return _peer(stage, nginx_lua(stage, capacity=worth * (INPUT + OUTPUT), refill=0))


def _litellm(stage: Stage, worth: int) -> Limited:
    # It passes no field of the client's on.
    found = litellm(stage, f"{worth * COST_NANO / 10**9:.9f}", json.dumps(FIELDS))
    found.before(SCENES["ledger"])
    return _peer(stage, found, **LITELLM_ENVIRONMENT)


def _peer(stage: Stage, one: Contender, **environment: str) -> Limited:
    """Its gateway is what its stage started last."""
    command = list(stage.programs[-1].args)[3:]  # type: ignore[arg-type]  # our own command lines are lists

    def again() -> None:
        stage.start(command, stage.placement.gateway, f"{one.name}-again", one.port, **environment)  # type: ignore[arg-type]  # of words

    return Limited(one.port, message(one.traffic(SCENES["ledger"]).keys[0]), one.gateway, again)


def _tollkeeper(stage: Stage, worth: int, admission: str) -> Limited:
    running = up(stage, "tollkeeper", stage.compiled)
    wish = {
        "name": "admitted",
        "total_amount": TOTAL_TOKENS,
        "reset_interval": "none",
        "admission": admission,
    }
    plan = running.admin("POST", "/token-plans", wish)
    tenant = running.admin("POST", "/tenants", {"name": "admitted", "plan_id": plan["id"]})
    key = running.admin("POST", "/api-keys", {"tenant_id": tenant["id"], "name": "admitted"})["key"]
    running.admin("POST", "/budgets", {
        "organization_id": tenant["organization_id"], "name": "admitted", "unit": "money",
        "amount": f"{worth * COST_NANO / 10**9:.9f}", "interval": "total",
    })  # fmt: skip
    url = running.facts["gateway_url"]
    _until(lambda: "admitted" in _limits(url, key), "the budget is not in force")
    _until(lambda: _failing(url, key) == FAILS, "what a call costs is not known")
    pids = [one for pid in running.facts["pids"]["gateway"] for one in family(pid)]
    again = partial(_until, lambda: "admitted" in _limits(url, key), "the killed gateway does not come back")
    return Limited(int(url.rsplit(":", 1)[1]), message(key), pids, again)


def _failing(url: str, key: str) -> int:
    """The status of a call that costs nothing: its upstream fails it, where it is forwarded."""
    body = message(key).partition(b"\r\n\r\n")[2]
    fields = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "x-demo-status": str(FAILS),
    }
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + PATH, body, fields), timeout=WAIT_S_MAX
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _limits(url: str, key: str) -> list[str]:
    """Names of the limits that the caller's calls have; none where nobody answers."""
    asked = urllib.request.Request(f"{url}/.tollkeeper/usage", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(asked, timeout=WAIT_S_MAX) as answer:
            return [one["name"] for one in json.load(answer)["limits"] if "name" in one]
    except OSError:
        return []


def _until(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not true():
        if time.monotonic() > deadline:
            raise BenchError(otherwise)
        time.sleep(ASK_S)


KINDS = {
    "nginx": Kind("nginx", "`limit_req`: requests", False, _nginx),
    "envoy": Kind("Envoy", "local rate limit: requests", False, _envoy),
    "nginx-lua": Kind("nginx + Lua + Redis", "a bucket of tokens, taken ahead", False, _nginx_lua),
    "litellm": Kind("LiteLLM", "provider budget in Redis: money", True, _litellm),
    "tollkeeper": Kind("Tollkeeper", "budget: money", True, partial(_tollkeeper, admission="available")),
    "tollkeeper-strict": Kind(
        "Tollkeeper, `strict`", "budget: money", True, partial(_tollkeeper, admission="strict")
    ),
}
