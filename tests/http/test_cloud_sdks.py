"""The SDKs of clouds, as they are, with the files of `deploy/providers`: a stub checks what it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import boto3
import pytest
import trustme
from botocore.config import Config
from botocore.exceptions import ClientError
from google import genai
from google.oauth2.credentials import Credentials

from gateway.settings.settings import load
from tests.certificates import issued, trusting
from tests.clouds import PROFILE, REGION, is_signed, token_place
from tests.http.fakes import AUTH, CALLER, STREAM_HEAD, answer, chunks
from tests.http.stage import OVER, Stage, Step, Tls, staged
from tests.http.test_bedrock import CLAUDE, CONVERSED, HEAD, MESSAGE, STREAMED, USAGE, charged

PROVIDERS = Path(__file__).resolve().parents[2] / "deploy" / "providers"
KEY = AUTH.split()[-1].decode()
MINE: Any = [{"role": "user", "content": "hi"}]
SAID: Any = [{"role": "user", "content": [{"text": "hi"}]}]
ANSWERED = {**MESSAGE, "usage": {"input_tokens": 30, "output_tokens": 12}, "stop_reason": "end_turn"}
OK = answer(json.dumps(ANSWERED).encode())
ENVIRON = {"AWS_REGION": REGION, "VERTEX_PROJECT": "ours", "VERTEX_REGION": "eu-1"}


@contextlib.asynccontextmanager
async def served(name: str, credentials: Path, *script: Step) -> AsyncIterator[Stage]:
    """A gateway with the file of a provider, whose upstreams are all the stage's own."""
    settings = load(ENVIRON, PROVIDERS / f"{name}.yaml")
    async with staged(headers=()) as stage:
        here = f"http://127.0.0.1:{stage.upstream.port}"
        targets = [
            replace(one, base_url=here, credentials_file=str(credentials) if one.auth != "header" else "")
            for one in settings.upstreams
        ]
        plane = stage.plane
        plane.renew(settings.routes, targets, plane.limits, models=settings.models)
        for _, one in plane.signers():
            one.renew(time.time())
        stage.upstream.scripts += [[*script]] if script else []
        yield stage


def at(stage: Stage) -> str:
    return f"http{'s' if stage.gate is not None else ''}://127.0.0.1:{stage.port}"


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[str]:
    """The gateway speaks TLS: boto3 sends a key to nobody else. The file of its authority."""
    made, file = trustme.CA(), tmp_path / "authority.pem"
    made.cert_pem.write_to_path(file)
    reset = OVER.set(Tls(issued(tmp_path, made), trusting(made)))
    yield str(file)
    OVER.reset(reset)


def with_boto3(ask: Callable[[Any], Any]) -> Callable[[Stage], Any]:
    def of(stage: Stage) -> Any:
        once = Config(retries={"total_max_attempts": 1})
        return ask(boto3.client("bedrock-runtime", endpoint_url=at(stage), region_name=REGION, config=once))

    return of


def streamed(stage: Stage) -> str:
    client = anthropic.AnthropicBedrock(api_key=KEY, base_url=at(stage), aws_region=REGION, max_retries=0)
    with client.messages.stream(model=CLAUDE, max_tokens=50, messages=MINE) as stream:
        return "".join(stream.text_stream)


CONVERSE: dict[str, Any] = {"modelId": CLAUDE, "messages": SAID, "inferenceConfig": {"maxTokens": 50}}
BODY = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 50, "messages": MINE})
TOLD = {"output": {"message": {"role": "assistant", "content": [{"text": "Hi"}]}}, "stopReason": "end_turn",
        "usage": USAGE, "metrics": {"latencyMs": 5}}  # fmt: skip
BEDROCK: dict[str, tuple[list[Step], Callable[[Stage], Any], object, int]] = {
    "converse": (
        [answer(json.dumps(TOLD).encode())],
        with_boto3(lambda client: client.converse(**CONVERSE)["usage"]["inputTokens"]), 30, 1042,
    ),
    "converse_stream": (
        [HEAD, chunks(*CONVERSED)],
        with_boto3(lambda client: [*map(next, map(iter, client.converse_stream(**CONVERSE)["stream"]))]),
        ["messageStart", *["contentBlockDelta"] * 2, "contentBlockStop", "messageStop", "metadata"], 1042,
    ),
    "invoke_model": (
        [OK],
        with_boto3(lambda client: json.load(client.invoke_model(modelId=CLAUDE, body=BODY)["body"])["id"]),
        "msg_1", 42,
    ),
    "invoke_model_with_response_stream": (
        [HEAD, chunks(*STREAMED)],
        with_boto3(
            lambda client: len(
                [*client.invoke_model_with_response_stream(modelId=CLAUDE, body=BODY)["body"]]
            )
        ),
        5, 42,
    ),
    "anthropic": (
        [OK],
        lambda stage: anthropic.AnthropicBedrock(api_key=KEY, base_url=at(stage), aws_region=REGION)
        .messages.create(model=CLAUDE, max_tokens=50, messages=MINE)
        .id,
        "msg_1", 42,
    ),
    "anthropic stream": ([HEAD, chunks(*STREAMED)], streamed, "Hello", 42),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BEDROCK])
async def test_bedrocks_clients_work_and_what_they_send_is_signed_anew(
    name: str, authority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    file = tmp_path / "aws"
    file.write_text(PROFILE)
    script, ask, expected, tokens = BEDROCK[name]
    async with served("bedrock", file, *script) as stage:
        assert await asyncio.to_thread(ask, stage) == expected
        [sent] = stage.upstream.received
        fields = {field.decode().lower(): value.decode() for field, value in sent.headers}
        assert is_signed("POST", sent.target.decode(), fields, sent.body)
        assert KEY not in str(fields)
        assert charged(stage).total == tokens


async def test_a_refusal_is_an_error_of_boto3s(
    authority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    async with served("bedrock", tmp_path / "none") as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"another"}))
        with pytest.raises(ClientError) as refused:
            await asyncio.to_thread(with_boto3(lambda client: client.converse(**CONVERSE)), stage)
        assert refused.value.response["Error"]["Code"] == "AccessDeniedException"


def of_anthropic(stage: Stage) -> anthropic.AnthropicVertex:
    return anthropic.AnthropicVertex(
        region="us-9", project_id="theirs", access_token=KEY, base_url=f"{at(stage)}/v1", max_retries=0
    )


def of_google(stage: Stage) -> genai.Client:
    return genai.Client(
        vertexai=True, project="theirs", location="us-9", credentials=Credentials(KEY),
        http_options={"base_url": at(stage)},
    )  # fmt: skip


def events(*said: dict[str, object]) -> list[Step]:
    named = [b"event: %b\n" % str(one["type"]).encode() if "type" in one else b"" for one in said]
    return [
        STREAM_HEAD,
        chunks(
            *(
                b"%bdata: %b\n\n" % (name, json.dumps(one).encode())
                for name, one in zip(named, said, strict=True)
            )
        ),
    ]


def vertex_streamed(stage: Stage) -> str:
    with of_anthropic(stage).messages.stream(model="claude-x@1", max_tokens=50, messages=MINE) as stream:
        return "".join(stream.text_stream)


def generated(client: genai.Client, *, stream: bool = False) -> str | None:
    asked: Any = {"model": "gemini-x", "contents": "hi"}
    if not stream:
        return client.models.generate_content(**asked).text
    return "".join(one.text or "" for one in client.models.generate_content_stream(**asked))


GENERATED = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 30, "candidatesTokenCount": 12, "totalTokenCount": 42},
}
STREAM = (
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 30, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}},
    {"type": "message_stop"},
)
VERTEX: dict[str, tuple[list[Step], Callable[[Stage], Any], object, str]] = {
    "anthropic": (
        [OK],
        lambda stage: of_anthropic(stage)
        .messages.create(model="claude-x@1", max_tokens=50, messages=MINE)
        .id,
        "msg_1", "anthropic/models/claude-x@1:rawPredict",
    ),
    "anthropic stream": (
        events(*STREAM), vertex_streamed, "Hello", "anthropic/models/claude-x@1:streamRawPredict",
    ),
    "gemini": (
        [answer(json.dumps(GENERATED).encode())],
        lambda stage: generated(of_google(stage)),
        "Hello", "google/models/gemini-x:generateContent",
    ),
    "gemini stream": (
        events(GENERATED), lambda stage: generated(of_google(stage), stream=True), "Hello",
        "google/models/gemini-x:streamGenerateContent?alt=sse",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*VERTEX])
async def test_vertexs_clients_work_at_our_project_with_our_token(name: str, tmp_path: Path) -> None:
    script, ask, expected, path = VERTEX[name]
    with token_place() as place:
        async with served("vertex", place.account(tmp_path), *script) as stage:
            assert await asyncio.to_thread(ask, stage) == expected
            [sent] = stage.upstream.received
            assert sent.target.decode() == f"/v1/projects/ours/locations/eu-1/publishers/{path}"
            assert sent.all(b"authorization")[0] in {b"Bearer token-1", b"Bearer token-2"}
            assert charged(stage).total == 42
