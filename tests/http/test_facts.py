"""What is known of an upstream, on the way of a call: what is held and sent, and what a refusal teaches."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.core.calls.routes import ModelRule, ModelTarget, TokenCounts, UpstreamFacts, UpstreamTarget
from gateway.run.model_lists import read_list
from tests.features.caller_holds.test_authorized import Holds
from tests.http.fakes import (
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    post,
)
from tests.http.stage import FakeUpstream, Stage, staged
from tests.waiting import eventually

UNSTATED = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
READ = 27  # as in test_costs.py
# vLLM 0.32.0, started with --max-model-len 2048; the list of its models, and what it says of a maximum above.
VLLM_MODELS = (
    b'{"object":"list","data":[{"id":"m","object":"model","created":1795836000,"owned_by":"vllm","root":"m",'
    b'"parent":null,"max_model_len":2048,"permission":[]}]}'
)
VLLM_REFUSES = answer(
    b'{"error":{"message":"max_completion_tokens=65536 cannot be greater than max_model_len=2048. Please'
    b' request fewer output tokens.","type":"BadRequestError","param":"max_completion_tokens","code":400}}',
    status=b"400 Bad Request",
)


def strict(stage: Stage, tokens: int) -> None:
    """Have each call be bound to what it holds: so much of its answer."""
    decision = stage.counters.decision
    assert decision is not None
    decision.held_tokens, decision.bounded = READ + tokens, True


async def test_a_refusal_that_names_a_field_of_ours_is_told_and_has_the_list_of_models_read() -> None:
    async with staged() as stage:
        [upstream] = [one for name, one in stage.plane._upstreams.items() if name == "up"]
        strict(stage, 65_536)
        assert not stage.plane.listed()
        for _ in range(2):
            stage.upstream.scripts.append([VLLM_REFUSES])
            assert (await stage.ask(post(UNSTATED))).status == 400
        (told,) = stage.events("upstream_refuses_field")
        facts = (told["upstream"], told["status"], told["field"], told["maximum"])
        assert facts == ("up", 400, "max_completion_tokens", 65_536)
        assert stage.plane.listed() == [upstream]
        stage.upstream.scripts.append([answer(VLLM_MODELS)])
        assert await read_list(upstream, lambda event, **facts: None)
        assert stage.upstream.received[-1].target == b"/v1/models"
        assert (await stage.ask(post(UNSTATED))).status == 200
        assert json.loads(stage.upstream.received[-1].body)["max_completion_tokens"] == 2_048
        assert stage.counters.holds[-1].ceiling < READ + 2_048


async def test_a_refusal_of_what_a_caller_wrote_is_its_own() -> None:
    async with staged() as stage:
        body = UNSTATED[:-1] + b',"max_completion_tokens":65536}'
        for status in (b"400 Bad Request", b"404 Not Found"):
            stage.upstream.scripts.append([VLLM_REFUSES.replace(b"400 Bad Request", status)])
            assert (await stage.ask(post(body))).status == int(status[:3])
        strict(stage, 90)
        stage.upstream.scripts.append([VLLM_REFUSES.replace(b"400 Bad Request", b"500 Oh")])
        assert (await stage.ask(post(UNSTATED))).status == 500
        assert not stage.events("upstream_refuses_field")
        assert not stage.plane.listed()


async def test_a_stream_is_not_asked_for_its_usage_where_that_is_refused() -> None:
    """Mistral tells it anyway; then its client has it as it came."""
    async with staged(of_target={"facts": UpstreamFacts(adds=frozenset())}) as stage:
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, USAGE_EVENT, DONE_EVENT)])
        got = await stage.ask(post(CHAT_STREAM))
        assert "stream_options" not in json.loads(stage.upstream.received[-1].body)
        assert USAGE_EVENT in got.body
        (charge,) = stage.counters.charges
        assert charge.tokens == 12


async def test_each_target_is_sent_what_it_takes_and_the_hold_covers_all() -> None:
    other = FakeUpstream()
    await other.start()
    rule = ModelRule("m", False, (ModelTarget("up", "a"), ModelTarget("other", "b")), context=60)
    target = UpstreamTarget(
        "other", f"http://127.0.0.1:{other.port}", facts=UpstreamFacts(maximum="max_tokens")
    )
    async with staged(
        others=(target,), models=(rule,), of_target={"facts": UpstreamFacts(output_max=50)}
    ) as stage:
        stage.upstream.scripts.append([answer(b"{}", status=b"503 Oh")])
        asked = CHAT.replace(b'"max_tokens":10', b'"max_completion_tokens":9000')
        assert (await stage.ask(post(asked))).status == 200
        first, second = (json.loads(one.received[-1].body) for one in (stage.upstream, other))
        assert (first["model"], first["max_completion_tokens"]) == ("a", 50)
        assert (second["model"], second["max_tokens"]) == ("b", 60)
        assert "max_completion_tokens" not in second
        assert stage.counters.holds[-1].ceiling - stage.counters.holds[-1].read == 60
    await other.stop()


@pytest.mark.parametrize(("on_cut", "drained"), [("", False), ("stops", False), ("goes_on", True)])
async def test_an_answer_that_goes_on_without_its_client_is_read_to_its_end(
    on_cut: str, drained: bool
) -> None:
    """Its upstream bills all of it, whatever a route says."""
    async with staged(of_target={"facts": UpstreamFacts(on_cut=on_cut)}) as stage:
        rest = asyncio.Event()
        stage.upstream.scripts.append(
            [STREAM_HEAD + chunks(EVENT, end=False), rest, chunks(USAGE_EVENT, DONE_EVENT)]
        )
        client = await stage.client()
        await client.send(post(CHAT_STREAM, b"/v1/abort"))
        await client.read_until(EVENT)
        client.reset()
        if drained:
            await eventually(lambda: not stage.plane._connections)
            assert not stage.counters.charges
        else:
            await stage.settled(1)
        rest.set()
        await stage.settled(1)
        (charge,) = stage.counters.charges
        assert (charge.tokens == 12) is drained  # as its last event says


FACTS = UpstreamFacts(output_max=50, output_min=TokenCounts(16), output_default=TokenCounts(30))


@pytest.mark.parametrize(("stated", "held"), [(9_000, 50), (5, 16), (20, 20), (None, 30)])
async def test_a_hold_by_its_request_goes_by_the_facts_of_its_upstream(stated: int | None, held: int) -> None:
    async with staged(holds=Holds(), of_target={"facts": FACTS}) as stage:
        request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        request |= {} if stated is None else {"max_completion_tokens": stated}
        body = json.dumps({"service": "chat", "request": request}).encode()
        assert (await stage.ask(post(body, b"/.tollkeeper/holds"))).status == 201
        (hold,) = [one for one in stage.counters.holds if one.ttl_ms]
        assert hold.ceiling - hold.read == held
        stage.counters.holds.clear()
