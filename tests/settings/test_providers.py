"""Each file of `deploy/providers` is valid, and sends a chat where its provider takes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.calls.models import ModelTable, named_by
from gateway.core.calls.routes import PARAMETER, TokenCounts, UpstreamFacts, own_path, own_query
from gateway.settings.settings import load
from gateway.settings.slips import slips

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "providers"
CHAT = "/v1/chat/completions"
# What is asked for, the name that is sent, and the whole address.
SENT = {
    "azure": (
        "azure/prod", "prod",
        "https://r.openai.azure.com/openai/deployments/prod/chat/completions?api-version=2024-10-21",
    ),
    "azure-v1": ("azure/prod", "prod", "https://r.openai.azure.com/openai/v1/chat/completions"),
    "deepseek": ("deepseek-chat", "deepseek-chat", f"https://api.deepseek.com{CHAT}"),
    "groq": ("groq/qwen", "qwen", f"https://api.groq.com/openai{CHAT}"),
    "litellm": ("litellm/gpt", "gpt", f"http://127.0.0.1:4000{CHAT}"),
    "llamacpp": ("llamacpp/qwen", "qwen", f"http://127.0.0.1:8080{CHAT}"),
    "mistral": ("mistral-large", "mistral-large", f"https://api.mistral.ai{CHAT}"),
    "openrouter": ("openrouter/a/b", "a/b", f"https://openrouter.ai/api{CHAT}"),
    "perplexity": ("sonar-pro", "sonar-pro", "https://api.perplexity.ai/chat/completions"),
    "portkey": ("portkey/gpt", "gpt", f"http://127.0.0.1:8787{CHAT}"),
    "transformers": ("transformers/qwen", "qwen", f"http://127.0.0.1:8000{CHAT}"),
    "vertex-openai": (
        "google/gemini", "google/gemini",
        "https://eu-1-aiplatform.googleapis.com/v1/projects/p/locations/eu-1/endpoints/openapi/chat/completions",
    ),
    "vllm": ("vllm/qwen", "qwen", f"http://127.0.0.1:8000{CHAT}"),
}  # fmt: skip
# Files with paths of their provider's own: such a path, its model, and the whole address.
OWN = {
    "bedrock": (
        "/model/{+model}/converse", "a.b-v1:0",
        "https://bedrock-runtime.eu-1.amazonaws.com/model/a.b-v1:0/converse",
    ),
    "cohere": ("/v2/rerank", "", "https://api.cohere.com/v2/rerank"),
    "infinity": ("/v1/rerank", "", "http://127.0.0.1:7997/v1/rerank"),
    "jina": ("/v1/rerank", "", "https://api.jina.ai/v1/rerank"),
    "ollama": ("/api/chat", "", "http://127.0.0.1:11434/api/chat"),
    "voyage": ("/v1/rerank", "", "https://api.voyageai.com/v1/rerank"),
    "gemini-openai": (
        "/v1beta/openai/embeddings", "",
        "https://generativelanguage.googleapis.com/v1beta/openai/embeddings",
    ),
    "vertex": (
        "/v1/projects/{project}/locations/{location}/publishers/anthropic/models/{model}:rawPredict", "c",
        "https://eu-1-aiplatform.googleapis.com/v1/projects/p/locations/eu-1/publishers/anthropic/models/c:rawPredict",
    ),
}  # fmt: skip
KEYS = (
    "AZURE_OPENAI_API_KEY", "DEEPSEEK_API_KEY", "GROQ_API_KEY", "MISTRAL_API_KEY", "OPENROUTER_API_KEY",
    "COHERE_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY", "GEMINI_API_KEY", "PERPLEXITY_API_KEY",
    "LITELLM_API_KEY",
)  # fmt: skip

ENVIRON = dict.fromkeys(KEYS, "k") | {
    "AZURE_RESOURCE": "r", "VERTEX_REGION": "eu-1", "VERTEX_PROJECT": "p", "AWS_REGION": "eu-1",
}  # fmt: skip


def test_each_file_is_tried() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == SENT.keys() | OWN.keys()


@pytest.mark.parametrize("name", [*SENT])
def test_a_chat_goes_where_its_provider_takes_it(name: str) -> None:
    settings = load(ENVIRON, FOLDER / f"{name}.yaml")
    assert list(slips(settings, "serve")) == []
    asked, model, address = SENT[name]
    rule = ModelTable(settings.models).find(asked, 1)
    assert rule is not None
    [target] = named_by(rule, asked)
    assert target.model == model
    route = next(one for one in settings.routes if one.path == CHAT)
    upstream = next(one for one in settings.upstreams if one.name == target.upstream)
    assert upstream.base_url + own_path(upstream, route, CHAT, model) + own_query(upstream, "") == address


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("azure", "/openai/deployments/{model}/chat/completions"),
        ("azure-v1", "/openai/v1/chat/completions"),
        ("groq", "/openai/v1/chat/completions"),
        ("openrouter", "/api/v1/chat/completions"),
        ("vertex-openai", "/v1/projects/{project}/locations/{location}/endpoints/openapi/chat/completions"),
    ],
)
def test_a_providers_own_path_leads_to_the_same_address(name: str, path: str) -> None:
    settings = load(ENVIRON, FOLDER / f"{name}.yaml")
    assert list(slips(settings, "serve")) == []
    _, model, address = SENT[name]
    route = next(one for one in settings.routes if one.path == path)
    upstream = next(one for one in settings.upstreams if one.name == route.upstream)
    asked = PARAMETER.sub("v1", path)
    assert upstream.base_url + own_path(upstream, route, asked, model) + own_query(upstream, "") == address


@pytest.mark.parametrize("name", [*OWN])
def test_a_path_of_a_provider_goes_where_it_takes_it(name: str) -> None:
    settings = load(ENVIRON, FOLDER / f"{name}.yaml")
    assert list(slips(settings, "serve")) == []
    path, model, address = OWN[name]
    route = next(one for one in settings.routes if one.path == path)
    upstream = next(one for one in settings.upstreams if one.name == route.upstream)
    asked = path.replace("{+model}", model)
    assert upstream.base_url + own_path(upstream, route, asked, model) == address


# As seen of vLLM 0.32.0 in November 2026, and of those in docs/compatibility.md.
FACTS = {
    "vllm": UpstreamFacts(listed=True, on_cut="stops"),
    "llamacpp": UpstreamFacts(output_default=TokenCounts(0), choices="each", on_cut="stops"),
    "litellm": UpstreamFacts(
        output_min=TokenCounts(None, (("anthropic_messages", 16), ("openai_responses", 16))),
        output_default=TokenCounts(0),
        on_cut="goes_on",
    ),
    "transformers": UpstreamFacts(output_default=TokenCounts(1_024), on_cut="stops"),
    "mistral": UpstreamFacts(maximum="max_tokens", adds=frozenset()),
}


@pytest.mark.parametrize("name", FACTS)
def test_what_is_known_of_an_engine_is_in_its_file(name: str) -> None:
    upstreams = {one.name: one for one in load(ENVIRON, FOLDER / f"{name}.yaml").upstreams}
    assert upstreams[name].facts == FACTS[name]
