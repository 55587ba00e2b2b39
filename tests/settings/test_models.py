"""Models of a configuration file, and what upstreams say of their paths, keys and time-outs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from gateway.core.calls.routes import (
    Capacity,
    CapacityLimits,
    ModelRule,
    ModelTarget,
    TokenCounts,
    UpstreamFacts,
    UpstreamTarget,
)
from gateway.errors import SettingError
from gateway.settings.settings import Settings, from_json, load, to_json

AZURE = """
upstreams:
  azure:
    base_url: https://x.example
    family: openai
    path: /openai/deployments/{model}/{operation}?api-version=1
    query: {trace: "on"}
    headers: {api-key: "{key}", x-team: a, X-Whose: "{tenant}"}
    keys: [{env: ONE}, {env: TWO}]
    first_byte_s: 30
    idle_s: 5
    region: eu-1
"""


def loaded(folder: Path, text: str, **environ: str) -> Settings:
    file = folder / "t.yaml"
    file.write_text(textwrap.dedent(text))
    return load(environ, file)


def test_an_upstream_says_what_it_can_take_and_so_do_models_of_it(tmp_path: Path) -> None:
    stated = "capacity: {tokens_per_minute: 9, models: {own: {concurrency: 2}}}"
    settings = loaded(tmp_path, f"upstreams: {{azure: {{base_url: 'http://u', {stated}}}}}")
    assert azure(settings).capacity == Capacity(CapacityLimits(0, 9, 0), (("own", CapacityLimits(0, 0, 2)),))
    assert azure(from_json(to_json(settings))) == azure(settings)


def azure(settings: Settings) -> UpstreamTarget:
    return next(one for one in settings.upstreams if one.name == "azure")


def test_an_upstream_has_paths_keys_and_time_outs_of_its_own(tmp_path: Path) -> None:
    settings = loaded(tmp_path, AZURE, ONE="k1", TWO="k2")
    found = azure(settings)
    assert (found.path, found.query) == (
        "/openai/deployments/{model}/{operation}", (("api-version", "1"), ("trace", "on")),
    )  # fmt: skip
    assert found.told == (("x-whose", "{tenant}"),)
    assert (found.headers, found.keys) == ((("x-team", "a"),), ((("api-key", "k1"),), (("api-key", "k2"),)))
    assert (found.family, found.first_byte_s, found.idle_s, found.region) == ("openai", 30, 5, "eu-1")
    assert found.held == ("upstreams.azure.keys[0] (ONE)", "upstreams.azure.keys[1] (TWO)")
    assert "k1" not in repr(found)
    assert from_json(to_json(settings)) == settings


def test_an_upstream_says_what_it_takes_and_makes(tmp_path: Path) -> None:
    text = """
    upstreams:
      azure:
        base_url: https://x.example
        output_max: 4096
        output_min: 16
        output_default: {openai_completions: 100, openai_chat: 0}
        context: 8192
        maximum: max_tokens
        adds: [stream_options]
        choices: each
        on_cut: goes_on
        cost: reported
        headers_pass: [X-Team, x-vertex-ai-llm-request-type]
      plain: {base_url: https://x.example}
    models:
      - {name: m, targets: [{upstream: azure}], output_max: 50, context: 60}
    """
    settings = loaded(tmp_path, text)
    assert azure(settings).facts == UpstreamFacts(
        4_096, TokenCounts(16), TokenCounts(None, (("openai_completions", 100), ("openai_chat", 0))), 8_192,
        False, "max_tokens", frozenset({"stream_options"}), "each", "goes_on",
    )  # fmt: skip
    assert azure(settings).cost == "reported"
    assert azure(settings).other_fields == {"x-team", "x-vertex-ai-llm-request-type"}
    assert [(one.facts, one.cost) for one in settings.upstreams if one.name == "plain"] == [(None, "book")]
    assert [(one.output_max, one.context) for one in settings.models] == [(50, 60)]
    assert from_json(to_json(settings)) == settings


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("context: read", "context"),
        ("output_max: 0", "output_max"),
        ("output_min: 9, output_max: 8", "azure.output_min is more"),
        ("output_min: {openai_chats: 9}", "output_min"),
        ("adds: [max_tokens]", "adds"),
        ("maximum: max_output_tokens", "maximum"),
        ("context: listed, auth: google", "azure.context: no list"),
        ("headers_pass: ['x team']", "headers_pass"),
        (
            "headers_pass: [x-team, Authorization]",
            r"azure.headers_pass\[1\]: Authorization reaches no upstream",
        ),
        ("headers_pass: [connection]", "connection reaches no upstream"),
        ("headers_pass: [x-forwarded-for]", "x-forwarded-for reaches no upstream"),
        ("headers_pass: [x-goog-fieldmask]", "x-goog-fieldmask reaches no upstream"),
    ],
)
def test_what_no_upstream_can_say_is_refused(tmp_path: Path, facts: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        loaded(tmp_path, f"upstreams: {{azure: {{base_url: 'https://x.example', {facts}}}}}")


def test_an_mcp_server_is_served_by_its_name_and_asked_at_its_whole_address(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "upstreams: {hub: {base_url: 'https://x.example:8443/v2/mcp/', family: mcp}}")
    target = next(one for one in settings.upstreams if one.name == "hub")
    assert (target.base_url, target.path) == ("https://x.example:8443", "/v2/mcp/")
    routes = [one for one in settings.routes if one.upstream == "hub"]
    assert [(one.methods, one.path, one.meter) for one in routes] == [
        (("POST",), "/mcp/hub", "mcp"), (("GET", "DELETE"), "/mcp/hub", "none"),
    ]  # fmt: skip
    assert from_json(to_json(settings)) == settings


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("openai", ("authorization", "Bearer k")),
        ("anthropic", ("x-api-key", "k")),
        ("gemini", ("x-goog-api-key", "k")),
    ],
)
def test_a_key_is_sent_as_its_api_expects_it(tmp_path: Path, family: str, field: tuple[str, str]) -> None:
    (tmp_path / "key").write_text("k\n")
    text = f"""
    upstreams:
      azure: {{base_url: https://x.example, family: {family}, keys: [{{file: {tmp_path}/key}}]}}
    """
    settings = loaded(tmp_path, text)
    assert azure(settings).keys == ((field,),)
    assert str(tmp_path / "key") in dict(settings.secret_files).values()


def test_models_are_read_in_their_order(tmp_path: Path) -> None:
    text = """
    models:
      - name: fast
        targets: [{upstream: openai, model: gpt-4o}, {upstream: gemini}]
        fallback: ["429"]
      - prefix: o/
        targets: [{upstream: openai, model: "*"}]
        organization_id: 7
    """
    assert loaded(tmp_path, text).models == (
        ModelRule(
            "fast", False, (ModelTarget("openai", "gpt-4o"), ModelTarget("gemini", "")),
            frozenset({"429"}), 0, "models[0]",
        ),
        ModelRule("o/", True, (ModelTarget("openai", "*"),), organization_id=7, place="models[1]"),
    )  # fmt: skip


MODEL = "targets: [{upstream: openai}]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"models: [{{name: a, {MODEL}}}, {{name: b, {MODEL}}}, {{name: a, {MODEL}}}]",
            "models[0] and models[2]",
        ),
        (f"models: [{{prefix: a, {MODEL}}}, {{prefix: a, {MODEL}}}]", "both are of the prefix 'a'"),
        (f"models: [{{{MODEL}}}]", "models[0]: expected one of name and prefix"),
        (f"models: [{{name: a, prefix: b, {MODEL}}}]", "models[0]: expected one of name and prefix"),
        (
            "models: [{name: a, targets: [{upstream: gone}]}]",
            "models[0].targets[0]: upstream 'gone' is not one of",
        ),
        (
            "models: [{name: a, targets: [{upstream: openai, model: 'x*'}]}]",
            "belongs to a model with a prefix",
        ),
        ("models: [{name: a, targets: [{upstream: openai}, {upstream: openai}]}]", "is there twice"),
        ("models: [{name: a, targets: []}]", "targets"),
        (f"models: [{{name: a, {MODEL}, fallback: [always]}}]", "fallback"),
        (f"models: [{{name: 'a b', {MODEL}}}]", "name"),
        ("upstreams: {u: {base_url: 'http://u', path: '/x/{deployment}'}}", "no parameter {deployment}"),
        ("upstreams: {u: {base_url: 'http://u', path: '/x/{region}'}}", "has no `region`"),
        ("upstreams: {u: {base_url: 'http://u', path: x}}", "must be a path that begins with /"),
        ("upstreams: {u: {base_url: 'http://u', path: '/x/{model}'}}", "must have {operation} or {path}"),
        ("upstreams: {u: {base_url: 'http://u', path: /a/../b}}", "must not hold"),
        ("upstreams: {u: {base_url: 'http://u', keys: [{env: GONE}]}}", "the variable GONE holds no key"),
        ("upstreams: {u: {base_url: 'http://u', keys: [{env: A, file: b}]}}", "expected one of env and file"),
        ("upstreams: {u: {base_url: 'http://u', headers: {a: '{key}'}}}", "none is there"),
        ("upstreams: {u: {base_url: 'http://u', keys: [{env: K}, {env: K}]}}", "a key is there twice"),
        (
            "upstreams: {u: {base_url: 'http://u', headers: {authorization: x}, keys: [{env: K}]}}",
            "its value comes from `keys`",
        ),
        ("upstreams: {u: {base_url: 'http://u', capacity: {}}}", "upstreams.u.capacity: expected one of"),
        ("upstreams: {u: {base_url: 'http://u', capacity: {concurrency: 0}}}", "concurrency"),
        ("upstreams: {u: {base_url: 'http://u', capacity: {learned: true, concurrency: 1}}}", "learned"),
        (
            "{upstreams: {u: {base_url: 'http://u', path: '/x/{operation}'}}, services: {s: {upstream: u}}}",
            "services.s: the upstream u has a path of its own",
        ),
    ],
)
def test_a_wrong_model_or_upstream_stops_the_start_and_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        loaded(tmp_path, text, K="secret")
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


CLOUD = "upstreams: {azure: {base_url: 'http://u', %s}}"
ROUTED = "\nroutes: [{path: /v1/x, upstream: azure, family: openai%s}]"


def test_an_upstream_says_which_cloud_signs_its_requests(tmp_path: Path) -> None:
    found = azure(loaded(tmp_path, CLOUD % "auth: aws, region: eu-1, credentials_file: /c"))
    assert (found.auth, found.region, found.credentials_file) == ("aws", "eu-1", "/c")
    assert loaded(tmp_path, CLOUD % "auth: google").extras("serve") == {"google": "upstreams.azure.auth"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (CLOUD % "auth: gcp", "auth"),
        (CLOUD % "credentials_file: /c", "credentials_file belongs to an auth of a cloud"),
        (CLOUD % "auth: aws", "region is missing"),
        (CLOUD % "auth: google, keys: [{env: ONE}]", "keys: its credentials come by auth: google"),
        (CLOUD % "auth: google, headers: {Authorization: a}", "headers.Authorization"),
        (CLOUD % "auth: aws, region: eu-1" + ROUTED % "", "signs bodies that a family's meter reads"),
        (CLOUD % "auth: aws, region: eu-1" + "\nservices: {s: {upstream: azure}}", "services.s"),
    ],
)
def test_what_does_not_fit_a_cloud_stops_the_start(said: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=re.escape(why)):
        loaded(tmp_path, said, ONE="k1")
