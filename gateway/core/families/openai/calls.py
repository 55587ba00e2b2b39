"""Requests of OpenAI's APIs: what they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gateway.core.calls.call import Body, CallSpec, FieldNames, RequestedUnits, UsageBounds
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    choices,
    flag,
    inner,
    maximum,
    model_in_path,
    model_name,
    stated_user,
)
from gateway.core.families.family import (
    KEPT_ANSWERS,
    KEPT_BRIEFLY,
    KEPT_NOTHING,
    CallKind,
    Exclusions,
    ObjectLists,
    ObjectRules,
    Reader,
    ids_of,
    object_in,
    objects_in,
    only_own_tools,
    only_text,
)
from gateway.core.families.references import id_fields, names
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.model import INTEGER_MAX
from gateway.errors import InvalidRequest

_CHAT = ControlledNames(
    "model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "user",
    "safety_identifier", *OF_EVERY_FAMILY,
)  # fmt: skip
_COMPLETIONS = ControlledNames(
    "model", "stream", "stream_options", "n", "best_of", "max_tokens", "prompt", "prompt_embeds", "user",
    "safety_identifier", *OF_EVERY_FAMILY,
)  # fmt: skip
_RESPONSES = ControlledNames(
    "model", "stream", "background", "max_output_tokens", "user", "safety_identifier", *OF_EVERY_FAMILY
)
_PROMPT = ControlledNames("id", "version", "variables")
_DECISIONS = ControlledNames("model", "user", "safety_identifier", "questions", *OF_EVERY_FAMILY)
_DECISION_TOKENS_MAX: Final = 65_536  # of answers to 400 questions: as of a model whose maximum nobody states
_EMBEDDINGS = ControlledNames("model", "encoding_format", "user", "safety_identifier", *OF_EVERY_FAMILY)
_STORED = ControlledNames(*OF_EVERY_FAMILY)
_TRAINING = ControlledNames("model", "training_file", "validation_file", *OF_EVERY_FAMILY)
_MODERATIONS = ControlledNames("model", "user", "safety_identifier", *OF_EVERY_FAMILY)
# With any other encoding, an answer may be no JSON document, and its report of usage unreadable.
_ENCODINGS = (None, "float", "base64")


# Kinds of tokens by the modality that asks for them.
_MADE: Final = {"image": "image_output", "audio": "audio_output"}
# A search unit of a reranking has so many documents at most, as Cohere's.
DOCUMENTS_A_SEARCH: Final = 100


def read_chat(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    model, streamed, user = _read_common(body, document, _CHAT, params)
    older = maximum(document, "max_tokens", bounds.usage_tokens_max)
    newer = maximum(document, "max_completion_tokens", bounds.usage_tokens_max)
    output_max = newer if older is None else older if newer is None else max(older, newer)
    asked = document.get("modalities")
    makes = (
        ""
        if not isinstance(asked, list)
        else next((kind for name, kind in _MADE.items() if name in asked), "")
    )
    return CallSpec(
        model, streamed, output_max, choices(document, "n", bounds.choices_max), user, makes=makes
    )


def read_chats(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read several chats with the same parameters, whose `messages` is a list of lists."""
    chats = document.get("messages")
    if not isinstance(chats, list) or not chats or not all(isinstance(chat, list) for chat in chats):
        raise InvalidRequest("messages must be a list of lists of messages.", param="messages")
    spec = read_chat(body, document, params, bounds)
    answers = min(spec.choices * len(chats), INTEGER_MAX)
    return spec._replace(choices=answers, prompts=len(chats), first_part=1 / len(chats))


def read_completions(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a completion. Each of its prompts has `n` or `best_of` choices."""
    model, streamed, user = _read_common(body, document, _COMPLETIONS, params)
    output_max, first_part = maximum(document, "max_tokens", bounds.usage_tokens_max), 1.0
    count = max(choices(document, "n", bounds.choices_max), choices(document, "best_of", bounds.choices_max))
    prompt = document.get("prompt")
    prompts = max(1, _prompts(prompt) + _prompts(document.get("prompt_embeds")))
    if prompts > 1:
        parts = prompt if isinstance(prompt, list) and len(prompt) == prompts else []
        sizes = [len(part) for part in parts if isinstance(part, str | list)]
        first_part = sizes[0] / sum(sizes) if sizes and sizes[0] else 1 / prompts
    return CallSpec(
        model, streamed, output_max, count * prompts, user, prompts=prompts, first_part=first_part
    )


def read_responses(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    model, streamed, user = _read_common(body, document, _RESPONSES, params)
    inner(document, "prompt", _PROMPT)
    background = flag(document, "background")
    if background and streamed:
        raise InvalidRequest("background: such a response is not streamed here.", param="background")
    output_max = maximum(document, "max_output_tokens", bounds.usage_tokens_max)
    return CallSpec(model, streamed, output_max, user=user, background=background)


def read_decisions(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for decisions (openai 3.51.0): no field bounds its output, and it has no tools."""
    model, _, user = _read_common(body, document, _DECISIONS, params)
    return CallSpec(model, output_max=_DECISION_TOKENS_MAX, user=user)


def read_embeddings(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for embeddings, or for a reranking of documents. Neither produces tokens."""
    model, _, user = _read_common(body, document, _EMBEDDINGS, params)
    if document.get("encoding_format") not in _ENCODINGS:
        raise InvalidRequest('encoding_format must be "float" or "base64".', param="encoding_format")
    documents = document.get("documents")
    if "query" not in document or not isinstance(documents, list):
        return CallSpec(model, output_max=0, user=user)
    searches = max(1, -(-len(documents) // DOCUMENTS_A_SEARCH))
    return CallSpec(model, output_max=0, user=user, units=RequestedUnits({"search": searches}))


def read_moderations(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read texts and pictures for a moderation, which produces no tokens."""
    model, _, user = _read_common(body, document, _MODERATIONS, params)
    return CallSpec(model, output_max=0, user=user)


def read_stored(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call that makes, searches or changes a stored object. It names no model, and costs one unit."""
    _STORED.check(document)
    return CallSpec(output_max=0)


def read_training(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a job that trains a model. It costs one unit, because its usage is known only at the end."""
    _TRAINING.check(document)
    model = model_name(document.get("model"))
    return CallSpec(model, output_max=0, units=RequestedUnits({"fine_tuning_job": 1}))


def read_run(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a run of an eval, which may name models itself, and costs one unit."""
    spec = read_stored(body, document, params, bounds)
    return spec._replace(units=RequestedUnits({"eval_run": 1}))


def _count_once(meter: Meter, document: bytes) -> None:
    if 200 <= meter.status < 300:
        meter.report_units()


STORED: Final = Dialect(_count_once)


def unit(read: Reader, *, any_model: bool = False) -> CallKind:
    """Return the kind of call that makes or stores an object, and costs one unit of its service.

    `read` is the function that reads it; `any_model` allows it to name any model.
    """
    return CallKind(
        read, STORED, keeps=lambda document: True, operation="generate_content", any_model=any_model,
        stores=True,
    )  # fmt: skip


def model_of(body: Body, document: Document, params: PathParams) -> str:
    """Return the model in the path if it has one, else in the body. A form must name the path's model too."""
    named = params.get("model")
    stated = model_name(document.get("model")) if not named or body.files else ""
    return model_in_path(document, named) if named else stated


def _read_common(
    body: Body, document: Document, names: ControlledNames, params: PathParams
) -> tuple[str, bool, str]:
    """Return the fields that all calls of OpenAI's APIs have: model, stream and user."""
    names.check(document)
    model = model_of(body, document, params)
    streamed = flag(document, "stream")
    user = stated_user(document.get("safety_identifier")) or stated_user(document.get("user"))
    return model, streamed, user


def _prompts(prompt: object) -> int:
    """Return the number of prompts in a field of a completion: texts, tokens or vLLM's embeddings."""
    if prompt is None:
        return 0
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


# Which of the higher prices do not apply to a call of OpenAI's APIs.
#
# The provider writes to caches by itself, so every call may. A call without a tier, and one with `auto`, has the tier
# of the provider's project, which is `default` unless the operator chose another.

_PLAIN_TIERS: Final = (None, "default", "flex")
_SAID: Final = ("messages", "input", "instructions", "system")
# A stored object may contain anything, and so may these other sources of content.
_KEPT: Final = frozenset({"previous_response_id", "conversation", "plugins", "audio"})


def _no_media(document: Document, names: FieldNames) -> bool:
    if not _KEPT.isdisjoint(document) or isinstance(document.get("prompt"), dict):
        return False
    return only_own_tools(document) and all(only_text(document.get(name)) for name in _SAID)


def _no_sound(document: Document, names: FieldNames) -> bool:
    """Return whether a call certainly asks for no sound; an answer is text unless the call says more."""
    asked = document.get("modalities")
    if asked is None:
        return "audio" not in document
    return isinstance(asked, list) and all(modality in ("text", "image") for modality in asked)


def _no_tier(document: Document, tier: str) -> bool:
    return document.get("service_tier") in _PLAIN_TIERS and "speed" not in document


def _no_pictures(document: Document, names: FieldNames) -> bool:
    """Return whether a call's modalities exclude pictures; tools that make pictures do not matter here."""
    asked = document.get("modalities")
    return asked is None or (
        isinstance(asked, list) and all(modality in ("text", "audio") for modality in asked)
    )


EXCLUSIONS = Exclusions(
    media=_no_media, sound=_no_sound, pictures=_no_pictures, tier=_no_tier,
    tier_fields=("service_tier", "speed"),
)  # fmt: skip


# Objects that OpenAI's upstreams keep: responses, conversations, files, batches, stores, containers.
def _created_ids(document: Document) -> Iterator[str]:
    """Yield the ids of objects that the API has created, from the fields of an answer meant for them.

    Texts of a model or a tool, and lists, may contain a caller's text, so they do not count. Earlier
    objects, such as the conversation of a response, do not count either.
    """
    for name in ("id", "output_file_id", "error_file_id", "conversation_id", "fine_tuned_model"):
        yield from ids_of(document.get(name))
    for one in objects_in(document, "data"):  # models saved during a training
        if one.get("object") == "fine_tuning.job.checkpoint":
            yield from ids_of(one.get("id"))
            yield from ids_of(one.get("fine_tuned_model_checkpoint"))
    files = document.get("result_files")  # of training
    for file in files if isinstance(files, list) else ():
        yield from ids_of(file)
    yield from ids_of(object_in(document, "file").get("id"))  # of an upload that is complete
    for item in objects_in(document, "output"):
        yield from ids_in_item(item)
    for choice in objects_in(document, "choices"):
        yield from ids_of(object_in(object_in(choice, "message"), "audio").get("id"))


def ids_in_item(item: Document) -> Iterator[str]:
    yield from ids_of(item.get("id"))
    if item.get("type") == "code_interpreter_call":
        yield from ids_of(item.get("container_id"))
    for part in objects_in(item, "content"):
        for note in objects_in(part, "annotations"):
            if note.get("type") == "container_file_citation":  # other citations are of earlier files
                yield from ids_of(note.get("file_id"))
                yield from ids_of(note.get("container_id"))


def keeps_chat(chat: Document) -> int:
    """Return the `KEPT_…` constant for how long the ids in a chat's answer are valid.

    Without `store` the answer's id names nothing; only sound can be referred to for a short time.
    """
    if chat.get("store"):
        return KEPT_ANSWERS
    return KEPT_BRIEFLY if "audio" in chat or "modalities" in chat else KEPT_NOTHING


def keeps_response(response: Document) -> int:
    """Return the `KEPT_…` constant for a response: with `store: false` its ids are valid only briefly."""
    return KEPT_BRIEFLY if response.get("store") is False else KEPT_ANSWERS


# Checks that an item of the API asked for, which the client sends back; then rows of an eval's own data.
_CHECKS: Final = {
    "pending_safety_checks": "computer_call",
    "acknowledged_safety_checks": "computer_call_output",
}
_ROWS: Final = frozenset({"item", "sample"})


def _kept_name(server: str, id_: str) -> str:
    """Return the name of an object as its owner is stored; a cache of Gemini's has a longer one at Vertex AI."""
    at_vertex = _AT_VERTEX.fullmatch(id_)
    return id_ if at_vertex is None else at_vertex[1]


def _is_free(name: str, holder: Document) -> bool:
    """Return whether a field holds data of the caller or of the API, and no reference to a stored object."""
    return (name in _CHECKS and holder.get("type") == _CHECKS[name]) or (
        name in _ROWS and holder.keys() <= _ROWS
    )


_AT_VERTEX: Final = re.compile(r"projects/[\w-]+/locations/[\w-]+/(cachedContents/[\w-]+)")
# Fields that bodies of stored objects may have, by OpenAI's reference, and the data sources that an eval may
# have: others query the stored chats and responses of the whole account.
_TAKES: Final = {
    path: names(fields)
    for path, fields in {
        "conversations": "items metadata",
        "conversations/{}": "metadata",
        "conversations/{}/items": "items",
        "chat/completions/{}": "metadata",
        "vector_stores": "chunking_strategy description expires_after file_ids metadata name",
        "vector_stores/{}": "expires_after metadata name",
        "vector_stores/{}/search": "query filters max_num_results ranking_options rewrite_query",
        "vector_stores/{}/files": "attributes chunking_strategy file_id",
        "vector_stores/{}/files/{}": "attributes",
        "vector_stores/{}/file_batches": "attributes chunking_strategy file_ids files",
        "containers": "expires_after file_ids memory_limit name network_policy skills",
        "containers/{}/files": "file file_id",
        "uploads": "bytes expires_after filename mime_type purpose",
        "uploads/{}/complete": "md5 part_ids",
        "skills": "files",
        "evals": "data_source_config metadata name testing_criteria",
        "evals/{}": "metadata name",
        "evals/{}/runs": "data_source metadata name",
        "fine_tuning/jobs": "hyperparameters integrations metadata method model seed suffix training_file"
        " trainingType validation_file",
        "batches": "completion_window endpoint input_file_id metadata output_expires_after",
    }.items()
}
_DATA: Final = frozenset({"type", "source", "input_messages", "model", "sampling_params"})
_KINDS: Final = {
    "data_source_config": {"custom": frozenset({"type", "item_schema", "include_sample_schema"})},
    "data_source": dict.fromkeys(("jsonl", "completions", "responses"), _DATA),
    "source": {"file_id": frozenset({"type", "id"}), "file_content": frozenset({"type", "content"})},
}


FIELDS: Final = id_fields("openai", lambda holder, id_: isinstance(id_, str) and id_.startswith("openai-"))
OBJECTS = ObjectRules(
    collections={
        **dict.fromkeys(
            (
                "chat/completions", "responses", "conversations", "files", "batches", "uploads",
                "assistants", "threads", "videos", "skills", "libraries",
            ),
            "",
        ),
        "fine_tuning/jobs": "fine_tuning_job", "evals": "eval_run", "containers": "container",
        "vector_stores": "gigabyte_day",
    },
    uses={"vector_stores/search": "file_search"},
    add=FIELDS.add,
    key=_kept_name,
    is_free=_is_free,
    told=_created_ids,
    results=frozenset({"batches", "fine_tuning/jobs", "fine_tuning/jobs/checkpoints"}),
    refers=lambda document: iter(ids_of(object_in(document, "conversation").get("id"))),
    actions=frozenset(
        {"responses/compact", "responses/input_tokens", "threads/runs", "chat/completions/batch"}
    ),
    within=frozenset({"uploads/parts", "uploads/complete"}),
    takes=_TAKES,
    kinds=_KINDS,
    puts={"items": "openai_responses"},
    models=("ft:",),
    lasting=("file-", "conv_"),
    lists=ObjectLists(
        tuple(
            f"{front}/{one}"
            for front in ("/v1", "/openai", "/openai/v1")
            for one in (
                "files", "batches", "vector_stores", "containers", "skills", "evals", "videos",
                "fine_tuning/jobs",
            )
        )
    ),
)  # fmt: skip
