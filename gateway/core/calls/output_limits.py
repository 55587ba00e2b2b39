"""The limit of an answer by its hold, and values by which a call could use more: unknown numbers, several chats in one.

Pure. A server may let a name of its own overrule the maximum read here, as llama.cpp does with `n_predict`. So where
a hold binds a call, a number in its body must be known, at any depth: these are of the APIs' references, vLLM,
SGLang, TGI, llama.cpp, Ollama, LiteLLM and OpenRouter. What a shape reads itself is in its `numbers`, which count
at their own place alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, NamedTuple

from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import limit_models
from gateway.core.families.controlled import elements
from gateway.core.families.registry import SHAPES
from gateway.core.model import INTEGER_MAX
from gateway.errors import InvalidRequest


def bind_output(call: CallRequest, bound: int, allowed: frozenset[str]) -> None:
    """Limit an answer to `bound` output tokens.

    Raise `InvalidRequest` if the body has a number that could make the upstream ignore the limit. Numbers
    with a name in `allowed` are known to be harmless.
    """
    call.bound = True
    check_numbers(call, allowed, bound)
    limit_output(call, bound)
    limit_models(call)


def limit_output(call: CallRequest, tokens: int) -> None:
    """Set the maximum of output tokens to `tokens` in the body of a call that states none.

    A stated maximum of 0 becomes 1, because the gateway counts it so.
    """
    shape = SHAPES.get(call.meter)
    document = call.body.document
    if document is None or shape is None or not shape.maximum:
        return
    place = document if shape.place is None else shape.place(document)
    if call.output_max is None:
        tokens = max(min(tokens, call.output_default or tokens), call.aim.output_least)
        place[shape.maximum] = call.output_max = tokens
        call.body.put(shape.maximum)
    for name in shape.numbers:
        if place.get(name) == 0 and name != shape.uses:
            place[name] = 1
            call.body.changed = True


HARMLESS = frozenset(
    {
        # sampling
        "temperature", "top_p", "top_k", "top_a", "min_p", "typical_p", "tfs_z", "top_n_sigma", "seed",
        "random_seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty",
        "repeat_last_n", "length_penalty", "no_repeat_ngram_size", "dynatemp_range", "dynatemp_exponent",
        "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "xtc_probability", "xtc_threshold", "topP", "topK", "presencePenalty",
        "frequencyPenalty",
        # what is told of tokens
        "logprobs", "top_logprobs", "prompt_logprobs", "n_probs", "top_n_tokens", "responseLogprobs",
        # less prompt, less thinking
        "truncate", "truncate_prompt_tokens", "prompt_truncate_len", "num_search_results", "n_keep", "n_discard", "num_keep", "min_keep",
        "n_indent",
        "thinking_token_budget", "thinking_budget_tokens", "reasoning_budget", "dimensions",
        # where and how long it runs
        "id_slot", "priority", "timeout", "request_timeout", "stream_timeout", "keep_alive", "num_ctx",
        "num_batch", "num_gpu", "num_thread", "t_max_prompt_ms", "t_max_predict_ms", "data_parallel_rank",
        # how vLLM streams, and what it tells of its experts
        "stream_interval", "routed_experts_prompt_start",
        # lists of tokens
        "stop_token_ids", "allowed_token_ids", "bad_words_ids",
    }
)  # fmt: skip
# Fields by which a call has no bound, each with its switch. OpenAI bounds neither the number nor the depth of the
# agents of a response (`MultiAgent` of openai 3.51.0).
_BOUNDLESS: Final = {"multi_agent": "enabled"}
# Minima of output, of vLLM, SGLang and LMDeploy. A server that obeys the larger number would pass the maximum.
MINIMA = frozenset({"min_tokens", "min_new_tokens"})
# Texts that may be digits. Several of these servers read a body by pydantic, which takes other such texts for
# numbers.
TEXTS = frozenset(
    {
        "model", "user", "input", "prompt", "suffix", "stop", "instructions", "system", "conversation",
        "previous_response_id", "safety_identifier", "prompt_cache_key", "service_tier", "container",
        "inference_geo", "workspace_id", "user_profile_id", "session_id", "request_id", "rid", "trace_id",
        "cachedContent", "cached_content",
    }
)  # fmt: skip
# Objects whose numbers are prompts, schemas, or settings of tools and templates: nothing in them sets a
# maximum.
FREE_OBJECTS = frozenset(
    {
        "messages", "items", "input", "inputs", "prompt", "contents", "content", "system", "instructions",
        "documents", "systemInstruction", "system_instruction", "chat_history", "message", "prediction",
        "images",
        "tools", "functions", "tool_choice", "function_call", "toolConfig", "tool_config", "toolChoice",
        "mcp_servers", "plugins", "connectors", "tool_results", "container", "conversation",
        "response_format", "responseFormat", "text", "format", "output_format", "json_schema",
        "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
        "_responseJsonSchema", "guided_json", "structured_outputs", "grammar",
        "metadata", "litellm_metadata", "client_metadata", "requestMetadata", "labels", "logit_bias",
        "safetySettings", "safety_settings", "web_search_options", "search_parameters", "provider",
        "chat_template_kwargs", "mm_processor_kwargs", "kv_transfer_params", "vllm_xargs", "custom_params",
        "repetition_detection", "lora", "promptVariables", "guardrailConfig", "cache",
    }
)  # fmt: skip
# Names that are known in other objects at the top: numbers that the maximum bounds, or that set none, and
# schemas.
NESTED = {
    "fallbacks": frozenset({"max_tokens", "budget_tokens", "token_budget", "remaining", "total", "format"}),
    "thinking": frozenset({"budget_tokens", "token_budget"}),
    "reasoning": frozenset({"max_tokens"}),
    "reasoning_config": frozenset({"budget_tokens"}),
    "thinkingConfig": frozenset({"thinkingBudget"}),
    "thinking_config": frozenset({"thinking_budget"}),
    "output_config": frozenset({"remaining", "total", "format"}),
    "context_management": frozenset({"compact_threshold", "value"}),
    "additionalModelRequestFields": frozenset({"budget_tokens"}),
    "imageConfig": frozenset({"compressionQuality"}),
    "image_config": frozenset({"compression_quality"}),
}
_OBJECTS_DEPTH_MAX: Final = 16
_NONE: Final[frozenset[str]] = frozenset()
_FLOAT_CHARACTERS_MAX: Final = 64
_NUMBER_DIGITS: Final = re.compile(r"[\s_+\-.eE]*\d[\s_+\-.eE\d]*")


def check_numbers(call: CallRequest, allowed: frozenset[str], bound: int = INTEGER_MAX) -> None:
    """Raise `InvalidRequest` for unknown numbers in a body, which could overrule its output maximum.

    Raise it also for several chats in one call, and for a minimum above the maximum, which is `bound` where
    the call states none. `allowed` are names that the upstream's configuration permits.
    """
    shape, document = SHAPES.get(call.meter), call.body.document
    if shape is None or document is None or not shape.maximum:
        return
    elements(document, "messages")  # some servers take each list in it for a chat
    place = document if shape.place is None else shape.place(document)
    for name, asks in _BOUNDLESS.items():
        inside = document.get(name)
        if (
            inside is not None
            and name not in allowed
            and not (isinstance(inside, dict) and inside.get(asks) in (None, False))
        ):
            raise InvalidRequest(
                f"{name}: nothing bounds what its agents read and write, and this call must not use more than is"
                " held. Leave it out.",
                param=name,
            )
    known = _Numbers(HARMLESS | allowed, bound if call.output_max is None else call.output_max)
    for part in (document,) if place is document else (document, place):
        for name, value in part.items():
            if name not in shape.numbers:
                _check_number(name, name, value, known)
            free = value is place or name in FREE_OBJECTS or name in allowed
            if not free and isinstance(value, list | dict):
                _check_inside(value, name, known, NESTED.get(name, _NONE), _OBJECTS_DEPTH_MAX)


class _Numbers(NamedTuple):
    """Names whose numbers are `known` to be harmless, and the maximum of output, which no minimum may exceed."""

    known: frozenset[str]
    output_max: int


def _check_number(name: str, param: str, value: object, numbers: _Numbers) -> None:
    """Refuse a number that is unknown, or above what this call may write."""
    most = numbers.output_max
    if name in MINIMA and name not in numbers.known:
        if value is not None and (type(value) is not int or value > most):
            raise InvalidRequest(
                f"{param} must be a whole number up to {most}, the most that this call may write.",
                param=param,
            )
    elif name not in numbers.known and name not in TEXTS and _is_number(value):
        raise InvalidRequest(
            f"{param}: nobody here knows what this number does, and this call must not use more than is"
            " held. Leave it out, or have the operator allow it by `fields` of the upstream.",
            param=param,
        )


def _check_inside(value: object, path: str, known: _Numbers, inner: Collection[str], depth: int) -> None:
    """Raise `InvalidRequest` for a number, at any depth, under a name that is not in `known` or `inner`."""
    if depth == 0:
        raise InvalidRequest(f"{path} is nested more than {_OBJECTS_DEPTH_MAX} deep.", param=path)
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                _check_inside(item, path, known, inner, depth - 1)
    elif isinstance(value, dict):
        for name, inside in value.items():
            param = f"{path}.{name}"
            if name not in inner:
                _check_number(name, param, inside, known)
                if isinstance(inside, list | dict):
                    _check_inside(inside, param, known, inner, depth - 1)


def _is_number(value: object) -> bool:
    """Return whether a lenient server may read a value as a number: also a text, or a list of one number."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        if len(value) > _FLOAT_CHARACTERS_MAX:
            return _NUMBER_DIGITS.fullmatch(value) is not None
        try:
            float(value)
        except ValueError:
            return False
        return True
    return type(value) in {int, float}
