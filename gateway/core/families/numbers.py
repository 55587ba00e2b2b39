"""What could make more of a bound call than is held: numbers that nobody knows, and chats in one.

A server may let a name of its own overrule the maximum read here, as llama.cpp does with `n_predict`.
So where a hold binds a call, a number at the top of its body must be known: these are of the APIs'
references, vLLM, SGLang, TGI, llama.cpp, Ollama, LiteLLM and OpenRouter. What a shape reads itself is in
its `numbers`.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.core.calls.call import Call
from gateway.core.families.controlled import Document, elements
from gateway.core.families.registry import SHAPES
from gateway.errors import InvalidRequest

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
        # less of the prompt, less of thinking, at least so much output, of what is bounded anyway
        "truncate", "truncate_prompt_tokens", "n_keep", "n_discard", "num_keep", "min_tokens", "min_keep",
        "n_indent",
        "thinking_token_budget", "thinking_budget_tokens", "reasoning_budget", "dimensions",
        # where and how long it runs
        "id_slot", "priority", "timeout", "request_timeout", "stream_timeout", "keep_alive", "num_ctx",
        "num_batch", "num_gpu", "num_thread", "t_max_prompt_ms", "t_max_predict_ms", "data_parallel_rank",
        # lists of tokens
        "stop_token_ids", "allowed_token_ids", "bad_words_ids",
    }
)  # fmt: skip
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
_FLOAT_CHARACTERS_MAX: Final = 64
_DIGITS: Final = re.compile(r"[\s_+\-.eE]*\d[\s_+\-.eE\d]*")


def check_numbers(call: Call, allowed: frozenset[str]) -> None:
    """Refuse a number that may overrule the maximum of a bound call, unless `allowed`, and chats in one."""
    shape, document = SHAPES.get(call.meter), call.document
    if shape is None or document is None or not shape.maximum:
        return
    elements(document, "messages")  # of lists in it some servers make a chat each
    known = shape.numbers | HARMLESS | allowed
    parts = [document] if shape.place is None else [document, shape.place(document)]
    for name in (name for part in parts for name in _numbers_in(part) if name not in known):
        raise InvalidRequest(
            f"{name}: nobody here knows what this number does, and this call must not use more than is held."
            " Leave it out, or have the operator allow it by `fields` of the upstream.",
            param=name,
        )


def _numbers_in(document: Document) -> list[str]:
    return [name for name, value in document.items() if name not in TEXTS and _is_number(value)]


def _is_number(value: object) -> bool:
    """Whether a lenient server may take it for a number: a text of one, or a list with one in it."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        if len(value) > _FLOAT_CHARACTERS_MAX:
            return _DIGITS.fullmatch(value) is not None
        try:
            float(value)
        except ValueError:
            return False
        return True
    return type(value) in {int, float}
