"""Providers by their own APIs: made answers in the documented shapes, and what each costs by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.billing.price_book import read_price
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.model import Family, Service
from gateway.errors import InvalidRequest
from gateway.settings.settings import load
from tests.core.billing.prices import price_row
from tests.http.fakes import STREAM_HEAD, answer, chunks, post
from tests.http.stage import Answer, Close, Stage, Step, staged

OPENAI = Family("openai")
PROVIDERS = Path(__file__).resolve().parents[2] / "deploy" / "providers"
ENVIRON = dict.fromkeys(("COHERE_API_KEY", "VOYAGE_API_KEY", "JINA_API_KEY", "MISTRAL_API_KEY"), "k")
LINES_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
PRICES: dict[str, dict[str, Any]] = {
    "command-a": {"input": "2.5", "output": "10"},
    "rerank-v3.5": {"search": "0.002"},
    "rerank-2.5": {"input": "0.05"},
    "jina-reranker": {"input": "0.02"},
    "codestral": {"input": "0.3", "output": "0.9"},
    "mistral-ocr": {"page": "0.001"},
    "qwen3": {"input": "1", "output": "2"},
}
BILLED = {
    "billed_units": {"input_tokens": 11, "output_tokens": 7},
    "tokens": {"input_tokens": 80, "output_tokens": 7},
}
SPOKEN: Any = [{"role": "user", "content": "hi"}]
COHERE_EVENTS = (
    {"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant"}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hello"}}}},
    {"type": "content-end", "index": 0},
    {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": BILLED}},
)
DONE = {"model": "qwen3", "done": True, "done_reason": "stop", "prompt_eval_count": 26, "eval_count": 290}
OLLAMA_LINES = (
    {"model": "qwen3", "message": {"role": "assistant", "content": "Hello"}, "done": False},
    {"model": "qwen3", "message": {"role": "assistant", "content": " you"}, "done": False},
    {**DONE, "message": {"role": "assistant", "content": ""}},
)


def whole(said: object) -> list[Step]:
    return [answer(json.dumps(said).encode())]


def events(said: Iterable[object], end: bytes = b"") -> list[Step]:
    return [
        STREAM_HEAD,
        chunks(*(b"data: %b\n\n" % json.dumps(one).encode() for one in said), *([end] if end else [])),
    ]


def lines(said: Iterable[object]) -> list[Step]:
    return [LINES_HEAD, chunks(*(json.dumps(one).encode() + b"\n" for one in said))]


# The provider's file, the path, what is asked, what is answered, and nano-dollars: one of each meter that its
# clients or tests below read; `recorded/made.txt` has the others.
TABLE: dict[str, tuple[str, str, dict[str, Any], list[Step], int]] = {
    # 11 × 2.5 + 7 × 10: what is billed, and no tokens beside it.
    "cohere chat": (
        "cohere",
        "/v2/chat",
        {"model": "command-a", "messages": SPOKEN},
        whole({"id": "1", "finish_reason": "COMPLETE", "message": {"role": "assistant"}, "usage": BILLED}),
        97_500,
    ),
    "cohere stream": (
        "cohere",
        "/v2/chat",
        {"model": "command-a", "messages": SPOKEN, "stream": True},
        events(COHERE_EVENTS),
        97_500,
    ),
    # 3 × 0.002, whatever was held.
    "cohere rerank": (
        "cohere",
        "/v2/rerank",
        {"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"]},
        whole({"id": "1", "results": [], "meta": {"billed_units": {"search_units": 3}}}),
        6_000_000,
    ),
    # 26 × 0.05, and 815 × 0.02.
    "voyage rerank": (
        "voyage",
        "/v1/rerank",
        {"model": "rerank-2.5", "query": "q", "documents": ["a"]},
        whole({"object": "list", "data": [], "model": "rerank-2.5", "usage": {"total_tokens": 26}}),
        1_300,
    ),
    "jina rerank": (
        "jina",
        "/v1/rerank",
        {"model": "jina-reranker", "query": "q", "documents": ["a"]},
        whole({"model": "jina-reranker", "results": [], "usage": {"total_tokens": 815}}),
        16_300,
    ),
    # 20 × 0.3 + 30 × 0.9.
    "mistral fim": (
        "mistral",
        "/v1/fim/completions",
        {"model": "codestral", "prompt": "def", "max_tokens": 64},
        whole({"model": "codestral", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 30}}),
        33_000,
    ),
    # 4 × 0.001.
    "mistral ocr": (
        "mistral",
        "/v1/ocr",
        {"model": "mistral-ocr", "document": {"type": "document_url"}},
        whole({"pages": [], "model": "mistral-ocr", "usage_info": {"pages_processed": 4}}),
        4_000_000,
    ),
    # 26 × 1 + 290 × 2.
    "ollama stream": (
        "ollama", "/api/chat", {"model": "qwen3", "messages": SPOKEN}, lines(OLLAMA_LINES), 606_000,
    ),
}  # fmt: skip


def at_provider(stage: Stage, provider: str) -> None:
    """Serve by a provider's file, whose upstreams are all the stage's own."""
    settings = load(ENVIRON, PROVIDERS / f"{provider}.yaml")
    here = f"http://127.0.0.1:{stage.upstream.port}"
    targets = [replace(one, base_url=here) for one in settings.upstreams]
    stage.plane.renew(settings.routes, targets, stage.plane.limits)
    for number, key in enumerate(("rerank", "ocr", "embeddings", "completions"), 91):
        stage.directory.services[key] = Service(number, key, "subscription")
    for model, price in PRICES.items():
        stage.directory.prices[model] = read_price(price_row(id=5, model=model, **price)).vector


async def ask(stage: Stage, provider: str, path: str, said: dict[str, Any], *script: Step) -> Answer:
    at_provider(stage, provider)
    stage.upstream.scripts += [[*script]] if script else []
    return await stage.ask(post(json.dumps(said).encode(), path.encode()))


def charged(stage: Stage) -> CallFacts:
    [charge] = stage.counters.charges
    facts = read_facts(charge.metadata)
    assert facts is not None
    return facts


@pytest.mark.parametrize("name", [*TABLE])
async def test_an_answer_costs_what_its_report_says(name: str) -> None:
    provider, path, said, script, nano = TABLE[name]
    async with staged() as stage:
        got = await ask(stage, provider, path, said, *script)
        assert got.status == 200, got.body
        facts = charged(stage)
        assert (facts.cost, facts.estimated, facts.unpriced) == (nano, False, "")
        assert json.loads(stage.upstream.received[0].body) == said


REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("cohere", "/v2/rerank", {"model": "rerank-v3.5", "query": "q", "documents": "a"}, 400, "documents"),
    ("cohere", "/v2/classify", {"model": "m"}, 404, "No route"),
    ("cohere", "/v2/chat", {"model": "command-a", "Max_Tokens": 5}, 400, "max_tokens"),
    (
        "mistral",
        "/v1/ocr",
        {"model": "mistral-ocr", "document_annotation_format": {}},
        400,
        "document_annotation",
    ),
    ("mistral", "/v1/agents/completions", {"model": "m"}, 400, "agent_id"),
    ("ollama", "/api/chat", {"model": "qwen3", "options": {"num_predict": -1}}, 400, "num_predict"),
    ("ollama", "/api/pull", {"model": "qwen3"}, 404, "No route"),
]


@pytest.mark.parametrize(("provider", "path", "said", "status", "names"), REFUSED)
async def test_what_is_not_metered_is_refused_by_name(  # noqa: PLR0917  # a row of the table
    stage: Stage, provider: str, path: str, said: dict[str, Any], status: int, names: str
) -> None:
    got = await ask(stage, provider, path, said)
    assert (got.status, names.encode() in got.body) == (status, True)
    assert stage.upstream.received == []


@pytest.mark.parametrize("size", [1, 9, 1 << 16])
async def test_lines_pass_whole_and_the_last_one_once_it_is_charged(size: int) -> None:
    body = b"".join(json.dumps(one).encode() + b"\n" for one in OLLAMA_LINES)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    async with staged() as stage:
        got = await ask(stage, *TABLE["ollama stream"][:3], LINES_HEAD, chunks(*pieces))
        assert (got.body, charged(stage).cost) == (body, 606_000)


async def test_lines_that_break_off_are_charged_by_what_came() -> None:
    cut = chunks(*(json.dumps(one).encode() + b"\n" for one in OLLAMA_LINES[:2]))[: -len(b"0\r\n\r\n")]
    async with staged() as stage:
        got = await ask(stage, *TABLE["ollama stream"][:3], LINES_HEAD, cut, Close())
        assert not got.complete
        assert charged(stage).estimated
        assert 0 < charged(stage).counts[4] < 290


def test_the_model_of_azures_path_is_the_calls() -> None:
    chat = Route(
        ("POST",), "/openai/deployments/{model}/chat/completions", "azure", "chat", OPENAI, "openai_chat"
    )
    params = {"model": "prod"}
    assert read_call(chat, params, b'{"messages":[]}').spec.model == "prod"
    assert read_call(chat, params, b'{"model":"prod","messages":[]}').spec.model == "prod"
    with pytest.raises(InvalidRequest, match="path"):
        read_call(chat, params, b'{"model":"dear","messages":[]}')
    heard = replace(
        chat, path="/openai/deployments/{model}/audio/transcriptions", meter="openai_transcriptions"
    )
    kind = b"multipart/form-data; boundary=b"
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n'
    named = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
    assert read_call(heard, params, named % b"prod" + part + b"--b--\r\n", form=kind).spec.model == "prod"
    for body in (part + b"--b--\r\n", named % b"dear" + part + b"--b--\r\n"):
        with pytest.raises(InvalidRequest) as refused:
            read_call(heard, params, body, form=kind)
        assert refused.value.param == "model"
