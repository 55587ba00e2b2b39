"""Requests of Gemini's API: what they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeVar
from unicodedata import normalize
from urllib.parse import unquote

from gateway.core.accounts.upstream_states import OPERATIONS
from gateway.core.billing.vector import AUTO, CACHE_HOUR, IMAGES
from gateway.core.calls.call import TOKENS_ALONE, Body, CallSpec, FieldNames, RequestedUnits, UsageBounds
from gateway.core.calls.storage import STORAGE_S, StorageTime, storage_of
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    choices,
    elements,
    id_in,
    ids_in,
    inner,
    maximum,
    model_in_path,
    model_name,
    refuse_inside,
)
from gateway.core.families.family import (
    BatchPaths,
    BodyIds,
    Exclusions,
    ObjectLists,
    ObjectRules,
    ids_of,
    object_in,
    only_text,
)
from gateway.core.families.references import names
from gateway.errors import InvalidRequest

T = TypeVar("T")

_GENERATE = ControlledNames("model", "generationConfig", "generation_config", *OF_EVERY_FAMILY)
_CACHE = ControlledNames("model", "name", "ttl", "expireTime", "expire_time", *OF_EVERY_FAMILY)
# Fields with the address of a medium: Google would read or write it with the gateway's credential.
_ELSEWHERE = frozenset({"uri", "gcsuri", "fileuri", "storageuri"})
_WRITING = _ELSEWHERE | {"outputuriprefix", "outputgcsuri"}
_EMBED = ControlledNames("model", "requests", *OF_EVERY_FAMILY)
_PREDICT = ControlledNames("instances", "parameters", *OF_EVERY_FAMILY)
_PARAMETERS = ControlledNames("sampleCount", "sampleImageSize", "storageUri")
# Pictures of a prompt without a stated number.
_PICTURES: Final = 4
# Fields by which an upstream chooses another model than that of the path (Vertex AI).
CHOOSING = (
    "routingConfig", "routing_config", "modelConfig", "model_config", "modelSelectionConfig",
    "model_selection_config",
)  # fmt: skip
_OUTPUT_CONFIGS: Final = ("generationOutputConfig", "generation_output_config")
_RESPONSE_FORMATS: Final = ("responseFormat", "response_format")
_GENERATION_CONFIG = ControlledNames(
    "maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count", *CHOOSING
)


def read_generate(
    body: Body, document: Document, params: PathParams, bounds: UsageBounds, *, streamed: bool = False
) -> CallSpec:
    """Read a call of generateContent, or of streamGenerateContent if it is `streamed`."""
    _GENERATE.check(document)
    model, output_max, answers = model_in_path(document, params.get("model")), None, 1
    camel = inner(document, "generationConfig", _GENERATION_CONFIG)
    snake = inner(document, "generation_config", _GENERATION_CONFIG)
    config = _read_field(camel, snake, "generationConfig")
    if any("retrieval" in tool for tool in elements(document, "tools")):  # Vertex AI reads a store by it
        raise InvalidRequest("tools.retrieval is not accepted: its stores are no caller's.", param="tools")
    for place in (document, config or {}):  # google-genai 3.3.0
        for name in (*_OUTPUT_CONFIGS, *_RESPONSE_FORMATS):
            refuse_inside(place.get(name), _WRITING, f"{name}.")
    if config is not None:
        inside = "generationConfig."
        for name in CHOOSING:
            if config.get(name) is not None:
                param = inside + name
                raise InvalidRequest(f"The field {param} is not accepted: name the model.", param=param)
        output_max = _read_field(
            maximum(config, "maxOutputTokens", bounds.usage_tokens_max, inside),
            maximum(config, "max_output_tokens", bounds.usage_tokens_max, inside),
            "generationConfig.maxOutputTokens",
        )
        answers = max(
            choices(config, "candidateCount", bounds.choices_max, inside),
            choices(config, "candidate_count", bounds.choices_max, inside),
        )
        _read_field(
            config.get("candidateCount"), config.get("candidate_count"), "generationConfig.candidateCount"
        )
    return CallSpec(model, streamed, output_max, answers)


def read_embed(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for embeddings, which produce no tokens."""
    _EMBED.check(document)
    return CallSpec(model_in_path(document, params.get("model")), output_max=0)


def read_cache(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read contents that Google caches for later calls. They are read once, and no token is produced.

    Google bills their storage, by the time in `params` (`storage_of`).
    """
    _CACHE.check(document)
    model = document.get("model")
    if not isinstance(model, str) or not model.startswith("models/"):
        raise InvalidRequest(
            "model must be the name of a model, such as models/gemini-2.5-flash.", param="model"
        )
    model = model_name(model.removeprefix("models/"))
    if document.get("name"):
        raise InvalidRequest("The upstream chooses name: leave it out.", param="name")
    return CallSpec(model, output_max=0, units=_stored(storage_of(document, params, STORAGE_S)))


def read_extension(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a new end of cached contents, which costs the time that no earlier call has paid.

    Without a payment in `params` all of the time counts, and the model is unknown. An update mask may name an end that
    the body does not state, which Google may then choose itself: so it counts as the usual one.
    """
    _CACHE.check(document)
    storage = storage_of(document, params, STORAGE_S)
    return CallSpec(params.get("paid_model", ""), output_max=0, units=_stored(storage))


def _stored(storage: StorageTime | None) -> RequestedUnits:
    if storage is None:
        return TOKENS_ALONE
    return RequestedUnits({CACHE_HOUR: storage.token_hours(0)}, storage=storage)


_VIDEO = ControlledNames("model", "instances", "parameters", *OF_EVERY_FAMILY)
_VIDEO_PARAMETERS = ControlledNames("durationSeconds", "sampleCount", "numberOfVideos", "storageUri")
# The longest documented video, for calls that state no length; then the most seconds and videos of a call.
VIDEO_SECONDS, VIDEO_SECONDS_MAX, VIDEOS_MAX = 8, 600, 4


def read_video(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for videos of one prompt. They are made later, and charged by their seconds."""
    _VIDEO.check(document)
    model = model_in_path(document, params.get("model"))
    asked = elements(document, "instances")
    if len(asked) != 1:
        raise InvalidRequest("instances must have one object.", param="instances")
    parameters = inner(document, "parameters", _VIDEO_PARAMETERS) or {}
    _VIDEO_PARAMETERS.check_spelling(parameters, "parameters.")
    refuse_inside([asked, parameters], _ELSEWHERE, "")
    names = "sampleCount", "numberOfVideos"
    videos = max([choices(parameters, name, VIDEOS_MAX, "parameters.") for name in names])
    seconds = maximum(parameters, "durationSeconds", VIDEO_SECONDS_MAX, "parameters.")
    units = RequestedUnits({"video_second": videos * (VIDEO_SECONDS if seconds is None else seconds)})
    return CallSpec(model, output_max=0, choices=videos, units=units, background=True)


def read_predict(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call of `predict`: pictures of prompts, or embeddings of texts."""
    _PREDICT.check(document)
    model, units = model_in_path(document, params.get("model")), TOKENS_ALONE
    instances = elements(document, "instances")
    if not instances or not all(("prompt" in instance) != ("content" in instance) for instance in instances):
        raise InvalidRequest(
            "instances must be a list of objects with a prompt or a content.", param="instances"
        )
    config = inner(document, "parameters", _PARAMETERS) or {}
    _PARAMETERS.check_spelling(config, "parameters.")
    refuse_inside([instances, config], _ELSEWHERE, "")
    drawn = sum("prompt" in instance for instance in instances)
    if drawn:
        count = choices(config, "sampleCount", bounds.choices_max, "parameters.")
        size = config.get("sampleImageSize")
        word = size.lower() if isinstance(size, str) and size.isalnum() else AUTO
        pictures = drawn * (count if "sampleCount" in config else _PICTURES)
        units = RequestedUnits({f"{IMAGES}{word}/{AUTO}": pictures})
    return CallSpec(model, output_max=0, units=units)


def _read_field(camel: T | None, snake: T | None, param: str) -> T | None:
    """Return the value of a field in either spelling of proto3 JSON; `InvalidRequest` for both at once."""
    if camel is not None and snake is not None:
        raise InvalidRequest(f"The field {param} appears twice.", param=param)
    return snake if camel is None else camel


# Which of the higher prices do not apply to a call of Gemini's models.
#
# Its provider writes to caches by itself, so every call may. Enumerations of its JSON may be numbers, and
# both spellings of a name count: a value that is not known rules nothing out.

_PLAIN_TIERS: Final = frozenset({"standard", "flex", "SERVICE_TIER_STANDARD", "SERVICE_TIER_FLEX"})
_TEXTUAL: Final = frozenset(
    {
        "text", "thought", "thoughtSignature", "thought_signature", "functionCall", "function_call",
        "functionResponse", "function_response",
    }
)  # fmt: skip
_FUNCTIONS: Final = frozenset({"functionDeclarations", "function_declarations"})
_KEPT: Final = frozenset({"cachedContent", "cached_content", "previous_interaction_id"})
# Fields by which an interaction asks for more than text.
_SPOKEN: Final = frozenset({"response_modalities", "response_format"})


def _no_media(document: Document, names: FieldNames) -> bool:
    """Return whether a call certainly contains nothing but text and functions."""
    if not _KEPT.isdisjoint(document):
        return False
    tools = document.get("tools")
    own = tools is None or (
        isinstance(tools, list)
        and all(isinstance(tool, dict) and tool.keys() <= _FUNCTIONS for tool in tools)
    )
    said = (document.get(name) for name in ("contents", "systemInstruction", "system_instruction"))
    return own and all(map(_is_text, said)) and only_text(document.get("input"))


def _is_text(value: object) -> bool:
    """Return whether a Gemini content, or each of a list of contents, certainly has text parts alone."""
    if isinstance(value, list):
        return all(map(_is_text, value))
    if not isinstance(value, dict):
        return True
    parts = value.get("parts")
    if not value.keys() <= {"role", "parts"}:
        return False
    return parts is None or (isinstance(parts, list | dict) and all(map(_is_text_part, _listed(parts))))


def _is_text_part(part: object) -> bool:
    if not isinstance(part, dict):
        return True
    for name in ("functionResponse", "function_response"):
        answered = part.get(name)
        if isinstance(answered, dict) and "parts" in answered:
            return False
    return part.keys() <= _TEXTUAL


def _listed(value: list[object] | Document) -> list[object]:
    return value if isinstance(value, list) else [value]


def _no_sound(document: Document, names: FieldNames) -> bool:
    """Return whether a call certainly asks for no sound; an answer is text unless the call says more."""
    configs = _configs(document)
    spoken = "input" in document and any("speech_config" in config for config in configs)
    return not spoken and _SPOKEN.isdisjoint(document) and _answers_by(configs, {"TEXT", "IMAGE"})


def _no_pictures(document: Document, names: FieldNames) -> bool:
    return _SPOKEN.isdisjoint(document) and _answers_by(_configs(document), {"TEXT", "AUDIO"})


def _configs(document: Document) -> list[Document]:
    configs = [document.get(name) for name in ("generationConfig", "generation_config")]
    return [config for config in configs if isinstance(config, dict)]


def _answers_by(configs: list[Document], modalities: set[str]) -> bool:
    """Return whether `modalities` contains all response modalities and formats that a call states, if any."""
    for config in configs:
        for field in ("responseModalities", "response_modalities"):
            asked = config.get(field)
            if asked is not None and not (
                isinstance(asked, list)
                and all(isinstance(modality, str) and modality.upper() in modalities for modality in asked)
            ):
                return False
        for field in _RESPONSE_FORMATS:
            formats = config.get(field)
            if formats is not None and not all(
                isinstance(entry, dict) and all(name.upper() in modalities for name in entry)
                for entry in (formats if isinstance(formats, list) else [formats])
            ):
                return False
    return True


def _no_tier(document: Document, tier: str) -> bool:
    said = [document[name] for name in ("serviceTier", "service_tier") if name in document]
    return all(tier is None or (isinstance(tier, str) and tier in _PLAIN_TIERS) for tier in said)


EXCLUSIONS = Exclusions(
    media=_no_media,
    sound=_no_sound,
    pictures=_no_pictures,
    tier=_no_tier,
    tier_fields=("service_tier", "serviceTier"),
)


# Objects that Gemini's upstreams keep: cached contents, files, file search stores, batches, interactions.
#
# Objects have names, which are their paths; ids number calls of functions, and name interactions. Names of
# fields are compared without case and underscores, as the most lenient reader would.

_NAMES = frozenset({"cachedcontent", "fileuri", "filename", "uri"})
_INTERACTIONS = "interactions"
# The objects whose `id` numbers a call of a tool.
_CALLED = frozenset(
    f"{name}."
    for name in (
        "functionCall", "function_call", "functionResponse", "function_response", "toolCall", "tool_call",
        "toolResponse", "tool_response", "executableCode", "executable_code", "codeExecutionResult",
        "code_execution_result",
    )
)  # fmt: skip
_LISTS = frozenset({"filesearchstorenames", "uris"})
_COLLECTIONS = {
    "cachedContents": CACHE_HOUR, "files": "", "batches": "", "fileSearchStores": "indexed_file", "tunedModels": "",
    "corpora": "", "operations": "", _INTERACTIONS: "",
}  # fmt: skip
_MARK = re.compile(rb'"(?i:(?:file_?)?uri|file_?name|cached_?content)":')
_RESOURCE = re.compile(rf"(?:^|/)((?:{'|'.join(_COLLECTIONS)})/[^/?#:]+)")
# Text that may surround the resource in an unambiguous name.
_BEFORE = re.compile(r"(?:https?://[\w.:-]+/+)?/?(?:[\w-][\w.-]*/)*")
_BEHIND = re.compile(r"(?::download(?:\?alt=media)?)?")
_WEB = re.compile(r"https?://[^\\]*\Z")
_GOOGLE = re.compile(r"googleapis", re.IGNORECASE)  # wherever it stands in a URL, escaped or not


BATCHES = BatchPaths(
    "", "/v1beta/batches",
    {
        "/v1beta/models/{model}:generateContent": "gemini_generate",
        "/v1beta/models/{model}:embedContent": "gemini_embed",
    },
    "batch.inputConfig.requests.requests", after="pageToken",
    makers={
        "/v1beta/models/{model}:batchGenerateContent": "/v1beta/models/{model}:generateContent",
        "/v1beta/models/{model}:asyncBatchEmbedContent": "/v1beta/models/{model}:embedContent",
    },
    download="/download/v1beta/files/{id}:download?alt=media",
)  # fmt: skip


def _created_ids(document: Document) -> Iterator[str]:
    yield from (f"{_INTERACTIONS}/{id_}" for id_ in ids_of(document.get("id")))
    for one in (document, object_in(document, "file")):
        for name in ("name", "uri"):
            value = one.get(name)
            match = _RESOURCE.search(value) if isinstance(value, str) else None
            if match is not None:
                yield match[1]


def _add(name: str, inside: object, holder: Document, place: str, ids: BodyIds) -> bool:
    """Add the ids that a field names to `ids`; return whether the field is known."""
    folded = name.lower().replace("_", "")
    if folded in _NAMES:
        ids.named.append(_normal(id_in(inside, name)))
    elif folded in _LISTS:
        ids.named += map(_normal, ids_in(inside, name))
    elif folded == "previousinteractionid" and isinstance(id_in(inside, name), str):
        ids.named.append(f"{_INTERACTIONS}/{inside}")
    else:
        return name == "id" and place in _CALLED
    return True


def _readings(text: str) -> tuple[str, ...]:
    """Return the names of stored objects in a text, or the text, and the interaction that it may be the id of."""
    return tuple(_RESOURCE.findall(text)) or (text, f"{_INTERACTIONS}/{text}")


def _normal(value: object) -> object:
    """Return the name of a stored object without the URL around it; None for a URL of another site.

    A file may be named by its URL at Google. An ambiguous name, and a value that is no text, is returned
    unchanged.
    """
    if not isinstance(value, str):
        return value
    match = _RESOURCE.search(value)
    if match is not None:
        before, behind = value[: match.start(1)], value[match.end(1) :]
        return match[1] if _BEFORE.fullmatch(before) and _BEHIND.fullmatch(behind) else value
    if _WEB.match(value) and not _GOOGLE.search(normalize("NFKC", unquote(value))):
        return None
    return value


def _chosen(document: Document) -> str | None:
    """Return the field with which a body itself names the object to create; None if it has none.

    Such a name could already belong to another organization.
    """
    for path, one in (("", document), ("file.", object_in(document, "file"))):
        if one.get("name"):
            return f"{path}name"
    return None


# Fields that bodies of stored objects may have. Cached contents can only get another end.
_TAKES: Final = {
    "cachedContents/{}": names("ttl expireTime expire_time"),
    "fileSearchStores": names("displayName display_name embeddingModel embedding_model"),
    "fileSearchStores/{}:importFile": names(
        "fileName file_name customMetadata custom_metadata chunkingConfig chunking_config"
    ),
}
OBJECTS = ObjectRules(
    collections=_COLLECTIONS,
    marks=_MARK,
    add=_add,
    readings=_readings,
    told=_created_ids,
    is_free=lambda name, holder: name == "response" or (name == "result" and "call_id" in holder),
    chosen=_chosen,
    by_path=True,
    takes=_TAKES,
    models=("tunedModels/",),
    lasting=("files/",),
    lists=ObjectLists(
        (
            "/v1beta/files",
            BATCHES.batches,
            *(
                f"/{version}/{one}"
                for version in ("v1beta", "v1")
                for one in ("cachedContents", "fileSearchStores", "tunedModels")
            ),
        ),
        "pageToken", size="pageSize", name="name", fields={BATCHES.batches: "operations"},
        asks={BATCHES.batches: f"&{OPERATIONS}"},
        apart={"": frozenset({"response"}), "metadata": frozenset({"inputConfig", "output"})},
    ),
    makers=frozenset(BATCHES.makers),
)  # fmt: skip
