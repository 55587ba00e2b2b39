"""Header fields of callers: which ones an upstream gets, by its address and what its configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anthropic
import boto3
import openai
import pytest
from google import genai
from google.genai import types

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.family import ApiFamily
from gateway.core.families.header_fields import OF_BODIES, WITHHELD, is_ended, is_usual, is_withheld
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.http.tally import NAME_CHARS_MAX, NAMES_MAX, Tally
from tests.http.fakes import CHAT, post
from tests.http.routing.test_family_rules import COMPLETIONS, GENERATE, MESSAGES
from tests.http.stage import staged
from tests.http.test_models import chat, paired, rule

MINE: Any = [{"role": "user", "content": "hi"}]

# They choose a tier, a deployment, a model or an account.
CHOICES = (
    b"x-vertex-ai-llm-request-type", b"X-Vertex-AI-LLM-Shared-Request-Type", b"azureml-model-deployment",
    b"extra-parameters", b"x-gateway-model-name", b"x-ms-oai-image-generation-deployment",
    b"X-Amzn-SageMaker-Target-Model", b"x-pass-x-vertex-ai-llm-request-type", b"x_vertex_ai_llm_request_type",
    b"service-tier", b"X_Service_Tier", b"anthropic-service-tier", b"x-openai-service-tier", b"x-model", b"model",
    b"x-target-model", b"x-route", b"x-oai-web-search-eligible",
)  # fmt: skip
OWN = b"x-team: a\r\n"
VENDOR: dict[str, object] = {"headers_pass": frozenset()}


@pytest.mark.parametrize(
    ("more", "gets_any"),
    [
        ({}, True),
        ({"base_url": "http://vllm:8000"}, True),
        ({"base_url": "https://llm.prod.svc.cluster.local"}, True),
        ({"base_url": "https://api.githubcopilot.com", "family": "mcp"}, True),
        ({"base_url": "https://api.openai.com"}, False),
        ({"base_url": "https://ours.openai.azure.com"}, False),
        ({"base_url": "https://llm.example.com"}, False),
        ({"prices": "groq"}, False),
        ({"auth": "google"}, False),
        ({"headers_pass": frozenset()}, False),
        ({"base_url": "https://llm.example.com", "headers_pass": frozenset({"*"})}, True),
    ],
)
def test_a_target_of_a_vendor_gets_no_other_fields_and_ones_own_gets_any(
    more: dict[str, Any], gets_any: bool
) -> None:
    target = UpstreamTarget(**{"name": "up", "base_url": "http://10.0.0.7:8000", **more})
    assert target.other_fields == (frozenset({"*"}) if gets_any else frozenset())


@pytest.mark.parametrize("path", [COMPLETIONS, MESSAGES, GENERATE])
async def test_an_upstream_of_ones_own_gets_all_fields_but_those_that_choose(path: bytes) -> None:
    async with staged() as stage:
        body = CHAT.replace(b'"model":"m"', b'"model":"g"')
        fields = OWN + b"".join(name + b": x\r\n" for name in CHOICES)
        for _ in range(2):  # the second head is known
            assert (await stage.ask(post(body, path, fields))).status == 200
        for received in stage.upstream.received:
            assert received.all(b"x-team") == [b"a"]
            assert not [name for name in CHOICES if received.all(name.lower())]
        assert stage.tally.fields_withheld == {"up": 2 * len(CHOICES)}
        assert stage.tally.withheld_names["up", "azureml-model-deployment"] == 2


async def test_a_vendors_upstream_gets_fields_of_its_apis_clients_and_named_ones() -> None:
    named: dict[str, object] = {"headers_pass": frozenset({"x-vertex-ai-llm-request-type", "x-named"})}
    sent = OWN + b"cookie: c\r\nanthropic-beta: b\r\nX-Named: n\r\nuser-agent: u\r\n"
    sent += b"x-vertex-ai-llm-request-type: shared\r\n"
    for of_target, there in ((VENDOR, []), (named, [b"x-named", b"x-vertex-ai-llm-request-type"])):
        async with staged(of_target=of_target) as stage:
            assert (await stage.ask(post(CHAT, MESSAGES, sent))).status == 200
            received = stage.upstream.received[0]
            others = (b"x-team", b"x-named", b"x-vertex-ai-llm-request-type")
            assert [name for name in others if received.all(name)] == there
            assert not received.all(b"cookie")
            assert (received.all(b"anthropic-beta"), received.all(b"user-agent")) == ([b"b"], [b"u"])
            assert stage.tally.fields_withheld == {"up": 4 - len(there)}


async def test_a_field_of_another_api_does_not_reach_a_vendor() -> None:
    async with staged(of_target=VENDOR) as stage:
        await stage.ask(post(CHAT, COMPLETIONS, b"anthropic-beta: b\r\nopenai-beta: o\r\n"))
        received = stage.upstream.received[0]
        assert (received.all(b"anthropic-beta"), received.all(b"openai-beta")) == ([], [b"o"])


async def test_codexs_and_stainless_fields_reach_a_vendor_by_their_whole_names() -> None:
    sent = b"session_id", b"thread_id", b"conversation_id", b"aoai-evals", b"x-stainless-kotlin-version"
    others = b"x-stainless-workspace-id", b"x-stainless-service-tier", b"x-oai-web-search-eligible"
    async with staged(of_target=VENDOR) as stage:
        fields = b"".join(name + b": x\r\n" for name in sent + others)
        assert (await stage.ask(post(CHAT, COMPLETIONS, fields))).status == 200
        names = {name.lower() for name, _ in stage.upstream.received[0].headers}
        assert names.intersection(sent + others) == set(sent)


async def test_an_upstream_of_ones_own_gets_a_browsers_device() -> None:
    async with staged() as stage:
        await stage.ask(post(CHAT, COMPLETIONS, b"sec-ch-ua-model: x\r\n"))
        assert stage.upstream.received[0].all(b"sec-ch-ua-model") == [b"x"]


async def test_each_target_of_a_model_gets_the_fields_of_its_own_configuration() -> None:
    models = rule("ours", ("up", "m")), rule("theirs", ("other", "m"))
    async with paired(*models, of_other=VENDOR) as pair:
        for model in ("ours", "theirs"):
            assert (await pair.stage.ask(post(chat(model), COMPLETIONS, OWN))).status == 200
        assert pair.stage.upstream.received[0].all(b"x-team") == [b"a"]
        assert not pair.other.received[0].all(b"x-team")
        assert pair.stage.tally.fields_withheld == {"up": 0, "other": 1}


async def test_a_service_gets_its_callers_fields_as_they_came() -> None:
    async with staged(of_target=VENDOR) as stage:
        await stage.ask(post(b"{}", b"/services/search/x", OWN + b"cookie: a=b\r\n"))
        received = stage.upstream.received[0]
        assert (received.all(b"x-team"), received.all(b"cookie")) == ([b"a"], [b"a=b"])


async def test_a_field_that_masks_is_counted_where_it_is_withheld() -> None:
    async with staged() as stage:
        await stage.ask(post(CHAT, COMPLETIONS, b"x-goog-fieldmask: a\r\naccept-encoding: gzip\r\n"))
        assert stage.tally.withheld_names == {("up", "x-goog-fieldmask"): 1}


def test_a_tally_stores_few_names_and_counts_all() -> None:
    tally = Tally()
    for number in range(NAMES_MAX + 9):
        tally.withheld("up", f"{number:03}" + "x" * NAME_CHARS_MAX)
    assert tally.fields_withheld == {"up": NAMES_MAX + 9}
    assert len(tally.withheld_names) == NAMES_MAX
    assert {len(name) for _, name in tally.withheld_names} == {NAME_CHARS_MAX}


# SDKs as they are: openai 3.51.0, anthropic 2.10.0, google-genai 3.3.0 and botocore 1.44.5.


@pytest.fixture
def heard() -> Iterator[tuple[str, set[str]]]:
    """The address of a server that answers by an empty object, and the names of fields that it was sent."""
    names: set[str] = set()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            names.update(name.lower() for name in self.headers)
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", names
    server.shutdown()
    thread.join()
    server.server_close()


def ask_openai(url: str) -> None:
    for client in (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k"),
        openai.AzureOpenAI(azure_endpoint=url, api_key="k", api_version="2024-10-21"),
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        client.vector_stores.create()
        client.responses.parse(model="m", input="hi", timeout=9)


def ask_anthropic(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="k")
    client.messages.create(model="m", max_tokens=1, messages=MINE)
    client.beta.messages.create(model="m", max_tokens=1, messages=MINE, betas=["context-1m-2025-08-07"])
    client.beta.skills.create(files=[("SKILL.md", b"---")])


def ask_genai(url: str) -> None:
    options = types.HttpOptions(base_url=url, timeout=9_000)
    client = genai.Client(api_key="k", http_options=options)
    client.models.generate_content(model="m", contents="hi")


def ask_boto3(url: str) -> None:
    client = boto3.client(
        "bedrock-runtime", endpoint_url=url, region_name="eu-central-1", aws_access_key_id="k",
        aws_secret_access_key="s", aws_session_token="t",  # as it is of nobody
    )  # fmt: skip
    client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "hi"}]}])


# What the gateway says itself, or ends: framing, the key, a signature of another request, time-outs.
_OWN_FIELDS = {"host", "connection", "content-length"}


@pytest.mark.parametrize(
    ("family", "ask", "ended"),
    [
        (FAMILIES[Family("openai")], ask_openai, {"authorization", "api-key"}),
        (FAMILIES[Family("anthropic")], ask_anthropic, {"x-api-key", "authorization"}),
        (FAMILIES[Family("gemini")], ask_genai, {"x-goog-api-key", "x-server-timeout", "accept"}),
        (
            FAMILIES[Family("bedrock")], ask_boto3,
            {
                "authorization", "x-amz-date", "x-amz-security-token", "amz-sdk-invocation-id",
                "amz-sdk-request", "accept",
            },
        ),
    ],
)  # fmt: skip
def test_each_field_that_an_sdk_sends_passes_or_is_the_gateways_own(
    heard: tuple[str, set[str]], family: ApiFamily, ask: Callable[[str], None], ended: set[str]
) -> None:
    url, names = heard
    ask(url)
    passing = {name for name in names if passes(name.encode(), family)}
    assert names - passing <= _OWN_FIELDS | ended
    assert "user-agent" in passing


def passes(name: bytes, family: ApiFamily) -> bool:
    """Whether a vendor's upstream gets a field of a metered call."""
    withheld = is_ended(name) or is_withheld(name, WITHHELD - OF_BODIES | family.withheld)
    return not withheld and (is_usual(name) or name in family.headers)
