"""OpenAI's API, which many servers speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from gateway.core.calls.alphabets import CL100K, O200K
from gateway.core.calls.call import BLOB_TOKENS, CallRequest, MediaPart, MediaPlaces
from gateway.core.calls.recordings import SOUND_TOKENS_PER_SECOND
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import elements, object_at
from gateway.core.families.credit import OF_ALL, PREPAID, RECHARGE, begins, equals
from gateway.core.families.family import (
    ApiFamily,
    BatchPaths,
    CallKind,
    JobList,
    JobPaths,
    Listing,
    SdkExample,
    live_kind,
    target,
)
from gateway.core.families.model_differences import (
    Difference,
    has_pictures,
    has_sound,
    has_tools,
    levels_refused,
)
from gateway.core.families.openai import calls, chat, media, mistral, realtime, responses
from gateway.core.families.openai.calls import EXCLUSIONS, OBJECTS, keeps_chat, keeps_response
from gateway.core.families.openai.sockets import ResponseMessages
from gateway.core.families.seals import NOBODY
from gateway.core.metering.stream import OpaqueMeter
from gateway.core.model import Family
from gateway.errors import Refusal

NAME = Family("openai")

_TYPES = {402: "billing_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "quota_exceeded": "insufficient_quota",
    "budget_exceeded": "insufficient_quota",
    "run_exceeded": "insufficient_quota",
    "rate_limited": "rate_limit_exceeded",
    "concurrency_limited": "rate_limit_exceeded",
}

_SOUND = MediaPart(("input_audio", "data"), kind="audio")
_PDF = "application/pdf"
_CHAT_MEDIA = MediaPlaces(
    "messages",
    {
        "image_url": MediaPart(("image_url", "url")),
        "input_audio": _SOUND,
        "file": MediaPart(("file", "file_data"), _PDF, named=(("file", "file_id"), ("file_id",))),
        "document_url": MediaPart(("document_url", "url"), _PDF),  # of Mistral, the others of vLLM
        "audio_url": MediaPart(("audio_url", "url"), "audio"),
        "video_url": MediaPart(("video_url", "url"), "video"),
    },
    second=SOUND_TOKENS_PER_SECOND,
)
_IMAGE = MediaPart(("image_url",))


def _variables(document: Mapping[str, object]) -> object:
    """Return the values that a response gives to the variables of a stored prompt: texts, images and files."""
    prompt = document.get("prompt")
    variables = prompt.get("variables") if isinstance(prompt, dict) else None
    return list(variables.values()) if isinstance(variables, dict) else variables


_RESPONSES_MEDIA = MediaPlaces(
    "input",
    {
        "input_image": _IMAGE, "computer_screenshot": _IMAGE, "input_audio": _SOUND,
        "input_file": MediaPart(("file_data",), _PDF, named=(("file_url",), ("file_id",))),
        "image_generation_call": MediaPart(("result",), kind="image"),
    },
    inside=frozenset({"content", "output"}),
    beside=_variables, second=SOUND_TOKENS_PER_SECOND,
)  # fmt: skip

_SHAPES = {
    "openai_chat": CallKind(
        calls.read_chat,
        chat.DIALECT,
        "max_completion_tokens",
        asks_for_usage=True,
        keeps=keeps_chat,
        skips_texts=True,
        numbers=frozenset({"n", "max_tokens", "max_completion_tokens"}),
        media=_CHAT_MEDIA,
    ),
    "openai_completions": CallKind(
        calls.read_completions,
        chat.DIALECT,
        "max_tokens",
        output_default=16,  # as OpenAI's reference has it, and vLLM
        asks_for_usage=True,
        operation="text_completion",
        numbers=frozenset({"n", "best_of", "max_tokens"}),
    ),
    "openai_responses": CallKind(
        calls.read_responses,
        responses.DIALECT,
        "max_output_tokens",
        keeps=keeps_response,
        continued=True,
        uses="max_tool_calls",
        numbers=frozenset({"max_output_tokens", "max_tool_calls"}),
        media=_RESPONSES_MEDIA,
        messages=ResponseMessages,
        skips_texts=True,
    ),
    "openai_decisions": CallKind(
        calls.read_decisions, responses.DIALECT, operation="generate_content", media=_RESPONSES_MEDIA
    ),
    "openai_embeddings": CallKind(
        calls.read_embeddings,
        chat.DIALECT,
        operation="embeddings",
        media=MediaPlaces(inside=frozenset({"input", "inputs", "content"})),  # of Jina and Voyage
    ),
    "openai_moderations": CallKind(
        calls.read_moderations,
        chat.DIALECT,
        operation="generate_content",
        media=MediaPlaces("input", {"image_url": MediaPart(("image_url", "url"))}),
        unpaid=True,  # OpenAI's help center, as quoted at evolink.ai/en/blog/openai-moderation-api-pricing, 2026-04-29
    ),
    "openai_images": CallKind(
        media.read_images, media.DIALECT, operation="generate_content", main_output="image_output"
    ),
    "openai_image_edits": CallKind(
        media.read_edits,
        media.DIALECT,
        operation="generate_content",
        main_input="image_input",
        main_output="image_output",
        media=MediaPlaces("images", untyped=_IMAGE),
        form=media.EDIT_FORM,
    ),
    "openai_transcriptions": CallKind(
        media.read_heard,
        media.HEARD,
        operation="generate_content",
        main_input="audio_input",
        form=media.HEARD_FORM,
        hear=media.hear,
    ),
    "openai_speech": CallKind(
        media.read_speech,
        media.DIALECT,
        unframed=OpaqueMeter,
        operation="generate_content",
        main_output="audio_output",
    ),
    "openai_videos": CallKind(
        media.read_video,
        media.VIDEO,
        keeps=lambda document: True,
        operation="generate_content",
        form=media.VIDEO_FORM,
    ),
    "openai_realtime": live_kind(realtime.REALTIME, realtime.RealtimeSession),
    # Mistral has this API, but accepts no `stream_options` and always reports its usage.
    "mistral_fim": CallKind(
        calls.read_completions,
        chat.DIALECT,
        "max_tokens",
        always_reports=True,
        operation="text_completion",
        numbers=frozenset({"max_tokens"}),
    ),
    "mistral_ocr": CallKind(media.read_ocr, media.OCR, operation="generate_content"),
    "mistral_agents": CallKind(
        mistral.read_agent,
        chat.DIALECT,
        "max_tokens",
        always_reports=True,
        numbers=frozenset({"n", "max_tokens"}),
        media=_CHAT_MEDIA,
    ),
    "mistral_conversations": CallKind(
        mistral.read_conversation,
        mistral.DIALECT,
        "max_tokens",
        object_at("completion_args"),
        always_reports=True,
        keeps=lambda document: True,
        continued=True,
        numbers=frozenset({"max_tokens"}),
        media=replace(_CHAT_MEDIA, root="inputs"),
    ),
    # vLLM: a list of chats in one call.
    "vllm_chats": CallKind(
        calls.read_chats,
        chat.DIALECT,
        "max_completion_tokens",
        numbers=frozenset({"n", "max_tokens", "max_completion_tokens"}),
        media=_CHAT_MEDIA,
    ),
    "openai_training": calls.unit(calls.read_training),
    "openai_runs": calls.unit(calls.read_run, any_model=True),
    "openai_stored": calls.unit(calls.read_stored),
}


_CALLS = {
    "/v1/chat/completions": "openai_chat", "/v1/completions": "openai_completions",
    "/v1/responses": "openai_responses", "/v1/embeddings": "openai_embeddings",
}  # fmt: skip
BATCHES = BatchPaths("/v1/files", "/v1/batches", _CALLS)
# At Azure and Groq, where lines of a file name the same paths.
AT_AZURE = tuple([BatchPaths(f"{one}/files", f"{one}/batches", _CALLS) for one in ("/openai/v1", "/openai")])


RESPONSES = JobPaths("response", "/v1/responses")
VIDEOS = JobPaths(
    "video", "/v1/videos", "/v1/videos/{id}/remix", "/v1/videos/{id}/content",
    listed=JobList("/v1/videos?order=desc&limit=100", guesses=True),
)  # fmt: skip


# Free paths of stored objects and their parts.
_STORED = {
    "responses/{id}/input_items": "GET",
    "responses/input_tokens": "POST",
    "chat/completions/{id}": "GET POST DELETE",
    "chat/completions/{id}/messages": "GET",
    "conversations": "POST",
    "conversations/{id}": "GET POST DELETE",
    "conversations/{id}/items": "GET POST",
    "conversations/{id}/items/{item}": "GET DELETE",
    "vector_stores": "GET",
    "vector_stores/{id}": "GET DELETE",
    "vector_stores/{id}/files": "GET",
    "vector_stores/{id}/files/{file}": "GET POST DELETE",
    "vector_stores/{id}/files/{file}/content": "GET",
    "vector_stores/{id}/file_batches/{batch}": "GET",
    "vector_stores/{id}/file_batches/{batch}/cancel": "POST",
    "vector_stores/{id}/file_batches/{batch}/files": "GET",
    "containers": "GET",
    "containers/{id}": "GET DELETE",
    "containers/{id}/files": "GET POST",
    "containers/{id}/files/{file}": "GET DELETE",
    "containers/{id}/files/{file}/content": "GET",
    "uploads": "POST",
    "uploads/{id}/parts": "POST",
    "uploads/{id}/complete": "POST",
    "uploads/{id}/cancel": "POST",
    "skills": "GET POST",
    "skills/{id}": "GET DELETE",
    "evals": "GET POST",
    "evals/{id}": "GET POST DELETE",
    "evals/{id}/runs": "GET",
    "evals/{id}/runs/{run}": "GET POST DELETE",
    "evals/{id}/runs/{run}/cancel": "POST",
    "evals/{id}/runs/{run}/output_items": "GET",
    "evals/{id}/runs/{run}/output_items/{item}": "GET",
    "fine_tuning/jobs": "GET",
    "fine_tuning/jobs/{id}": "GET",
    "fine_tuning/jobs/{id}/events": "GET",
    "fine_tuning/jobs/{id}/checkpoints": "GET",
    "fine_tuning/jobs/{id}/cancel": "POST",
    "fine_tuning/jobs/{id}/pause": "POST",
    "fine_tuning/jobs/{id}/resume": "POST",
}
# Paths whose calls are units of a service: the provider bills space, time, searches or training.
_UNITS = (
    ("containers", "containers"), ("vector_stores", "vector_stores"),
    ("vector_stores/{id}/search", "vector_stores"), ("vector_stores/{id}/files", "vector_stores"),
    ("vector_stores/{id}/file_batches", "vector_stores"), ("vector_stores/{id}", "vector_stores"),
)  # fmt: skip
_RUNS = (
    ("fine_tuning/jobs", "fine_tuning", "openai_training"), ("evals/{id}/runs", "evals", "openai_runs"),
)  # fmt: skip


def _routes() -> Iterator[Route]:
    """Yield the routes of OpenAI's API."""
    for path, service in (
        ("chat/completions", "chat"), ("completions",) * 2, ("responses",) * 2, ("embeddings",) * 2,
        ("moderations",) * 2,
    ):  # fmt: skip
        yield Route(("POST",), f"/v1/{path}", NAME, service, NAME, f"openai_{service}")
    for path, service in (("images/generations", "images"), ("audio/speech", "speech")):
        yield Route(("POST",), f"/v1/{path}", NAME, service, NAME, f"openai_{service}")
    yield Route(
        ("GET",), "/v1/realtime", NAME, "realtime", NAME, "openai_realtime", queries=("model", "api-version")
    )
    for path in ("edits", "variations"):
        yield Route(("POST",), f"/v1/images/{path}", NAME, "images", NAME, "openai_image_edits")
    for path in ("transcriptions", "translations"):
        yield Route(("POST",), f"/v1/audio/{path}", NAME, "transcriptions", NAME, "openai_transcriptions")
    for path in ("models", "models/{id}", "models/{+id}"):
        yield Route(("GET",), f"/v1/{path}", NAME, family=NAME)
    yield Route(("GET", "POST"), BATCHES.files, NAME, family=NAME)
    yield Route(("GET", "DELETE"), f"{BATCHES.files}/{{id}}", NAME, family=NAME)
    yield Route(("GET",), f"{BATCHES.files}/{{id}}/content", NAME, family=NAME)
    yield Route(("GET", "POST"), BATCHES.batches, NAME, family=NAME)
    yield Route(("GET",), BATCHES.one, NAME, family=NAME)
    yield Route(("POST",), BATCHES.cancel, NAME, family=NAME)
    yield Route(("GET", "DELETE"), RESPONSES.one, NAME, family=NAME)
    yield Route(("POST",), RESPONSES.cancel, NAME, family=NAME)
    for path in (VIDEOS.path, VIDEOS.remake):
        yield Route(("POST",), path, NAME, "videos", NAME, "openai_videos")
    yield Route(("GET",), VIDEOS.path, NAME, family=NAME)
    yield Route(("GET", "DELETE"), VIDEOS.one, NAME, family=NAME)
    yield Route(("GET",), VIDEOS.results, NAME, family=NAME, queries=("variant",))
    for path, meter in (("responses/compact", "openai_responses"), ("decisions", "openai_decisions")):
        yield Route(("POST",), f"/v1/{path}", NAME, "responses", NAME, meter)
    for path, service, meter in (*((*unit, "openai_stored") for unit in _UNITS), *_RUNS):
        yield Route(("POST",), f"/v1/{path}", NAME, service, NAME, meter)
    for path, methods in _STORED.items():
        yield Route(tuple(methods.split()), f"/v1/{path}", NAME, family=NAME)


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    other = "invalid_request_error" if refusal.status < 500 else "server_error"
    kind = _TYPES.get(refusal.status, other)
    code = _CODES.get(refusal.reason, refusal.reason)
    if code == "insufficient_quota":
        kind = code
    return {"error": {"message": refusal.told, "type": kind, "param": refusal.param, "code": code}}


# Models whose pictures cost no more than usual: OpenAI's own, then those of other makers, whose servers have
# this API.
_USUAL_PICTURES: Final = (
    "gpt-3.5", "gpt-35", "gpt-4", "gpt-5", "gpt-5.1", "gpt-5.2", "gpt-5.3", "gpt-oss", "gpt-realtime",
    "gpt-audio", "chatgpt-4o", "o1", "o3", "o4", "computer-use", "omni-moderation", "text-", "dall-e", "sora",
    "whisper",
    "llama", "meta-llama", "llava", "gemma", "deepseek", "phi-", "nova", "command",
    "aya", "kimi", "moonshot", "glm", "minimax", "internvl", "minicpm", "molmo", "smolvlm", "granite",
    "nemotron", "ernie", "hunyuan", "doubao", "sonar", "falcon",
)  # fmt: skip
# Qwen's have 16,384 tokens of 28 x 28 pixels (cards of Qwen2-VL and its successors), xAI's 1,792 (its page on
# images), and Mistral's a token for 16 x 16 of 1,024 x 1,024 pixels, and one for each row (its page on vision).
_QWEN: Final = ("qwen", "qwq", "qvq")
_MISTRAL: Final = (
    "mistral", "ministral", "magistral", "devstral", "codestral", "pixtral", "mixtral", "voxtral",
    "ag_", "ag:",
)  # fmt: skip
# What models refuse, by LiteLLM's gpt_5_transformation.py and o_series_transformation.py (0296ca0b, 2026-03) and its
# model_prices_and_context_window.json (2026-07-24), and by models.dev (f3fc6922, 2026-07-02).
_GPT_5: Final = (
    "gpt-5", "gpt-5-2*", "gpt-5-mini*", "gpt-5-nano*", "gpt-5-pro*", "gpt-5-codex*", "gpt-5-search*",
)  # fmt: skip
_O_SERIES: Final = ("o1*", "o3*", "o4*")
# GPT-6 as GPT-5: BerriAI/litellm PR39607 (2026-12-01).
_REASONING: Final = (*_O_SERIES, *_GPT_5, "gpt-5.*", "gpt-6*")
# Those of them that cannot do without: others take samplings with the effort `none`, their default.
_ALWAYS_REASONING: Final = (
    *_O_SERIES, *_GPT_5, "gpt-5.1-chat*", "gpt-5.1-codex*", "gpt-5.2-chat*", "gpt-5.2-codex*", "gpt-5.2-pro*",
    "gpt-5.3-codex*", "gpt-5.4-pro*", "gpt-5.5-pro*", "gpt-6*",
)  # fmt: skip
_UNREASONING: Final = ("gpt-3.5*", "gpt-4*", "chatgpt-4o*", "gpt-5-chat*", "gpt-5-search*", "gpt-audio*")
_BLIND: Final = (
    "gpt-3.5*", "gpt-4", "gpt-4-0*", "gpt-4-1106-preview", "gpt-4-turbo-preview", "o3-mini*", "gpt-audio*",
    "gpt-4o-audio*", "gpt-4o-mini-audio*",
)  # fmt: skip
_DEAF: Final = (
    "gpt-3.5*", "gpt-4", "gpt-4-*", "gpt-4.*", "gpt-4o", "gpt-4o-2*", "gpt-4o-mini", "gpt-4o-mini-2*",
    "chatgpt-4o*", "gpt-5*", *_O_SERIES,
)  # fmt: skip
_SCHEMALESS: Final = ("gpt-3.5*", "gpt-4", "gpt-4-*", "gpt-audio*", "gpt-4o-audio*", "gpt-4o-mini-audio*")
# Efforts that models take, by models.dev and its PR2296; asked of the API in enricoros/big-AGI#944 (2026-01-23) and
# #1159 (2026-07-10: `max` since GPT-5.6).
_EFFORTS: Final = {
    "low medium high": "o1* o3 o3-2* o3-mini* o3-pro* o4-mini o4-mini-2* gpt-5-codex* gpt-5.1-codex gpt-5.1-codex-mini*",
    "minimal low medium high": "gpt-5 gpt-5-2* gpt-5-mini* gpt-5-nano*",
    "medium": "o3-deep* o4-mini-deep* gpt-5.1-chat* gpt-5.2-chat*",
    "high": "gpt-5-pro*",
    "none low medium high": "gpt-5.1 gpt-5.1-2*",
    "low medium high xhigh": "gpt-5.1-codex-max* gpt-5.2-codex* gpt-5.3-codex*",
    "medium high xhigh": "gpt-5.2-pro* gpt-5.4-pro* gpt-5.5-pro*",
    # developers.openai.com, pages of the models, 2026-11-30: GPT-6.2 rejects `none`, and 6.1 takes `low` to `max`; of
    # gpt-6-astra CopilotKit PR7191.
    "low medium high xhigh max": "gpt-6-astra* gpt-6.1* gpt-6.2*",
    "none low medium high xhigh": "gpt-5.2 gpt-5.2-2* gpt-5.4 gpt-5.4-2* gpt-5.4-mini* gpt-5.4-nano* gpt-5.5 gpt-5.5-2*",
}


def _draws(call: CallRequest) -> bool:
    return call.meter in {"openai_images", "openai_image_edits"}


def _has_functions_and_effort(call: CallRequest) -> bool:
    """Return whether a chat has functions and says how much to reason."""
    document = call.body.document or {}
    has_effort = document.get("reasoning_effort") not in {None, "none"}
    return has_effort and any(tool.get("type") == "function" for tool in elements(document, "tools"))


def _is_endless(call: CallRequest) -> bool:
    """Return whether a recording may be longer than its bytes say, up to what the model asked for takes."""
    return call.media.sound_beyond > 0


_DIFFERENCES: Final = (
    Difference("reasoning_effort", ("reasoning_effort",), _UNREASONING),
    Difference("reasoning", ("reasoning", "effort"), _UNREASONING),
    *levels_refused(
        "the effort", ("reasoning_effort", "reasoning.effort"), "none minimal low medium high xhigh max", _EFFORTS
    ),
    # enricoros/big-AGI#947: asked of the API, 2026-01-24.
    *[
        Difference("verbosity", path, (*_UNREASONING, *_O_SERIES), plain="medium")
        for path in (("verbosity",), ("text", "verbosity"))
    ],
    Difference("max_tokens", ("max_tokens",), _REASONING),
    # The guide to reasoning, "Limitations", has these fixed: the values that each model takes.
    *[
        Difference(name, (name,), _ALWAYS_REASONING, plain=plain)
        for name, plain in (("temperature", 1), ("top_p", 1), ("logprobs", False))
    ],
    *[
        Difference(name, (name,), _REASONING, plain=plain)
        for name, plain in (("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", None))
    ],
    # openai 3.51.0 says it of o3 and o4-mini, and of `dimensions` below.
    Difference("stop", ("stop",), ("o3*", "o4*", *_GPT_5, "gpt-5.*")),
    *[
        Difference("the format", path, _SCHEMALESS, frozenset({"json_schema"}))
        for path in (("response_format", "type"), ("text", "format", "type"))
    ],
    # developers.openai.com, guide to prompt caching: not of small models. home-assistant/core#161256 and
    # OpenHands PR1345 (gpt-4o-mini, -4.1-mini), SparkyFitness PR2199 (gpt-5.6-luna, 2026-08-21).
    Difference(
        "prompt_cache_retention", ("prompt_cache_retention",), ("gpt-4o*", "gpt-4.1-mini*", "gpt-4.1-nano*", "gpt-5.6-luna*"),
        frozenset({"24h"}),
    ),
    # hermes-agent PR24234 (2026-05-12).
    Difference("a member of include", ("include",), _UNREASONING, frozenset({"reasoning.encrypted_content"})),
    # Vane#1173 (2026-07-20).
    Difference("functions beside reasoning_effort", (), ("gpt-5.6-luna*",), carries=_has_functions_and_effort),
    Difference("pictures", (), _BLIND, carries=has_pictures),
    Difference("sound", (), _DEAF, carries=has_sound),
    Difference("tools", (), ("gpt-5-chat*", "gpt-5-search*"), carries=has_tools),
    Difference("dimensions", ("dimensions",), ("text-embedding-ada-002",)),
    # Sizes, qualities and formats are each one's own, and where they are left out (openai 3.51.0, image_generate_params).
    *[
        Difference("pictures as they are asked for", (), makers, carries=_draws)
        for makers in (("dall-e*",), ("gpt-image*", "chatgpt-image*"))
    ],
    # transcription_create_params of the same.
    Difference(
        "the format", ("response_format",), ("gpt-4o-transcribe*", "gpt-4o-mini-transcribe*"),
        frozenset({"srt", "verbose_json", "vtt"}),
    ),
    Difference("a recording of unknown length", (), ("whisper*",), carries=_is_endless),
)  # fmt: skip


FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes=_SHAPES,
    routes=tuple(_routes()),
    target=target(NAME, "https://api.openai.com", "OPENAI_API_KEY", "authorization", "Bearer "),
    prefixes=("/v1/",),
    shares_paths=True,
    credentials=(b"authorization", b"api-key"),
    queries={b"api-version": None, b"beta": frozenset({b"true"})},
    # openai 3.51.0, Azure's SDKs, Codex 0.171, and clients of OpenRouter and xAI.
    headers=frozenset(
        b"openai-beta x-ms-useragent x-ms-client-request-id semantic-kernel-version originator version "
        b"conversation-id thread-id x-codex-beta-features x-codex-installation-id x-codex-parent-thread-id "
        b"x-codex-turn-metadata x-codex-turn-state x-codex-window-id x-openai-subagent x-openrouter-title "
        b"x-openrouter-categories x-grok-conv-id session_id conversation_id thread_id aoai-evals".split()
    ),
    withheld_prefixes=(b"openai-organization", b"openai-project"),
    key_protocol=b"openai-insecure-api-key.",
    own_session=b"session-id",  # Codex's
    objects=OBJECTS,
    batches=(BATCHES, *AT_AZURE),
    jobs=(RESPONSES, VIDEOS),
    credit=(
        *OF_ALL, *RECHARGE, PREPAID,
        # help.openai.com/en/articles/6614457, 2026-11-30; the last one recorded 2025-06-17.
        *equals(
            429, "code", "credit_balance_exhausted", "organization_usage_limit_exceeded",
            "organization_spend_limit_exceeded", "project_spend_limit_exceeded", "billing_not_active",
        ),
        # OpenAI's pictures; Groq: console.groq.com/docs/spend-limits, 2026-11-30.
        *equals(400, "code", "billing_hard_limit_reached", "blocked_api_access"),
        # Moonshot: forum.moonshot.ai/t/111; recorded 2025-12-29.
        *equals(429, "type", "exceeded_current_quota_error"),
        # xAI: recorded as 429 on 2026-02-23, as 403 on 2026-08-09. The first sentence names the team.
        *(
            begins(
                status, "", "Your newly created team doesn't have any credits",
                r"Your team\b[^.]*\b(?:used all available credits|reached its monthly spending limit)",
            )
            for status in (403, 429)
        ),
    ),
    # Reasoning and compaction are sealed for an organization: another one's account answers 400
    # invalid_encrypted_content (Wei-Shaw/sub2api#2863 and #3038, 2026-06-04; openai 3.51.0). OpenRouter and Gemini
    # put others beside a message of a chat, LiteLLM `thinking_blocks` (BerriAI/litellm#9058), Copilot `reasoning_opaque`
    # (ericc-ch/copilot-api PR152, 2025-11-19). No page says that another account opens them.
    differences=_DIFFERENCES,
    seals=dict.fromkeys((
        "encrypted_content", "reasoning.encrypted", "reasoning_opaque", "redacted_thinking", "signature",
        "thought_signature",
    ), NOBODY),
    exclusions=EXCLUSIONS,
    models_at="/v1/models",
    lists=Listing(
        each=(("object", "model"), ("created", 0), ("owned_by", "tollkeeper")), around=(("object", "list"),)
    ),
    provider="openai",
    example=SdkExample(
        "openai", "gpt-4o-mini", ("gpt", "o1", "o3", "o4"),
        """\
from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key="tk_…")
answer = client.chat.completions.create(
    model="{model}",
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.choices[0].message.content)
""",
        "/v1/chat/completions", '{"model": "{model}", "messages": [{"role": "user", "content": "Hello"}]}',
    ),
    # Base and tiles at most; patches at most, times the model's factor.
    # 10,000 patches of an original since GPT-5.4, times 1.2 since GPT-5.6. Later ones are held as the newest.
    pictures={
        **dict.fromkeys(_USUAL_PICTURES, BLOB_TOKENS), **dict.fromkeys(_QWEN, 16_384),
        **dict.fromkeys(_MISTRAL, 4_160), "grok": 1_792, "gpt-": 12_000, "gpt-5.": 12_000, "codex-mini": 2_642,
        "gpt-4o-mini": 48_169, "gpt-4.1-mini": 2_489, "gpt-4.1-nano": 3_779, "o4-mini": 2_642,
        "gpt-5-mini": 2_489, "gpt-5-nano": 3_779, "gpt-5.4": 10_000, "gpt-5.5": 10_000, "gpt-5.6": 12_000,
        "gpt-6": 12_000, "gpt-image": media.EDITED_TOKENS, "chatgpt-image": media.EDITED_TOKENS,
    },
    # 32 x 32 pixels, times 2.46 at most, the factor of the smallest models (OpenAI's page on images, 2026-11-30).
    patches={
        **dict.fromkeys(("gpt-5.4", "gpt-5.5", "gpt-5.6", "gpt-6"), (32, 246)),
        **dict.fromkeys(_QWEN, (28, 100)), **dict.fromkeys(_MISTRAL, (16, 107)),
    },
    # A token is 100 ms of a caller's sound (OpenAI's guide to costs of the Realtime API, 2026-11-30).
    seconds={"gpt-": SOUND_TOKENS_PER_SECOND, "whisper": SOUND_TOKENS_PER_SECOND},
    # OpenAI bounds a file by its bytes alone (its page on file inputs, 2026-11-30).
    contexts={
        "gpt-4-turbo": 128_000, "gpt-4o": 128_000, "gpt-4.1": 1_047_576, "gpt-5": 1_050_000, "o1": 200_000,
        "o3": 200_000, "o4": 200_000, "gpt-audio": 128_000,
    },
    tokenizers={
        "gpt-3.5": CL100K, "gpt-35": CL100K, "gpt-4": CL100K, "gpt-4o": O200K, "gpt-4.1": O200K,
        "gpt-4.5": O200K, "gpt-5": O200K, "chatgpt-4o": O200K, "o1": O200K, "o3": O200K, "o4": O200K,
        "codex-mini": O200K, "gpt-oss": O200K, "text-embedding-3": CL100K, "text-embedding-ada-002": CL100K,
    },
    ceilings={
        "gpt-3.5": 4_096, "gpt-4": 8_192, "gpt-4-turbo": 4_096, "gpt-4o": 16_384, "gpt-4.1": 32_768,
        "gpt-5": 128_000, "o1": 100_000, "o3": 100_000, "o4": 100_000, "text-embedding": 0,
        "gpt-realtime": 4_096, "gpt-4o-realtime": 4_096, "gpt-4o-mini-realtime": 4_096,
        "gpt-4o-transcribe": 2_000, "gpt-4o-mini-transcribe": 2_000, "whisper": 0,
        "omni-moderation": 0, "text-moderation": 0,
    },
)  # fmt: skip
