"""How many tokens to hold for a call before it is made, learned from calls before it.

What an answer that reports nothing is counted by is learned here too: means, where holds are
high quantiles. A hold should cover its call: every estimate leans to the high side, and what a call states
itself is never second-guessed.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from gateway.core.call import BYTES_PER_TOKEN, Call
from gateway.core.model import INTEGER_MAX, Usage
from gateway.core.prompt import Tokenizer

MODELS_MAX = 4096  # learned (service, model) pairs kept, least recently used first out
OUTPUT_TOKENS_FIRST = 1_024  # what a call is taken to produce before anything was learned
INPUT_RATIO_FIRST = 1 / BYTES_PER_TOKEN
BYTES_PER_OUTPUT_TOKEN_FIRST = 4.0
RISE, FALL = 0.5, 0.025  # steps up and down: they balance where 1 sample in 20 is above
MEAN_OVER = 32  # calls a mean looks back over
CEILING = 65_536

# The most one answer of a model can hold, by the longest prefix of its name, as the
# providers document it; `CEILING` where none fits.
MODEL_CEILINGS: dict[str, int] = {
    "gpt-3.5": 4_096, "gpt-4": 8_192, "gpt-4-turbo": 4_096, "gpt-4o": 16_384, "gpt-4.1": 32_768,
    "gpt-5": 128_000, "o1": 100_000, "o3": 100_000, "o4": 100_000, "text-embedding": 0,
    "claude-3": 8_192, "claude-3-7": 128_000, "claude-opus-4": 128_000, "claude-sonnet-4": 128_000,
    "claude-haiku-4": 64_000, "gemini-1.5": 8_192, "gemini-2.0": 8_192, "gemini-2.5": 65_536,
}  # fmt: skip


class _Learned:
    """What was seen of one model behind one service."""

    __slots__ = (
        "answers",
        "bytes_per_output_token",
        "ceiling",
        "input_mean",
        "input_ratio",
        "output",
        "texts",
    )

    def __init__(self, ceiling: int) -> None:
        self.output = float(min(OUTPUT_TOKENS_FIRST, ceiling))
        self.input_ratio = self.input_mean = INPUT_RATIO_FIRST
        self.answers = self.texts = 0
        self.bytes_per_output_token = BYTES_PER_OUTPUT_TOKEN_FIRST
        self.ceiling = ceiling


class Estimator:
    """Holds by what a call states, else by what was learned; memory bounded by `models_max`."""

    def __init__(
        self,
        ceilings: dict[str, int] | None = None,
        models_max: int = MODELS_MAX,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._ceilings = MODEL_CEILINGS if ceilings is None else {**MODEL_CEILINGS, **ceilings}
        self._models_max = models_max
        self._learned: OrderedDict[tuple[str, str], _Learned] = OrderedDict()

    def hold(self, call: Call, service_key: str) -> tuple[int, int]:
        """Return (need, ceiling) in tokens: what to hold, and what the call could use at most.

        Both are equal where the call states its maximum. A call without tokens needs none.
        """
        if not call.input_bytes and not call.blob_tokens:
            return 0, 0
        learned = self._of(call, service_key)
        call.output_bytes_per_token = learned.bytes_per_output_token
        call.input_tokens_per_byte = learned.input_mean
        if self._tokenizer is not None:
            call.tokens_of = self._tokenizer(call.model)
        used = math.ceil(call.input_bytes * learned.input_ratio) + call.blob_tokens
        call.input_ceiling, call.output_ceiling = used, learned.ceiling
        if call.output_max is not None:
            most = min(used + call.output_max * call.choices, INTEGER_MAX)
            return most, most
        need = min(used + math.ceil(learned.output) * call.choices, INTEGER_MAX)
        return need, max(need, min(used + learned.ceiling * call.choices, INTEGER_MAX))

    def learn(self, call: Call, service_key: str, usage: Usage) -> None:
        """Learn from a complete answer that reported its use; what was only counted teaches nothing."""
        if not usage.reported or usage.estimated or not call.input_bytes:
            return
        learned = self._of(call, service_key)
        if usage.input > call.blob_tokens:
            ratio = (usage.input - call.blob_tokens) / call.input_bytes
            learned.input_ratio = min(_quantile(learned.input_ratio, ratio), 1.0)
            learned.answers = min(learned.answers + 1, MEAN_OVER)
            learned.input_mean += (min(ratio, 1.0) - learned.input_mean) / learned.answers
        if usage.output > 0:
            learned.output = _quantile(learned.output, usage.output / call.choices)
            visible = usage.output - usage.reasoning
            if call.text_bytes > 0 and visible > 0:
                learned.texts = min(learned.texts + 1, MEAN_OVER)
                step = max(1.0, call.text_bytes / visible) - learned.bytes_per_output_token
                learned.bytes_per_output_token += step / learned.texts

    def _of(self, call: Call, service_key: str) -> _Learned:
        name = (service_key, call.model)
        kept = self._learned
        learned = kept.get(name)
        if learned is not None:
            kept.move_to_end(name)
            return learned
        if len(kept) >= self._models_max:
            kept.popitem(last=False)
        learned = kept[name] = _Learned(self._ceiling(call.model))
        return learned

    def _ceiling(self, model: str) -> int:
        fitting = [prefix for prefix in self._ceilings if model.startswith(prefix)]
        return self._ceilings[max(fitting, key=len)] if fitting else CEILING


def _quantile(level: float, sample: float) -> float:
    """Move `level` towards a sample, fast up and slowly down: it settles near the 95th percentile."""
    return level + (sample - level) * (RISE if sample > level else FALL)
