"""Numbers at the top of a body that set no maximum of the output, and no number of answers.

A server may let a name of its own overrule the maximum read here, as llama.cpp does with `n_predict`.
So where a hold binds a call, a number must be known: these are of the APIs' references, vLLM, SGLang,
TGI, llama.cpp, Ollama, LiteLLM and OpenRouter. What a shape reads itself is in its `numbers`.
"""

from __future__ import annotations

from gateway.core.calls.call import Call
from gateway.core.families.controlled import Document
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
NUMBER_CHARACTERS_MAX = 64


def check_numbers(call: Call, allowed: frozenset[str]) -> None:
    """Refuse a number that may overrule the maximum of a bound call, but for the `allowed`."""
    shape, document = SHAPES.get(call.meter), call.document
    if shape is None or document is None or not shape.maximum:
        return
    known = shape.numbers | HARMLESS | allowed
    parts = [document] if shape.place is None else [document, shape.place(document)]
    for name in (name for part in parts for name in _numbers_in(part) if name not in known):
        raise InvalidRequest(
            f"{name}: nobody here knows what this number does, and this call must not use more than is held."
            " Leave it out, or have the operator allow it by `fields` of the upstream.",
            param=name,
        )


def _numbers_in(document: Document) -> list[str]:
    return [name for name, value in document.items() if _is_number(value) and name not in TEXTS]


def _is_number(value: object) -> bool:
    if isinstance(value, str) and len(value) <= NUMBER_CHARACTERS_MAX:
        try:
            float(value)
        except ValueError:
            return False
        return True
    return type(value) in {int, float}
