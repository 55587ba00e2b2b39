"""Every member of the SDKs' usage types has a row: what it counts as, or why it counts nothing.

The types are found in the locked SDKs, so a member that a newer one adds has no row, and this fails.
"""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import pytest

from gateway.core.billing.price_book import KINDS
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from tests.core.metering.recorded import JSON, SSE, call, frame

# What a member says: a kind of tokens, a tool, or one of these.
TOTAL = "total"  # the sum of others
ANOTHER = "another model"  # tokens of a model within the call, at its price
REST = "rest"  # what others leave of their whole: text
WHOSE = "whose"  # which model or modality the numbers beside it are of
TIER = "tier"
KEPT = "kept"  # it says that another price may have counted, and not which: kept as it came
UNIT = "unit"  # its call is one unit of a service, whatever it says
NO_ROUTE = "no route"  # no route of the gateway answers with this type

_CACHES = {
    "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write",
    "cache_creation_input_tokens": "cache_write", "cache_read_input_tokens": "cache_read",
}  # fmt: skip
MESSAGES = {
    **_CACHES,
    "input_tokens": "input", "output_tokens": "output", "output_tokens_details.thinking_tokens": "reasoning",
    "server_tool_use.web_search_requests": "tools.web_search",
    "server_tool_use.web_fetch_requests": "tools.web_fetch", "service_tier": TIER, "speed": TIER,
    "inference_geo": TIER,
    **{f"iterations.{name}": ANOTHER for name in (*_CACHES, "input_tokens", "output_tokens")},
    "iterations.model": WHOSE, "iterations.type": WHOSE,
    **{f"fallback_credit.status.{name}": KEPT for name in ("type", "reason", "remove_to_redeem")},
}  # fmt: skip
GEMINI = {
    "promptTokenCount": "input", "toolUsePromptTokenCount": "input", "cachedContentTokenCount": "cache_read",
    "candidatesTokenCount": "output", "responseTokenCount": "output", "thoughtsTokenCount": "reasoning",
    "totalTokenCount": TOTAL, "trafficType": TIER, "serviceTier": TIER,
    **{f"{name}TokensDetails.modality": WHOSE for name in ("prompt", "cache", "candidates", "response", "toolUsePrompt")},
    **{f"{name}TokensDetails.tokenCount": "audio_input" for name in ("prompt", "toolUsePrompt")},
    **{f"{name}TokensDetails.tokenCount": "audio_output" for name in ("candidates", "response")},
    "cacheTokensDetails.tokenCount": "tools.cache_audio",
}  # fmt: skip
INTERACTIONS = {
    "total_input_tokens": "input", "total_tool_use_tokens": "input", "total_cached_tokens": "cache_read",
    "total_output_tokens": "output", "total_thought_tokens": "reasoning", "total_tokens": TOTAL,
    "initial_input_tokens": REST, "grounding_tool_count.count": "tools.web_search", "grounding_tool_count.type": WHOSE,
    **{f"{name}_tokens_by_modality.modality": WHOSE for name in ("input", "cached", "output", "tool_use")},
    **{f"{name}_tokens_by_modality.tokens": "audio_input" for name in ("input", "tool_use")},
    "output_tokens_by_modality.tokens": "audio_output", "cached_tokens_by_modality.tokens": "tools.cache_audio",
}  # fmt: skip
CHAT = {
    "prompt_tokens": "input", "completion_tokens": "output", "total_tokens": TOTAL,
    "completion_tokens_details.accepted_prediction_tokens": REST,
    "completion_tokens_details.rejected_prediction_tokens": REST,
    "completion_tokens_details.audio_tokens": "audio_output",
    "completion_tokens_details.reasoning_tokens": "reasoning", "completion_tokens_details.text_tokens": REST,
    "prompt_tokens_details.audio_tokens": "audio_input", "prompt_tokens_details.image_tokens": "image_input",
    "prompt_tokens_details.cache_write_tokens": "cache_write", "prompt_tokens_details.text_tokens": REST,
    "prompt_tokens_details.cached_tokens": "cache_read",
}  # fmt: skip
RESPONSE = {
    "input_tokens": "input", "output_tokens": "output", "total_tokens": TOTAL,
    "input_tokens_details.cached_tokens": "cache_read", "input_tokens_details.cache_write_tokens": "cache_write",
    "input_tokens_details.cache_write_tokens_details.ttl_12h_tokens": "cache_write_1h",
    "input_tokens_details.cache_write_tokens_details.ttl_30m_tokens": REST,
    "output_tokens_details.reasoning_tokens": "reasoning",
}  # fmt: skip
IMAGES = {
    "input_tokens": "input", "output_tokens": "output", "total_tokens": TOTAL,
    "input_tokens_details.image_tokens": "image_input", "input_tokens_details.text_tokens": REST,
    "output_tokens_details.image_tokens": "image_output", "output_tokens_details.text_tokens": REST,
}  # fmt: skip
BESIDE = {
    **{f"image_gen.{name}": REST if "details" in name else ANOTHER for name in IMAGES},
    "image_gen.cached_tokens": REST,
    **{f"image_gen.cached_tokens_details.cached_{name}_tokens": REST for name in ("image", "text")},
    "web_search.num_requests": "tools.web_search",
}  # fmt: skip
SVG = {
    **dict.fromkeys(("input_tokens", "output_tokens", "reasoning_tokens", "total_tokens"), ANOTHER),
    "model": WHOSE,
}  # fmt: skip
HEARD = {
    "seconds": "tools.audio_second", "type": WHOSE, "input_tokens": "input", "output_tokens": "output",
    "total_tokens": TOTAL, "input_token_details.audio_tokens": "audio_input",
    "input_token_details.text_tokens": REST,
}  # fmt: skip
REALTIME = {
    "input_tokens": "input", "output_tokens": "output", "total_tokens": TOTAL,
    "input_token_details.audio_tokens": "audio_input", "input_token_details.image_tokens": "image_input",
    "input_token_details.text_tokens": REST, "input_token_details.cached_tokens": "cache_read",
    "input_token_details.cached_tokens_details.audio_tokens": "tools.cache_audio",
    **{f"input_token_details.cached_tokens_details.{kind}_tokens": REST for kind in ("image", "text")},
    "output_token_details.audio_tokens": "audio_output", "output_token_details.text_tokens": REST,
}  # fmt: skip
SIZES = {
    "totalTokenCount": "input",
    **dict.fromkeys(("audioDurationSeconds", "imageCount", "textCount", "videoDurationSeconds"), REST),
}  # fmt: skip
# By the end of a type's module and its name: the meter that reads it, and its rows.
TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "usage.Usage": ("anthropic_messages", MESSAGES), "message_delta_usage.MessageDeltaUsage": ("anthropic_messages", MESSAGES),
    "beta_usage.BetaUsage": ("anthropic_messages", MESSAGES),
    "beta_message_delta_usage.BetaMessageDeltaUsage": ("anthropic_messages", MESSAGES),
    "interactions.usage.Usage": ("gemini_interactions", INTERACTIONS),
    "types.GenerateContentResponseUsageMetadata": ("gemini_generate", GEMINI),
    "types.UsageMetadata": ("gemini_live", GEMINI), "types.CachedContentUsageMetadata": ("gemini_cache", SIZES),
    "completion_usage.CompletionUsage": ("openai_chat", CHAT), "create_embedding_response.Usage": ("openai_embeddings", CHAT),
    "response_usage.ResponseUsage": ("openai_responses", RESPONSE),
    "beta_response_usage.BetaResponseUsage": ("openai_responses", RESPONSE),
    "decision.Usage": ("openai_responses", RESPONSE),
    "response.ToolUsage": ("tool_usage", BESIDE), "beta_response.ToolUsage": ("tool_usage", BESIDE),
    "images_response.SvgUsage": ("svg_usage", SVG), "ImageGenerationCallSvgUsage": ("svg_item", SVG),
    **{f"{name}.Usage": ("openai_images", IMAGES)
       for name in ("images_response", "image_edit_completed_event", "image_gen_completed_event")},
    **dict.fromkeys(("UsageDuration", "UsageTokens", "transcription_text_done_event.Usage", "transcription_verbose.Usage"), ("openai_transcriptions", HEARD)),
    **dict.fromkeys(("UsageTranscriptTextUsageDuration", "UsageTranscriptTextUsageTokens"), ("openai_realtime", HEARD)),
    "realtime_response_usage.RealtimeResponseUsage": ("openai_realtime", REALTIME),
    # The sum of lines whose own reports are charged.
    "batch_usage.BatchUsage": (UNIT, {}),
    **{name: (UNIT, {}) for name in ("PerModelUsage", "SampleUsage")},
    **{name: (NO_ROUTE, {}) for name in (
        "threads.run.Usage", "run_step.Usage", "token_usage.TokenUsage", "session_usage.SessionUsage",
        "BetaDreamUsage", "BetaManagedAgentsSessionUsage", "BetaManagedAgentsSessionThreadUsage",
        "BetaManagedAgentsSessionUsageSnapshot", "BetaManagedAgentsSpanModelUsage", "BetaAnalyticsUsageMetrics",
    )},
}  # fmt: skip
PACKAGES = ("openai.types", "anthropic.types", "google.genai.types", "google.genai._gaos.types.interactions")


def modules(package: str) -> Iterator[ModuleType]:
    """Yield the modules of a package that may have a member with `usage` in its name."""
    root = importlib.import_module(package)
    place = Path(root.__file__ or "")
    files = sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]
    for file in files:
        parts = file.relative_to(place.parent).with_suffix("").parts if file != place else ()
        # Modules of `admin` report what an account used, and answer no call.
        if "admin" not in parts and "usage" in file.read_text(encoding="utf-8").lower():
            yield importlib.import_module(".".join([package, *parts]))


def models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
        return
    for part in typing.get_args(annotation):
        yield from models(part)


def usage_types() -> dict[str, type[pydantic.BaseModel]]:
    """Return each type of a member whose name has `usage`, by its module and name."""
    found = {}
    for package in PACKAGES:
        for module in modules(package):
            for holder in vars(module).values():
                if not (inspect.isclass(holder) and issubclass(holder, pydantic.BaseModel)):
                    continue
                for name, member in holder.model_fields.items():
                    if "usage" in name.lower():
                        found |= {
                            f"{one.__module__}.{one.__qualname__}": one for one in models(member.annotation)
                        }
    return found


def members(of: type[pydantic.BaseModel], front: str = "") -> Iterator[str]:
    for name, member in of.model_fields.items():
        inner = list(models(member.annotation))
        for one in inner:
            yield from members(one, f"{front}{member.alias or name}.")
        if not inner:
            yield front + (member.alias or name)


FOUND = usage_types()


def row_of(name: str) -> tuple[str, dict[str, str]]:
    """Return the row of the longest name of `TYPES` with which the name of a type ends."""
    ends = [end for end in TYPES if name.endswith(f".{end}")]
    assert ends, f"{name} has no row in TYPES"
    return TYPES[max(ends, key=len)]


def test_every_usage_type_is_found() -> None:
    assert {end for end in TYPES if not any(name.endswith(f".{end}") for name in FOUND)} == set()


@pytest.mark.parametrize("name", FOUND)
def test_every_member_of_a_usage_type_has_a_row(name: str) -> None:
    meter, rows = row_of(name)
    if meter not in {UNIT, NO_ROUTE}:
        assert set(members(FOUND[name])) <= rows.keys()


CASES = sorted(
    {
        (meter, path, row[path])
        for name, kind in FOUND.items()
        for meter, row in [row_of(name)]
        for path in set(members(kind)) & row.keys()
        if row[path] not in {WHOSE, TIER}
    }
)
# Members that are lists, by how their names end, and what an element says beside its numbers.
LISTS: dict[str, dict[str, str]] = {
    "TokensDetails": {"modality": "AUDIO"}, "by_modality": {"modality": "audio"},
    "grounding_tool_count": {"type": "google_search"}, "iterations": {"type": "advisor_message", "model": "m"},
}  # fmt: skip
# Numbers of a report in which the member stands: a part is within its whole.
USUAL = {
    "anthropic_messages": {"input_tokens": 100, "output_tokens": 50},
    "gemini_generate": {"promptTokenCount": 100, "candidatesTokenCount": 50},
    "gemini_live": {"promptTokenCount": 100, "responseTokenCount": 50},
    "gemini_interactions": {"total_input_tokens": 100, "total_output_tokens": 50},
    "gemini_cache": {},
    "openai_chat": {"prompt_tokens": 100, "completion_tokens": 50},
    "openai_embeddings": {"prompt_tokens": 100},
}
PRESENT = {"input_tokens": 100, "output_tokens": 50}
# Reports that stand beside `usage`, and the meters that read them.
READ_BY = {"tool_usage": "openai_responses", "svg_usage": "openai_images", "svg_item": "openai_responses"}


def report_with(meter: str, path: str, count: int) -> dict[str, Any]:
    """Return a report of the meter that says `count` at `path`, in a list where the API has one."""
    usual = {} if path == "seconds" or meter in READ_BY else PRESENT
    usage: dict[str, Any] = dict(USUAL.get(meter, usual))
    *places, last = path.split(".")
    holder = usage
    for place in places:
        element = next((dict(said) for end, said in LISTS.items() if place.endswith(end)), None)
        inner: dict[str, Any] = element or {}
        holder[place] = inner if element is None else [inner]
        holder = inner
    holder[last] = count
    return usage


def read(meter: str, usage: dict[str, Any]) -> Meter:
    """Return the meter that has read an answer with this report, at the place where its API has it."""
    answer: dict[str, Any] = {"type": "message", "status": "completed", "usage": usage}
    if meter in {"tool_usage", "svg_usage"}:
        answer |= {"usage": PRESENT, meter: {**usage, "model": "m"} if meter == "svg_usage" else usage}
    elif meter == "svg_item":
        item = {"type": "image_generation_call", "svg_usage": {**usage, "model": "m"}}
        answer |= {"usage": PRESENT, "output": [item]}
    elif meter.startswith("gemini") and meter != "gemini_interactions":
        answer = {"usageMetadata": usage}
    kind = READ_BY.get(meter, meter)
    live = kind in {"openai_realtime", "gemini_live"}
    made = make_meter(call(kind, streamed=live), 200, SSE if live else JSON)
    if kind == "openai_realtime":
        answer = {"type": "response.done", "response": {"status": "completed", "usage": usage}}
        if "type" in usage or "seconds" in usage:
            answer = {"type": "conversation.item.input_audio_transcription.completed", "usage": usage}
    made.feed(frame(answer)) if live else made.whole(json.dumps(answer).encode())
    return made


@pytest.mark.parametrize(("meter", "path", "kind"), CASES)
def test_a_member_of_a_report_counts_as_its_row_says(meter: str, path: str, kind: str) -> None:
    made = read(meter, report_with(meter, path, 7))
    detail = made.detail
    counts = dict(zip(KINDS, detail.counts(made.usage()), strict=True))
    assert (detail.unknown != b"") == (kind == KEPT) or kind == TOTAL
    if kind.startswith("tools."):
        assert detail.tools == {kind.removeprefix("tools."): 7}
    elif kind == ANOTHER:
        assert len(detail.beside) == 1
    elif kind in {"input", "output"}:  # a part of either, or all of it
        assert counts[kind] in {7, 107, 57}
    elif kind in {detail.main_input, detail.main_output}:  # with all that the report does not split
        assert counts[kind] == {"audio_input": 100, "image_output": 50}[kind]
    elif kind in KINDS:
        assert counts[kind] == 7
