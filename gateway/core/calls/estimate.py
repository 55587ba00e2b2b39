"""How many tokens to hold for a call before it is made, learned from calls before it.

What an answer that reports nothing is counted by is learned here too: means, where holds are
high quantiles. A hold should cover its call: every estimate leans to the high side, and what a call states
itself is never second-guessed. What one organization's calls teach is never another's estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gateway.core.blobs import BLOB_TOKENS
from gateway.core.calls.call import BYTES_PER_TOKEN, Call
from gateway.core.calls.tool_uses import answers_within
from gateway.core.families.prompt import Tokenizer
from gateway.core.families.registry import ALL
from gateway.core.in_use import InUse, Kept
from gateway.core.model import INTEGER_MAX, Usage

LEARNED_MAX = 20_000  # (organization, service, model) kept, organizations that asked longest ago first out
LEARNED_SHARE = 500  # of one organization, least recently used first out
OUTPUT_TOKENS_FIRST = 1_024  # what a call is taken to produce before anything was learned
INPUT_RATIO_FIRST = 1 / BYTES_PER_TOKEN
WORST_BYTES_PER_TOKEN = 2  # of ASCII unlike any that was learned from; of other text each byte may be one
BYTES_PER_OUTPUT_TOKEN_FIRST = 4.0
RISE, FALL = 0.5, 0.025  # steps up and down: they balance where 1 sample in 20 is above
MEAN_OVER = 32  # calls a mean looks back over
CEILING = 65_536

# The most one answer of a model can hold, by the longest prefix of its name, as the
# providers document it; `CEILING` where none fits.
MODEL_CEILINGS: dict[str, int] = {prefix: most for one in ALL for prefix, most in one.ceilings.items()}
_PICTURES: dict[str, int] = {prefix: most for one in ALL for prefix, most in one.pictures.items()}


@dataclass(slots=True)
class Estimate:
    """What a call may use, in tokens: `need` what is likely, `ceiling` the most, `read` of it the input.

    `least` is the input's most and one token of each answer, 0 where the call states its maximum. `read` has
    the input as often as it may be read. `answers` share a maximum: choices and compactions; 0 is as many as
    the call has choices. `beside` is the most that other models may write.
    """

    need: int = 0
    ceiling: int = 0
    least: int = 0
    read: int = 0
    answers: int = 0
    beside: int = 0

    def bound(self, most: int, call: Call) -> int:
        """The most tokens of one answer within a hold of so many."""
        return max(1, (most - self.read - self.beside) // (self.answers or call.choices))


NO_ESTIMATE: Final = Estimate()


@dataclass(slots=True)
class _Learned(Kept):
    """What was seen of one organization's calls to one model behind one service."""

    ceiling: int
    output: float
    dearer: int = 1
    input_ratio: float = INPUT_RATIO_FIRST
    input_mean: float = INPUT_RATIO_FIRST
    answers: int = 0
    texts: int = 0
    bytes_per_output_token: float = BYTES_PER_OUTPUT_TOKEN_FIRST


class _Share(Kept):
    """What was learned of one organization's calls, by service and model."""

    __slots__ = ("models",)

    def __init__(self, most: int) -> None:
        self.models: InUse[tuple[str, str], _Learned] = InUse(most)


class Estimator:
    """Holds by what a call states, else by what was learned.

    Memory is bounded by `learned_max`, and by `share` for one organization: made-up names displace nobody
    else's. Only an answer that taught something is kept.
    """

    def __init__(
        self,
        ceilings: dict[str, int] | None = None,
        learned_max: int = LEARNED_MAX,
        tokenizer: Tokenizer | None = None,
        share: int = LEARNED_SHARE,
    ) -> None:
        self._tokenizer = tokenizer
        self._ceilings = MODEL_CEILINGS if ceilings is None else {**MODEL_CEILINGS, **ceilings}
        self._share = share
        self._shares: InUse[int, _Share] = InUse(learned_max)

    def hold(self, call: Call, organization_id: int, service_key: str) -> Estimate:
        """Return what to hold of a call, and what it could use at most; nothing of one without tokens.

        The most goes by size: what was learned of other prompts never makes it less.
        """
        if not call.input_bytes and not call.blob_tokens:
            return NO_ESTIMATE
        learned = self._learned_of(call, organization_id, service_key) or self._first(call.model)
        call.output_bytes_per_token = learned.bytes_per_output_token
        call.input_tokens_per_byte = learned.input_mean
        if self._tokenizer is not None:
            call.tokens_of = self._tokenizer(call.model)
        blobs, choices = call.blob_tokens, call.choices
        used = math.ceil(call.input_bytes * learned.input_ratio) + blobs
        worst = -(-(call.input_bytes + call.rare_bytes + call.unsure_bytes) // WORST_BYTES_PER_TOKEN)
        # What a body names and does not hold is taken for an image.
        read = max(used, worst + (blobs + call.names.files * BLOB_TOKENS) * learned.dearer)
        call.input_ceiling, call.output_ceiling = read, learned.ceiling
        answers, beside, stated = choices, 0, call.output_max
        within = answers_within(call)
        if within is not None:
            answers += within.compactions
            for model, uses, most in within.models:
                beside += uses * (self._ceiling(model) if most is None else most)
            readings = 1 + within.compactions + sum([uses for _, uses, _ in within.models])
            read, beside = min(read * readings, INTEGER_MAX), min(beside, INTEGER_MAX)
        if stated is not None:
            ceiling = min(read + stated * answers + beside, INTEGER_MAX)
            return Estimate(min(used + stated * choices, INTEGER_MAX), ceiling, 0, read, answers, beside)
        need = min(used + math.ceil(learned.output) * choices, INTEGER_MAX)
        ceiling = max(need, min(read + learned.ceiling * answers + beside, INTEGER_MAX))
        return Estimate(need, ceiling, min(read + answers + beside, ceiling), read, answers, beside)

    def learn(self, call: Call, organization_id: int, service_key: str, usage: Usage) -> None:
        """Learn from a complete answer that reported its use; what was only counted teaches nothing."""
        if not usage.reported or usage.estimated or not call.input_bytes:
            return
        if usage.input <= call.blob_tokens and usage.output <= 0:
            return
        learned = self._learned_of(call, organization_id, service_key)
        if learned is None:
            learned = self._first(call.model)
            self._keep(organization_id, (service_key, call.model), learned)
        if usage.input > call.blob_tokens:
            ratio = (usage.input - call.blob_tokens) / call.input_bytes
            # Callers choose what is seen: it makes input dearer, never cheaper than the first value.
            ratio = min(max(ratio, INPUT_RATIO_FIRST), 1.0)
            learned.input_ratio = _quantile(learned.input_ratio, ratio)
            learned.answers = min(learned.answers + 1, MEAN_OVER)
            learned.input_mean += (ratio - learned.input_mean) / learned.answers
        if usage.output > 0:
            produced = max(usage.output / call.choices, float(min(OUTPUT_TOKENS_FIRST, learned.ceiling)))
            learned.output = _quantile(learned.output, produced)
            visible = usage.output - usage.reasoning
            if call.text_bytes > 0 and visible > 0:
                learned.texts = min(learned.texts + 1, MEAN_OVER)
                bytes_per_token = min(max(1.0, call.text_bytes / visible), BYTES_PER_OUTPUT_TOKEN_FIRST)
                learned.bytes_per_output_token += (
                    bytes_per_token - learned.bytes_per_output_token
                ) / learned.texts

    def _learned_of(self, call: Call, organization_id: int, service_key: str) -> _Learned | None:
        share = self._shares.find(organization_id)
        return None if share is None else share.models.find((service_key, call.model))

    def _first(self, model: str) -> _Learned:
        """The first values of a model."""
        ceiling = self._ceiling(model)
        return _Learned(ceiling, float(min(OUTPUT_TOKENS_FIRST, ceiling)), _dearer(model))

    def _keep(self, organization_id: int, name: tuple[str, str], learned: _Learned) -> None:
        share = self._shares.find(organization_id) or _Share(self._share)
        share.models.put(name, learned)
        self._shares.put(organization_id, share, len(share.models))

    def _ceiling(self, model: str) -> int:
        fitting = [prefix for prefix in self._ceilings if model.startswith(prefix)]
        return self._ceilings[max(fitting, key=len)] if fitting else CEILING


def _dearer(model: str) -> int:
    """How many times what an image costs as a rule one of this model's may cost."""
    fitting = [most for prefix, most in _PICTURES.items() if model.startswith(prefix)]
    return -(-max(fitting) // BLOB_TOKENS) if fitting else 1


def _quantile(level: float, sample: float) -> float:
    """Move `level` towards a sample, fast up and slowly down: it settles near the 95th percentile."""
    return level + (sample - level) * (RISE if sample > level else FALL)
