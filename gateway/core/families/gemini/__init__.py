"""Gemini's API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from gateway.core.accounts.spent_answers import SPENT, show_id
from gateway.core.calls.call import CallRequest, MediaPart, MediaPlaces
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import elements, object_at
from gateway.core.families.credit import OF_ALL, PREPAID
from gateway.core.families.family import (
    KEPT_ANSWERS,
    ApiFamily,
    CallKind,
    JobPaths,
    Listing,
    SdkExample,
    UploadRules,
    live_kind,
    target,
)
from gateway.core.families.gemini import answers, calls, interactions, live
from gateway.core.families.gemini.array import ArrayMeter
from gateway.core.families.gemini.calls import BATCHES, EXCLUSIONS, OBJECTS
from gateway.core.families.model_differences import Difference, has_tools, number_outside
from gateway.core.families.openai.calls import read_stored, unit
from gateway.core.families.seals import NOBODY
from gateway.core.model import Family
from gateway.errors import Refusal

NAME = Family("gemini")

_STATUSES = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_TYPED = {
    kind: MediaPart(
        ("data",), "application/pdf" if kind == "document" else kind, ("mime_type",), named=(("uri",),)
    )
    for kind in ("image", "audio", "video", "document")
}


def _shape(*, streamed: bool) -> CallKind:
    return CallKind(
        partial(calls.read_generate, streamed=streamed), answers.DIALECT, "maxOutputTokens",
        object_at("generation_config", "generationConfig"), always_reports=True,
        unframed=ArrayMeter if streamed else None, operation="generate_content",
        numbers=frozenset({"maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count"}),
        media=live.PARTS,
        skips_texts=True,
    )  # fmt: skip


VIDEOS = JobPaths(
    "video",
    "/v1beta/models/{model}:predictLongRunning",
    shown="/v1beta/models/{model}/operations/{id}",
)
# Free paths of stored objects and their parts.
_STORED = {
    "cachedContents": "GET",
    "cachedContents/{id}": "GET DELETE",
    "fileSearchStores": "GET POST",
    "fileSearchStores/{id}": "GET DELETE",
    "fileSearchStores/{id}/operations/{operation}": "GET",
    "fileSearchStores/{id}/documents": "GET",
    "fileSearchStores/{id}/documents/{document}": "GET DELETE",
    "files": "GET",
    "files/{id}": "GET DELETE",
    "files/{id}:download": "GET",
    "files:register": "POST",
    "tunedModels": "GET",
    "interactions/{id}": "GET DELETE",
    "interactions/{id}/cancel": "POST",
}
# Calls of a model, and changes that extend a stored object: the provider bills both.
_UNITS = (
    ("POST", "cachedContents", "gemini_cache"), ("PATCH", "cachedContents/{id}", "gemini_cache_end"),
    ("POST", "fileSearchStores/{id}:importFile", "gemini_stored"),
    ("POST", "interactions", "gemini_interactions"), ("POST", "models/{model}:predict", "gemini_predict"),
)  # fmt: skip


def _routes() -> Iterator[Route]:
    """Yield the routes of Gemini's API."""
    for version in ("v1beta", "v1"):
        for action, meter in (
            ("generateContent", "gemini_generate"), ("streamGenerateContent", "gemini_stream"),
            ("embedContent", "gemini_embed"), ("batchEmbedContents", "gemini_embed"), ("countTokens", "none"),
        ):  # fmt: skip
            service = "" if meter == "none" else NAME
            yield Route(("POST",), f"/{version}/models/{{model}}:{action}", NAME, service, NAME, meter)
        for method, path, meter in _UNITS:
            queries = ("updateMask",) * (method == "PATCH")
            yield Route((method,), f"/{version}/{path}", NAME, NAME, NAME, meter, queries=queries)
        for path, methods in _STORED.items():
            if version == "v1beta" or not path.startswith("files"):  # these belong to OpenAI
                queries = ("alt",) * path.endswith(":download")
                yield Route(tuple(methods.split()), f"/{version}/{path}", NAME, family=NAME, queries=queries)
    for version in ("v1beta", "v1", "v1alpha"):
        path = f"/ws/google.ai.generativelanguage.{version}.GenerativeService.BidiGenerateContent"
        yield Route(("GET",), path, NAME, NAME, NAME, "gemini_live")
    yield Route(("POST",), VIDEOS.path, NAME, "videos", NAME, "gemini_videos")
    yield Route(("GET",), VIDEOS.one, NAME, family=NAME)
    of_uploads = ("upload_id", "upload_protocol", "upload_pass")
    yield Route(("POST",), "/upload/v1beta/files", NAME, family=NAME, queries=of_uploads)
    for path in BATCHES.makers:
        yield Route(("POST",), path, NAME, family=NAME)
    yield Route(("GET",), BATCHES.batches, NAME, family=NAME)
    yield Route(("GET", "DELETE"), BATCHES.one, NAME, family=NAME)
    yield Route(("POST",), BATCHES.cancel, NAME, family=NAME)
    for path in ("models", "models/{id}"):
        yield Route(("GET",), f"/v1beta/{path}", NAME, family=NAME)


# A quota id in Google's form for daily quotas, at which gemini-cli stops.
_SPENT_QUOTA: Final = "TollkeeperSpentPerDay"


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    """Return the body of a refusal in the format of Google's APIs."""
    info: dict[str, object] = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.reason.upper(),
        "domain": "tollkeeper",
        "metadata": show_id(refusal.status, request_id),
    }
    details = [info]
    if refusal.param:
        violation = {"field": refusal.param, "description": refusal.told}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if refusal.policy:
        violation = {"subject": f"{refusal.scope}:{refusal.policy}", "description": refusal.told}
        if refusal.reason in SPENT and not refusal.retry_helps:
            violation["quotaId"] = _SPENT_QUOTA
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]})
    if refusal.retry_after_s is not None:
        delay = f"{refusal.retry_after_s}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    status = _STATUSES.get(refusal.status, "INVALID_ARGUMENT")
    error = {"code": refusal.status, "message": refusal.told, "status": status, "details": details}
    return {"error": error}


# ai.google.dev/gemini-api/docs/thinking, "Thinking levels and budgets", 2026-11-30, and models.dev (f3fc6922, 2026-07-02).
# Gemma 3: 400 by BerriAI/litellm#10313 (tools, 2025-04) and CherryHQ/cherry-studio#3242 (2025-03-12).
_GEMMA_3: Final = ("gemma-3*",)
_BUDGETS: Final = (
    "generationConfig.thinkingConfig.thinkingBudget",
    "generation_config.thinking_config.thinking_budget",
)
_CONFIGS: Final = ("generationConfig", "generation_config")
_SCHEMAS: Final = (
    "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
)  # fmt: skip


def _has_functions_beside(call: CallRequest) -> bool:
    """Return whether a call has functions of its own, and Google's search or the schema of its answer beside them."""
    document = call.body.document or {}
    names = {name for tool in elements(document, "tools") for name in tool}
    if not names & {"functionDeclarations", "function_declarations"}:
        return False
    configs = [config for name in _CONFIGS if isinstance(config := document.get(name), dict)]
    return bool(names & {"googleSearch", "google_search"}) or any(
        config.get(name) for config in configs for name in _SCHEMAS
    )


_DIFFERENCES: Final = (
    *[
        Difference(path[-1], path, (*_GEMMA_3, *models))
        for config, thinking, level in (
            ("generationConfig", "thinkingConfig", "thinkingLevel"),
            ("generation_config", "thinking_config", "thinking_level"),
        )
        for path, models in (
            ((config, thinking), ("gemini-2.0*",)),
            ((config, thinking, level), ("gemini-2*",)),
            ((config, level), ("gemini-2*",)),  # of an interaction
        )
    ],
    # ai.google.dev/gemini-api/docs/thinking, "Thinking budgets": the range of each model; 0 and -1 are no numbers of it.
    *[
        Difference("the thinkingBudget", (), (models,), carries=number_outside(least, most, *_BUDGETS))
        for models, least, most in (
            ("gemini-2.5-pro*", 128, 32_768), ("gemini-2.5-flash-lite*", 512, 24_576), ("gemini-2.5-flash", 1, 24_576),
            ("gemini-2.5-flash-preview*", 1, 24_576),
        )
    ],
    # celeste-python#197, symfony/ai#803, googleapis/python-genai#867: not before Gemini 3 (2026-12-01).
    Difference("search or a schema beside functions", (), ("gemini-2*",), carries=_has_functions_beside),
    *[Difference(name, (name,), _GEMMA_3) for name in ("systemInstruction", "system_instruction")],
    Difference("tools", (), (*_GEMMA_3, "gemini-2.5-flash-image*", "gemini-3.1-flash-image*"), carries=has_tools),
)  # fmt: skip


FAMILY = ApiFamily(
    NAME,
    _refusal,
    credit=(*OF_ALL, PREPAID),
    # Another account refuses them (Wei-Shaw/sub2api PR393, 2026-01-25). Google documents nothing of it.
    differences=_DIFFERENCES,
    seals=dict.fromkeys(("thoughtSignature", "thought_signature", "signature"), NOBODY),
    shapes={
        "gemini_generate": _shape(streamed=False),
        "gemini_stream": _shape(streamed=True),
        "gemini_stored": unit(read_stored),
        "gemini_live": live_kind(live.LIVE, live.GeminiLiveSession),
        "gemini_predict": CallKind(calls.read_predict, answers.PREDICTED, operation="generate_content"),
        "gemini_interactions": CallKind(
            interactions.read_interaction,
            interactions.DIALECT,
            "max_output_tokens",
            object_at("generation_config"),
            always_reports=True,
            keeps=lambda document: KEPT_ANSWERS,
            continued=True,
            operation="generate_content",
            numbers=frozenset({"max_output_tokens"}),
            media=MediaPlaces(
                "input",
                _TYPED,
                inside=frozenset({"content", "result", "summary"}),
                page=258,
                second=live.TOKENS_S,
                frame=live.FRAME_TOKENS,
                paces=frozenset({"processing"}),
            ),
        ),
        "gemini_embed": CallKind(calls.read_embed, answers.DIALECT, operation="embeddings", media=live.PARTS),
        "gemini_videos": CallKind(
            calls.read_video, answers.VIDEO, keeps=lambda document: True, operation="generate_content"
        ),
        "gemini_cache": CallKind(
            calls.read_cache,
            answers.CACHED,
            keeps=lambda document: True,
            continued=True,
            operation="generate_content",
            media=live.PARTS,
            lasts=True,
        ),
        "gemini_cache_end": CallKind(
            calls.read_extension, answers.EXTENDED, operation="generate_content", stores=True, lasts=True
        ),
    },
    routes=tuple(_routes()),
    key_field=("x-goog-api-key", ""),
    target=target(NAME, "https://generativelanguage.googleapis.com", "GEMINI_API_KEY", "x-goog-api-key"),
    prefixes=("/v1beta/", "/ws/google."),
    # Paths of actions on a model: other APIs have colons in names (`ft:…`, `llama3:latest`).
    own_paths=re.compile(r"/v1/models/[^/:]+:(?:\w+(?:Contents?|Tokens)|predict\w*)\Z"),
    spoken_by=b"x-goog-api-client",
    key_query=b"key",
    also=("/v1/models/",),
    # google-genai 3 sends all of its calls there, and files and batches have routes of one version.
    versions=(("/v1/", "/v1beta/"), ("/upload/v1/", "/upload/v1beta/")),
    # A colon separates a name and an action (AIP-136): another action is another path.
    segment="(?:(?!%3[Aa])[^/:])+",
    credentials=(b"x-goog-api-key",),
    # google-genai 3.3.0, and gemini-cli 0.61.
    headers=frozenset(
        b"x-goog-api-client x-gemini-api-privileged-user-id x-goog-upload-protocol x-goog-upload-command "
        b"x-goog-upload-offset x-goog-upload-file-name x-goog-upload-header-content-length "
        b"x-goog-upload-header-content-type".split()
    ),
    withheld_prefixes=(b"x-goog-", b"x-google-"),
    queries={b"api-version": None, b"alt": frozenset({b"json", b"sse"})},
    withheld=frozenset({b"accept"}),
    objects=OBJECTS,
    batches=(BATCHES,),
    jobs=(VIDEOS,),
    uploads=UploadRules(
        "/upload/",
        b"x-goog-upload-url",
        "upload_id",
        b"x-goog-upload-",
        frozenset({b"x-goog-upload-control-url"}),
    ),
    exclusions=EXCLUSIONS,
    models_at="/v1beta/models",
    lists=Listing(
        "models",
        "name",
        "models/",
        shown="displayName",
        each=(("supportedGenerationMethods", ["generateContent", "countTokens"]),),
    ),
    provider="gcp.gemini",
    example=SdkExample(
        "google-genai",
        "gemini-2.5-flash",
        ("gemini",),
        """\
from google import genai

client = genai.Client(api_key="tk_…", http_options={"base_url": "{base}"})
answer = client.models.generate_content(model="{model}", contents="Hello")
print(answer.text)
""",
        "/v1beta/models/{model}:generateContent",
        '{"contents": [{"parts": [{"text": "Hello"}]}]}',
    ),
    # 2,240 at ultra_high; 256 and some 2,048 of crops before (Google's page on media resolution, 2026-11-30).
    pictures={"gemini": 2_304},
    seconds={"gemini": live.TOKENS_S},
    # 2,240 at most for a page, whose own text costs nothing; 1,000 pages are more than a model reads.
    page_text={"gemini": 0},
    contexts={"gemini": 1_048_576, "gemini-1.5-pro": 2_097_152, "gemini-2.0-pro": 2_097_152},
    ceilings={"gemini-1.5": 8_192, "gemini-2.0": 8_192, "gemini-2.5": 65_536},
)
