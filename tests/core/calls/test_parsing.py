"""What a request asks for is read from it exactly, or the request is refused by field."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.core.calls.call import BLOB_TOKENS, CallRequest, UsageBounds
from gateway.core.calls.output_limits import limit_output
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import ELSEWHERE
from gateway.core.model import Family
from gateway.errors import InvalidRequest

METERS = [
    "openai_chat",
    "openai_completions",
    "openai_responses",
    "openai_embeddings",
    "anthropic_messages",
    "gemini_generate",
    "gemini_stream",
    "gemini_embed",
]


def read(meter: str, body: object, bounds: UsageBounds | None = None, model: str = "gemini-x") -> CallRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    route = Route(("POST",), "/x", "u", "s", Family(meter.partition("_")[0]), meter)
    params = {"model": model} if meter.startswith("gemini") else {}
    return read_call(route, params, raw, bounds or UsageBounds())


def test_read_call_reads_the_turn_of_a_live_session_from_its_document() -> None:
    route = Route(("GET",), "/x", "u", "s", Family("openai"), "openai_realtime")
    document: dict[str, object] = {"model": "é", "input_tokens": 7, "input_beyond": 5, "max_output_tokens": 9}
    call = read_call(route, {}, b"", document=document)
    assert (call.spec.model, call.spec.streamed, call.output_max) == ("é", True, 9)
    assert (call.media.tokens, call.media.text_beyond) == (7, 5)
    written = '{"model":"é","input_tokens":7,"input_beyond":5,"max_output_tokens":9}'.encode()
    assert (call.body.content, call.input_bytes, call.body.rare_bytes) == (written, 70, 2)
    with pytest.raises(InvalidRequest, match="model"):
        read_call(route, {}, b"", document={"model": "m", "Model": "n"})


def refused(meter: str, body: object) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        read(meter, body)
    return caught.value.param


def test_chat() -> None:
    call = read("openai_chat", {"model": "m", "messages": [], "max_tokens": 5, "n": 3})
    assert (call.spec.model, call.output_max, call.spec.choices, call.spec.streamed) == ("m", 5, 3, False)
    assert not call.strip_usage
    assert read("openai_chat", {"model": "m", "max_completion_tokens": 7}).output_max == 7
    assert read("openai_chat", {"model": "m", "max_completion_tokens": 7, "max_tokens": 9}).output_max == 9
    assert read("openai_chat", {"model": "m"}).output_max is None
    nulls = read("openai_chat", {"model": "m", "n": None, "max_tokens": None, "stream": None})
    assert (nulls.output_max, nulls.spec.choices, nulls.spec.streamed) == (None, 1, False)


def test_completions() -> None:
    call = read("openai_completions", {"model": "m", "prompt": "x", "n": 2, "best_of": 5, "max_tokens": 4})
    assert (call.output_max, call.spec.choices) == (4, 5)


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
@pytest.mark.parametrize("meter", ["openai_chat", "anthropic_messages", "gemini_generate"])
def test_a_field_that_sends_a_call_elsewhere_is_refused(name: str, meter: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        read(meter, {"model": "m", name: "x"}, model="m")


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("a", 1),
        (["a"], 1),
        (["a", "b", "c"], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([], 1),
        (None, 1),
        (7, 1),
    ],
)
def test_every_prompt_makes_its_choices(prompt: object, choices: int) -> None:
    assert read("openai_completions", {"model": "m", "prompt": prompt}).spec.choices == choices
    assert read("openai_completions", {"model": "m", "prompt": prompt, "n": 2}).spec.choices == 2 * choices


def test_a_huge_batch_of_prompts_is_not_undercounted() -> None:
    assert read("openai_completions", {"model": "m", "prompt": ["x" * 100] * 20_000}).spec.choices >= 20_000


def test_responses() -> None:
    call = read("openai_responses", {"model": "m", "input": "x", "max_output_tokens": 9, "stream": True})
    assert (call.output_max, call.spec.streamed, call.strip_usage) == (9, True, False)
    assert read("openai_responses", {"model": "m", "background": False}).spec.model == "m"
    assert read("openai_responses", {"model": "m", "background": True}).spec.background
    assert refused("openai_responses", {"model": "m", "background": True, "stream": True}) == "background"


def test_embeddings_make_no_output() -> None:
    call = read("openai_embeddings", {"model": "m", "input": "some text"})
    assert call.output_max == 0
    assert call.input_estimate > 0


def test_messages() -> None:
    call = read("anthropic_messages", {"model": "m", "max_tokens": 9, "stream": True})
    assert (call.output_max, call.spec.streamed, call.strip_usage) == (9, True, False)
    assert call.take_body() == b'{"model":"m","max_tokens":9,"stream":true}'


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("most", ["maxOutputTokens", "max_output_tokens"])
@pytest.mark.parametrize("count", ["candidateCount", "candidate_count"])
def test_gemini_in_both_spellings(config: str, most: str, count: str) -> None:
    call = read("gemini_stream", {"contents": [], config: {most: 6, count: 2}})
    assert (call.spec.model, call.output_max, call.spec.choices, call.spec.streamed) == (
        "gemini-x",
        6,
        2,
        True,
    )
    assert not read("gemini_generate", {}).spec.streamed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"generationConfig": {}, "generation_config": {}}, "generationConfig"),
        (
            {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 2}},
            "generationConfig.maxOutputTokens",
        ),
        (
            {"generationConfig": {"candidateCount": 1, "candidate_count": 2}},
            "generationConfig.candidateCount",
        ),
        ({"GenerationConfig": {}}, "generationConfig"),
        (
            {"generationOutputConfig": {"outputUriPrefix": "gs://b"}},
            "generationOutputConfig.outputUriPrefix",
        ),
        (
            {"generation_output_config": {"output_uri_prefix": "gs://b"}},
            "generation_output_config.output_uri_prefix",
        ),
        (
            {"generationConfig": {"responseFormat": [{"image": {"gcsUri": "gs://b"}}]}},
            "responseFormat.image.gcsUri",
        ),
        ({"generationConfig": {"MaxOutputTokens": 1}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": -1}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 10**9}}, "generationConfig.candidateCount"),
        ({"generationConfig": []}, "generationConfig"),
        (
            b'{"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":2}}',
            "generationConfig.maxOutputTokens",
        ),
    ],
)
def test_gemini_refuses(body: object, param: str) -> None:
    assert refused("gemini_generate", body) == param


@pytest.mark.parametrize(
    ("meter", "field"),
    [
        ("openai_chat", "max_tokens"),
        ("openai_chat", "max_completion_tokens"),
        ("openai_completions", "max_tokens"),
        ("openai_responses", "max_output_tokens"),
        ("anthropic_messages", "max_tokens"),
    ],
)
@pytest.mark.parametrize("value", [-1, 1.5, 1.0, "5", True, [5], {}, 10**9, 10**30])
def test_a_wrong_maximum_is_named(meter: str, field: str, value: object) -> None:
    assert refused(meter, {"model": "m", field: value}) == field


@pytest.mark.parametrize("field", ["n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, 129, 10**9, 10**40, 1.0, "1", False])
def test_a_wrong_number_of_choices_is_named(field: str, value: object) -> None:
    assert refused("openai_completions", {"model": "m", field: value}) == field
    if field == "n":
        assert refused("openai_chat", {"model": "m", field: value}) == field


@pytest.mark.parametrize("meter", [meter for meter in METERS if not meter.startswith("gemini")])
@pytest.mark.parametrize(
    "model",
    [None, "", 7, ["m"], "m" * 257, "a\nb", "a\x00b", "a\u2028b", "m ", " m", "m\u00a0", "m\u200b", "\tm"],
)
def test_a_model_is_required_and_must_be_a_name(meter: str, model: object) -> None:
    assert refused(meter, {"model": model}) == "model"
    assert refused(meter, {}) == "model"


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xef\xbb\xbf{}", '{"model":"m"}'.encode("utf-16"), b"null"]
)
def test_what_is_no_object_is_refused_by_every_meter(meter: str, body: bytes) -> None:
    refused(meter, body)


@pytest.mark.parametrize(
    ("meter", "field", "stated"),
    [
        ("openai_chat", "max_completion_tokens", {"max_tokens": None}),
        ("openai_completions", "max_tokens", {}),
        ("openai_responses", "max_output_tokens", {}),
        ("anthropic_messages", "max_tokens", {}),
        ("gemini_generate", "generationConfig.maxOutputTokens", {"generationConfig": None}),
        ("gemini_generate", "generation_config.maxOutputTokens", {"generation_config": {"topK": 1}}),
        ("gemini_stream", "generationConfig.maxOutputTokens", {}),
    ],
)
def test_a_maximum_is_written_into_a_call_that_states_none(
    meter: str, field: str, stated: dict[str, object]
) -> None:
    call = read(meter, {"model": "gemini-x", **stated})
    limit_output(call, 7)
    sent: Any = json.loads(call.take_body())
    for name in field.split("."):
        sent = sent[name]
    assert (sent, call.output_max) == (7, 7)


@pytest.mark.parametrize(
    ("meter", "stated"),
    [
        ("openai_chat", {"max_tokens": 5}),
        ("anthropic_messages", {"max_tokens": 5}),
        ("openai_embeddings", {}),
        ("gemini_embed", {}),
    ],
)
def test_a_maximum_that_is_stated_stays(meter: str, stated: dict[str, object]) -> None:
    call = read(meter, {"model": "gemini-x", **stated})
    limit_output(call, 77)
    assert json.loads(call.take_body()) == {"model": "gemini-x", **stated}


def test_a_maximum_goes_where_the_meter_reads_it_on_a_route_of_any_family() -> None:
    call = read_call(
        Route(("POST",), "/x", "u", "s", Family("generic"), "gemini_generate"), {"model": "g"}, b"{}"
    )
    limit_output(call, 5)
    assert call.take_body() == b'{"generationConfig":{"maxOutputTokens":5}}'


def test_a_document_is_let_go_once_it_is_sent() -> None:
    call = read("openai_chat", {"model": "m", "x": 1})
    assert call.body.document == {"model": "m", "x": 1}
    assert call.take_body() == b'{"model":"m","x":1}'
    assert (call.body.document, call.body.content) == (None, b"")


@pytest.mark.parametrize(
    ("meter", "stated", "user"),
    [
        ("openai_chat", {"user": "ann"}, "ann"),
        ("openai_completions", {"user": "ann"}, "ann"),
        ("openai_embeddings", {"user": "ann"}, "ann"),
        ("openai_responses", {"user": "ann", "safety_identifier": "bob"}, "bob"),
        ("anthropic_messages", {"metadata": {"user_id": "cy"}}, "cy"),
        ("anthropic_messages", {"user": "ann"}, ""),
        ("openai_chat", {"user": "u" * 129}, ""),
        ("openai_chat", {"user": "a\nb"}, ""),
        ("openai_chat", {"user": 7}, ""),
        ("openai_chat", {}, ""),
    ],
)
def test_a_body_may_name_its_user(meter: str, stated: dict[str, object], user: str) -> None:
    assert read(meter, {"model": "m", **stated}).spec.user == user


@pytest.mark.parametrize(
    ("stated", "models"),
    [
        ({"models": ["a", "b"]}, ("a", "b")),
        ({"models": None}, ()),
        (
            {"fallbacks": ["a", {"model": "b"}, {"c": ["d", "e"]}]},
            ("a", "b", "c", "d", "e"),
        ),
        ({"models": ["a"], "fallbacks": ["b"]}, ("a", "b")),
        ({"fallback_model": "a"}, ("a",)),
        ({"context_window_fallbacks": [{"m": ["a"]}]}, ("m", "a")),
        ({"default_fallbacks": ["a"]}, ("a",)),
    ],
)
def test_every_model_that_may_answer_is_named(stated: dict[str, object], models: tuple[str, ...]) -> None:
    assert read("openai_chat", {"model": "m", **stated}).models_beside == models


@pytest.mark.parametrize(
    ("stated", "models"),
    [
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "a"}]}, ("a",)),
        ({"tools": [{"type": "openrouter:advisor", "parameters": {"model": "a"}}]}, ("a",)),
        ({"tools": [{"type": "x", "list": [{"fallbacks": [{"model": "a"}]}]}]}, ("a",)),
        ({"plugins": [{"models": ["a"], "judge_model": "b"}], "models": ["c"]}, ("c", "a", "b")),
        ({"tool_choice": {"type": "x", "Model": "a"}}, ("a",)),
        ({"helper": {"model": "a"}, "helpers": [{"models": ["b"]}], "draft_model": "c"}, ("a", "b", "c")),
        ({"provider": {"order": ["x"]}, "metadata": {"model": 7}, "user_model": None}, ()),
        ({"response_format": {"json_schema": {"schema": {"properties": {"model": {}}}}}}, ()),
        ({"routing": {"manualMode": {"modelName": "a"}, "x": {"model_name": "b"}}}, ("a", "b")),
        ({"generationConfig": {"x": {"model": "a"}, "responseSchema": {"model": "b"}}}, ("a",)),
        ({"tools": [{"type": "x", "model": None}]}, ()),
        ({"tools": [{"type": "function", "function": {"parameters": {"model": {}}}}]}, ()),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"examples": [{"model": 1}]}}]}, ()),
        ({"tools": [{"name": "f", "input_schema": {"properties": {"model": {"type": "string"}}}}]}, ()),
        ({"tools": [{"type": "tool_search", "parameters": {"properties": {"model": {}}}}]}, ()),
        ({"tools": [{"functionDeclarations": [{"parametersJsonSchema": {"model": {}}}]}]}, ()),
    ],
)
def test_a_model_of_a_tool_or_plugin_may_answer(stated: dict[str, object], models: tuple[str, ...]) -> None:
    assert read("openai_chat", {"model": "m", **stated}).models_beside == models


@pytest.mark.parametrize(
    ("meter", "name"),
    [
        *((meter, "tools") for meter in ("openai_chat", "openai_responses", "anthropic_messages")),
        ("gemini_generate", "tools"), ("gemini_stream", "tools"), ("gemini_embed", "requests"),
        ("openai_chat", "plugins"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [{"googleSearch": {}}, {}, [[{"googleSearch": {}}]], ["x"], "x", 0])
def test_a_list_of_objects_in_another_shape_is_refused(meter: str, name: str, wrong: object) -> None:
    """A lenient upstream takes one object for a list of it, in which nothing was read here."""
    assert refused(meter, {"model": "m", name: wrong} if "gemini" not in meter else {name: wrong}) == name


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize(
    ("name", "param"),
    [
        *((name, name) for name in ("routingConfig", "routing_config", "modelConfig", "model_config")),
        ("RoutingConfig", "routingConfig"), ("modelSelectionConfig", "modelSelectionConfig"),
    ],
)  # fmt: skip
def test_a_config_that_chooses_a_model_is_refused(config: str, name: str, param: str) -> None:
    body = {config: {name: {"manualMode": {"modelName": "gemini-2.5-pro"}}}}
    found = refused("gemini_generate", body)
    assert found is not None
    assert found.partition(".")[2] == param


def test_embeddings_of_prompts_are_prompts() -> None:
    def choices(body: dict[str, object]) -> int:
        return read("openai_completions", {"model": "m", "n": 2, **body}).spec.choices

    assert choices({"prompt_embeds": ["AAAA"] * 20}) == 40
    assert choices({"prompt_embeds": ["AAAA"] * 20, "prompt": ["a", "b"]}) == 44
    assert choices({"prompt_embeds": "AAAA"}) == choices({"prompt": "a"}) == choices({}) == 2


@pytest.mark.parametrize(
    ("meter", "name"),
    [
        ("openai_chat", "max_tokens"), ("openai_chat", "max_completion_tokens"),
        ("openai_completions", "max_tokens"), ("openai_responses", "max_output_tokens"),
        ("anthropic_messages", "max_tokens"), ("gemini_generate", "maxOutputTokens"),
        ("gemini_stream", "max_output_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zero", ["0", "-0"])
def test_a_maximum_of_0_is_sent_as_1_where_a_hold_binds(meter: str, name: str, zero: str) -> None:
    """Ollama reads 0 as no limit."""
    said = f'{{"{name}":{zero}}}' if "gemini" not in meter else f'{{"generationConfig":{{"{name}":{zero}}}}}'
    call = read(meter, b'{"model":"m",' + said[1:].encode() if "gemini" not in meter else said.encode())
    assert call.output_max == 1
    limit_output(call, 77)
    assert f'"{name}":1' in call.take_body().decode()


def test_a_maximum_of_0_beside_another_is_sent_as_1() -> None:
    call = read(
        "openai_chat", {"model": "m", "max_tokens": 0, "max_completion_tokens": 9, "max_tool_calls": 0}
    )
    limit_output(call, 77)
    assert (call.output_max, call.body.document) == (
        9,
        {"model": "m", "max_tokens": 1, "max_completion_tokens": 9, "max_tool_calls": 0},
    )


def test_a_stored_prompt_is_an_object() -> None:
    assert read("openai_responses", {"model": "m", "prompt": {"id": "pmpt_1"}}).spec.model == "m"
    assert refused("openai_responses", {"model": "m", "prompt": [{"id": "pmpt_1"}]}) == "prompt"


def test_a_tool_that_cannot_be_looked_through_is_refused() -> None:
    deep: object = {"model": "a"}
    for _ in range(20):
        deep = {"x": deep}
    assert refused("openai_chat", {"model": "m", "tools": [deep]}).startswith("tools.x")
    for wrong in (7, {"a": 1}, [7], "", "a "):
        assert refused("openai_chat", {"model": "m", "tools": [{"model": wrong}]}) == "tools.model"


@pytest.mark.parametrize(
    "stated",
    [
        {"models": {"a": 1}},
        {"models": 7},
        {"models": [7]},
        {"models": [["a"]]},
        {"models": ["a "]},
        {"models": [""]},
        {"models": ["a"] * 65},
        {"models": [{"model": 7}]},
        {"models": [{"model": "m", "fallbacks": ["a"]}]},
        {"models": [{"model": "m", "Model": "a"}]},
        {"models": [{"model": "m", "max_tokens": 9}]},
        {"models": [{"model": "m", "api_base": "http://x"}]},
        {"models": [{"model": "m", "a": ["a"]}]},
        {"models": [{"a": [{"model": "m"}]}]},
        {"models": [{"a": "b"}]},
        {"models": [{"a": [7]}]},
    ],
)
def test_a_list_of_models_that_cannot_be_read_is_refused(stated: dict[str, object]) -> None:
    assert refused("openai_chat", {"model": "m", **stated}) == "models"
    assert refused("openai_chat", {"model": "m", "Models": ["a"]}) == "models"


@pytest.mark.parametrize(
    "body",
    [{"model": "other"}, {"model": "models/other"}, {"model": 7}, {"model": ["gemini-x"]}, {"model": {}}],
)
def test_a_body_may_not_name_another_model_than_its_path(body: dict[str, object]) -> None:
    for meter in ("gemini_generate", "gemini_stream", "gemini_embed"):
        assert refused(meter, body) == "model"
    assert refused("gemini_embed", {"requests": [{"model": "models/gemini-x"}, body]}) == "model"
    assert read("gemini_embed", {"requests": [{"model": "models/gemini-x"}]}).spec.model == "gemini-x"


def test_a_bound_may_be_lower() -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 100"):
        read("openai_chat", {"model": "m", "max_tokens": 101}, UsageBounds(usage_tokens_max=100))


@pytest.mark.parametrize("meter", ["generic", "none"])
def test_a_body_that_is_not_metered_is_not_read(meter: str) -> None:
    route = Route(("POST",), "/x", "u", "s", Family("generic"), meter, units_pointer="/units")
    call = read_call(route, {}, b"\xff\x00 anything")
    assert call.body.content == b"\xff\x00 anything"
    assert call.units_pointer == "/units"
    assert call.input_estimate == 0


# --- the input estimate -----------------------------------------------------------------


def test_text_is_estimated_by_its_size() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "How much?"}]}
    raw = json.dumps(asked, separators=(",", ":")).encode()
    assert read("openai_chat", raw).input_estimate == read("openai_chat", asked).input_estimate
    assert read("openai_chat", raw).input_estimate == -(-len(raw) // 3)


def _base64(beginning: bytes) -> str:
    return base64.b64encode(beginning + bytes(range(256)) * 1_024).decode()


_PNG, _WAV, _PDF = _base64(b"\x89PNG\r\n\x1a\n\0"), _base64(b"RIFF"), _base64(b"%PDF-1.7")
_URL = f"data:image/png;base64,{_PNG}"
_PICTURE = {"type": "image_url", "image_url": {"url": _URL}}
_PDF_URL = f"data:application/pdf;base64,{_PDF}"


def _said(*parts: object) -> dict[str, object]:
    return {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": list(parts)}]}


def _of_anthropic(kind: str, media_type: str, data: str, source: str = "base64") -> dict[str, object]:
    return _said({"type": kind, "source": {"type": source, "media_type": media_type, "data": data}})


def _of_gemini(name: str, data: dict[str, Any]) -> dict[str, object]:
    return {"contents": [{"role": "user", "parts": [{name: data}]}]}


def _response(*items: object) -> dict[str, object]:
    return {"model": "m", "input": [{"role": "user", "content": list(items)}]}


_MEDIA = [
    ("openai_chat", _said(_PICTURE)),
    ("openai_chat", _said({"type": "input_audio", "input_audio": {"data": _WAV, "format": "wav"}})),
    ("openai_chat", _said({"type": "file", "file": {"filename": "a", "file_data": _PDF_URL}})),
    ("openai_responses", _response({"type": "input_image", "image_url": _URL})),
    ("openai_responses", _response({"type": "input_file", "file_data": _PDF_URL})),
    ("openai_responses", {"model": "m", "input": [{"type": "image_generation_call", "result": _PNG}]}),
    ("anthropic_messages", _of_anthropic("image", "image/png", _PNG)),
    ("anthropic_messages", _of_anthropic("document", "application/pdf", _PDF)),
    ("anthropic_messages", _said({"content": [_of_anthropic("image", "IMAGE/PNG", _PNG)["messages"]]})),
    ("gemini_generate", _of_gemini("inlineData", {"mimeType": "image/png", "data": _PNG})),
    ("gemini_generate", _of_gemini("inline_data", {"mime_type": "audio/wav", "data": _WAV})),
]  # fmt: skip
_LETTERS = "aB3d" * 65_536
_TEXT = [
    ("openai_chat", _said({"type": "text", "text": f";base64,{_LETTERS}"})),
    ("openai_chat", _said({"type": "text", "text": _URL})),
    ("openai_chat", {"model": "m", "messages": [{"role": "user", "content": _URL}]}),
    ("openai_chat", _said({"type": "text", "text": "x", "image_url": {"url": _URL}})),
    ("openai_chat", _said({"type": "image_url", "image_url": {"url": _PNG}})),
    ("openai_chat", {"model": "m", "messages": [], "tools": [_PICTURE]}),
    ("openai_completions", {"model": "m", "prompt": _URL}),
    ("openai_embeddings", {"model": "m", "input": [_URL]}),
    ("openai_responses", _response({"type": "function_call_output", "output": _URL})),
    ("openai_responses", _response({"type": "image_url", "image_url": {"url": _URL}})),
    ("anthropic_messages", _of_anthropic("document", "text/plain", _LETTERS, "text")),
    ("anthropic_messages", _of_anthropic("document", "application/pdf", _PDF, "text")),
    ("anthropic_messages", _said({"type": "tool_use", "input": _of_anthropic("image", "image/png", _PNG)})),
    ("gemini_generate", {"contents": [{"parts": [{"functionResponse": {"response": {"data": _PNG}}}]}]}),
    ("gemini_generate", _of_gemini("functionCall", {"args": {"inlineData": {"data": _PNG}}})),
]  # fmt: skip
# At the place of a medium, and not as its type begins.
_BOTH = [
    ("openai_chat", _said({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_LETTERS}"}})),
    ("openai_chat", _said({"type": "image_url", "image_url": {"url": f"data:text/plain;base64,{_PNG}"}})),
    ("gemini_generate", _of_gemini("inlineData", {"mimeType": "text/plain", "data": _PNG})),
    ("anthropic_messages", _of_anthropic("image", "image/png", _LETTERS)),
    ("openai_chat", _of_anthropic("image", "image/png", _PNG)),  # not where this API has a picture
]  # fmt: skip


@pytest.mark.parametrize(("meter", "body"), _MEDIA)
def test_media_where_its_api_takes_it_is_not_taken_for_text(meter: str, body: dict[str, object]) -> None:
    call = read(meter, body)
    assert BLOB_TOKENS <= call.media.tokens <= 4000
    assert call.input_bytes < 400
    assert (call.media.unsure > 300_000) == (_PDF[:9] in json.dumps(body)), "a PDF packs its text"


@pytest.mark.parametrize(("meter", "body"), _TEXT)
def test_what_stands_elsewhere_is_text_whatever_it_says(meter: str, body: dict[str, object]) -> None:
    call = read(meter, body)
    assert call.media.tokens == 0
    assert call.input_bytes > 250_000


@pytest.mark.parametrize(("meter", "body"), _BOTH)
def test_a_medium_that_does_not_begin_as_its_type_is_held_as_text_too(
    meter: str, body: dict[str, object]
) -> None:
    call = read(meter, body)
    assert (call.media.tokens, call.media.count) == (BLOB_TOKENS, 1)
    assert call.input_bytes > 250_000


def test_each_byte_that_is_no_ascii_is_counted() -> None:
    call = read("openai_chat", _said({"type": "text", "text": "a\u00fc\U0001f600\ufffd"}))
    assert call.body.rare_bytes == 2 + 4 + 3


def test_a_large_prompt_is_read() -> None:
    call = read("openai_chat", {"model": "m", "messages": [{"content": 'say "hi" \\ \u00fc ' * 90_000}]})
    assert call.input_estimate > 450_000
