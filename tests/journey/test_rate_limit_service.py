"""Envoy asks `tollkeeper rls` by its rate limit filter, and programs ask it over gRPC."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx2 as httpx
import pytest
import trustme

from tests import plain_http
from tests.certificates import issued
from tests.features.rate_limit_service.test_rate_limit_service import MESSAGES, asked, codes
from tests.journey import fronts
from tests.journey.fronts import Front, RateLimitService
from tests.journey.stack import ANSWER_S_MAX, Stack
from tests.journey.test_authorize import CHAT
from tests.journey.test_holds import CALLERS, CALLS, TOKENS, WORTH, Holder
from tests.waiting import wait_until

HOLD = 1000  # of the shipped table
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-rls-") as found:
        yield Path(found)


@pytest.fixture(scope="module")
def service(stack: Stack, folder: Path) -> Iterator[RateLimitService]:
    one = RateLimitService(stack, folder)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def ask(service: RateLimitService) -> Iterator[Ask]:
    """Asks over gRPC, as any program does."""
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        asking = channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")
        well = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert well(b"", timeout=ANSWER_S_MAX) == b"\x08\x01"

        def answer(*descriptors: Any, of_kuadrant: str = "", **more: Any) -> Any:
            if of_kuadrant:
                kind = of_kuadrant if of_kuadrant in {"Reserve", "Commit"} else ""
                say = channel.unary_unary(f"/kuadrant.service.ratelimit.v1.RateLimitService/{of_kuadrant}")
                raw = say(asked(*descriptors, kind=f"{kind}Request", **more), timeout=ANSWER_S_MAX)
                return MESSAGES[f"{kind}Response"].FromString(raw)
            raw = asking(asked(*descriptors, **more), timeout=ANSWER_S_MAX)
            return MESSAGES["Response"].FromString(raw)

        yield answer


@pytest.fixture(scope="module")
def envoy(stack: Stack, folder: Path, service: RateLimitService) -> Iterator[Front]:
    front = fronts.rate_limited(stack, folder, service)
    yield front
    front.stop()


def call(front: Front, key: str, path: str = "/v1/chat/completions", **fields: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    headers |= {name.replace("_", "-"): said for name, said in fields.items()}
    return plain_http.post(f"{front.url}{path}", json=CHAT, headers=headers, timeout=ANSWER_S_MAX)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(work, range(CALLS)))


def of(holder: Holder, **entries: Any) -> dict[str, Any]:
    return {"service": "chat", "key": holder.key} | entries


def test_many_at_once_pass_envoy_as_often_as_there_is_room(stack: Stack, envoy: Front) -> None:
    holder = Holder(stack, WORTH * TOKENS)
    answers = at_once(lambda _: call(envoy, holder.key, "/things"))
    refused = [one for one in answers if one.status_code == 429]
    assert len(refused) == CALLS - WORTH
    assert {one.headers["x-tollkeeper-reason"] for one in refused} <= {"quota_held", "quota_exceeded"}
    assert refused[0].headers["content-type"] == "application/problem+json"
    stack.settled(holder.tenant, 1 + WORTH)
    assert holder.consumed() == [TOKENS] * WORTH
    assert stack.quota(holder.tenant)["tokens_held"] == 0


def test_a_call_by_envoy_is_held_at_first_and_charged_by_its_end(stack: Stack, envoy: Front) -> None:
    holder = Holder(stack, HOLD + 7)
    assert call(envoy, holder.key, x_used_tokens="7").status_code == 200
    stack.settled(holder.tenant, 2)
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    told = call(envoy, holder.key, x_used_tokens="1001")
    assert (told.status_code, told.headers["x-tollkeeper-tokens-remaining"]) == (200, "0")
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    # The end of a refused call charges nothing.
    assert call(envoy, holder.key, x_used_tokens="9").status_code == 429
    stack.settled(holder.tenant, 3)
    assert holder.consumed() == [7, 1001]
    assert call(envoy, "tk_unknown").status_code == 429


def test_no_client_begins_a_call_twice_by_its_id(stack: Stack, envoy: Front) -> None:
    holder, id_ = Holder(stack, 10 * HOLD), str(uuid4())
    for _ in range(2):
        assert call(envoy, holder.key, x_request_id=id_, x_used_tokens="5").status_code == 200
    stack.settled(holder.tenant, 3)
    assert holder.consumed() == [5, 5]


def test_over_tls_who_has_a_certificate_asks(stack: Stack, tmp_path: Path) -> None:
    authority, holder = trustme.CA(), Holder(stack, 1)
    files, client = issued(tmp_path, authority, clients=authority), authority.issue_cert("envoy")
    tls = {"cert_file": files.certificate, "key_file": files.key, "client_ca_file": files.authority}
    rule = {"domain": "api", "entries": {"team": "*"}, "key": holder.key, "service": "chat"}
    service = RateLimitService(stack, tmp_path, f"tls: {json.dumps(tls)}\nrules: [{json.dumps(rule)}]\n")
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    try:
        for pair in (own, (None, None)):
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *pair)
            with grpc.secure_channel(f"localhost:{service.port}", credentials) as channel:
                asking = channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")
                if pair is own:
                    assert codes(
                        MESSAGES["Response"].FromString(asking(asked({"team": "a"}), timeout=ANSWER_S_MAX))
                    ) == [1, 1]
                    continue
                with pytest.raises(grpc.RpcError):
                    asking(asked({"team": "a"}), timeout=ANSWER_S_MAX)
    finally:
        service.stop()


def test_kuadrant_reserves_as_often_as_there_is_room_and_commits_once(stack: Stack, ask: Ask) -> None:
    holder = Holder(stack, WORTH * TOKENS)
    one = of(holder)
    held = at_once(lambda _: ask(one, of_kuadrant="Reserve", amount=TOKENS, ttl={"seconds": 600}))
    ids = [said.reservation_id for said in held if said.code == 1]
    assert len(ids) == WORTH
    assert ask(one, of_kuadrant="CheckRateLimit").overall_code == 2
    for _ in range(2):
        for id_ in ids:
            assert ask(one, of_kuadrant="Commit", reservation_id=id_, actual_amount=7).reservation_released
    assert ask(one, of_kuadrant="Report", hits_addend=3).overall_code == 1
    stack.settled(holder.tenant, 2 + WORTH)
    assert sorted(holder.consumed()) == [3, *[7] * WORTH]
    assert stack.quota(holder.tenant)["tokens_held"] == 0
    # A reservation is its own key's: by another one it is none, and what is committed is that key's use.
    other = Holder(stack, 100)
    theirs = ask(one, of_kuadrant="Reserve", amount=5).reservation_id
    assert not ask(
        of(other), of_kuadrant="Commit", reservation_id=theirs, actual_amount=2
    ).reservation_released
    stack.settled(other.tenant, 2)
    assert (other.consumed(), stack.quota(holder.tenant)["tokens_held"]) == ([2], 5)
