"""The tokens that a call is likely to use, and could use at most, before it is made. Pure.

The likely usage is learned from similar calls: of the same organization, service and model, streamed or not.
It is a high quantile of their usage, and never more than the call states. The maximum is what the call
states, or the ceiling of its model. The learned means also serve to count answers without a report. Calls of
one organization never change the estimates of another.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

from gateway.core.calls.alphabets import rare_tokens
from gateway.core.calls.call import (
    BLOB_TOKENS,
    BYTES_PER_TOKEN,
    NOT_ASCII,
    UNREAD,
    UNSEEN,
    Body,
    CallRequest,
    CallSpec,
    FieldNames,
    Learned,
    dense_bytes,
    media_in,
)
from gateway.core.calls.text_bound import bound_tokens, counted, load
from gateway.core.families.controlled import Document, Tokenizer, elements, models_of
from gateway.core.families.costs import quotes_in, tool_costs, tool_tokens
from gateway.core.families.registry import ALL, FAMILIES, OF_METER, SHAPES
from gateway.core.families.tools import kinds_of
from gateway.core.lru import LruCache, LruEntry
from gateway.core.model import GENERIC, INTEGER_MAX, Family, TokenUsage

TOOL_USES_MAX: Final = 1_000_000
MODELS_REMEMBERED_MAX: Final = 4_096
# How often a tool's model may answer if the call does not state it: an advisor usually answers once or twice.
MODEL_USES: Final = 4
_ADVISOR: Final = "advisor"  # prefix of the type of a tool that keeps to its maximum
# Tools whose models are paid by the pictures that they make, not by tokens.
_MAKERS: Final = frozenset({"image_generation", "openrouter:image_generation"})
_COMPACTION: Final = "compact"
_MANAGEMENT: Final = "context_management"
LEARNED_BYTES_MAX = 32 * 1024 * 1024  # the least recent organizations are dropped first
LEARNED_BYTES = 2_560  # a model and service of an organization, at most (measured)
LEARNED_SHARE = 500  # models of one organization; the least recently used are dropped first
KEY_BYTES = 1_024  # the input share of one key, service and model (measured)
KEYS_SHARE = 2_000  # input shares of one organization; the least recently used are dropped first
LESSONS_MAX = 256  # sent at a time; of more, the other workers learn by themselves
TOLD_BEYOND = 0.1  # a level that changed by more than this part is sent again
OUTPUT_TOKENS_FIRST = 1_024  # estimated output of a call without statistics
INPUT_RATIO_FIRST = 1 / BYTES_PER_TOKEN
# In words and code, at most one byte in so many is a digit or a capital. Each further one counts 2.25 times.
WORDS_PER_DENSE = 8
WORST_BYTES_PER_TOKEN = 2  # ASCII of texts at worst; for other text see `rare_tokens`
BOUND_BYTES_MAX: Final = 256 << 10  # a longer body is bounded by its bytes: to count would delay other calls
TENANTS_REMEMBERED_MAX: Final = 100_000
BYTES_PER_OUTPUT_TOKEN_FIRST = 4.0
OUTPUT_PER_SECOND_FIRST, OUTPUT_PER_SECOND_MAX = 50.0, 2_000.0  # tokens of one answer
QUANTILE = 0.95  # of the usage of calls, for the hold of the next call
RECENT = 64  # calls in a quantile: 1.5 KB for each model
MEAN_OVER = 32  # calls that a mean covers
# The input share of a call: the real cost of its input, divided by the cost of its size at the asked price.
# Caches make input cheaper, and prices that nobody asked for make it dearer. Callers choose the samples:
# below this the next calls could pass their hold too far.
INPUT_SHARE_MIN, INPUT_SHARE_MAX = 0.125, 4.0
CEILING = 65_536
# The most one answer of a model can hold, by the longest prefix of its name, as the
# providers document it; `CEILING` where none fits.
MODEL_CEILINGS: dict[str, int] = {prefix: most for one in ALL for prefix, most in one.ceilings.items()}
_TOKENIZERS: dict[str, str] = {prefix: name for one in ALL for prefix, name in one.tokenizers.items()}
FINE_TUNED: Final = "ft:"  # stands in front of the name of the model that was trained
# The most tokens of one image, of the text on a page, and that a model reads at all, by prefix.
_PICTURES: Final = {prefix: most for family in ALL for prefix, most in family.pictures.items()}
# The most of one image where no prefix is known: that of the dearest model of the API.
_PICTURES_UNKNOWN: Final = {family.name: max(family.pictures.values(), default=BLOB_TOKENS) for family in ALL}
_TOOL_PROMPTS: Final = {prefix: most for family in ALL for prefix, most in family.tool_prompts.items()}
_TOOL_PROMPTS_UNKNOWN: Final = {family.name: max(family.tool_prompts.values(), default=0) for family in ALL}
_PAGE_TEXT: Final = {prefix: most for family in ALL for prefix, most in family.page_text.items()}
_PATCHES: Final = {prefix: patch for family in ALL for prefix, patch in family.patches.items()}
_SECONDS: Final = {prefix: most for family in ALL for prefix, most in family.seconds.items()}
_NO_PATCH: Final = (0, 0)
_Value = TypeVar("_Value")
SECOND_TOKENS: Final = 50  # of sound in an encoder of Whisper's, as many models have it
_CONTEXTS: Final = {prefix: most for family in ALL for prefix, most in family.contexts.items()}
PAGE_TEXT_TOKENS: Final = 3_000  # on a page: the most that a provider documents
CONTEXT_MAX: Final = 2_097_152  # tokens: no model reads more


# First values for another worker: organization, key, service, model, streamed or not, then the model's levels
# of output, of input tokens a byte and of the input share, and the input share of the key.
Lesson = tuple[int, int, str, str, bool, float, float, float, float]
KeyName = tuple[int, str, str, bool]  # key, service, model, streamed or not


class _Quantile(LruEntry):
    """A quantile of the last `RECENT` samples. While there are few, the first value counts too."""

    __slots__ = ("_at", "_first", "_reported_level", "_samples", "level")

    def __init__(self, first: float) -> None:
        self.level = self._first = self._reported_level = first
        self._samples = array("d")
        self._at = 0

    def add(self, sample: float, quantile: float) -> None:
        """Add a sample, and drop the oldest. `quantile` (0 to 1) is the quantile that `level` estimates."""
        samples, level = self._samples, self.level
        if len(samples) < RECENT:
            samples.append(sample)
            count = len(samples)
            found = sorted(samples)[math.ceil(quantile * count) - 1]
            self.level = found if count == RECENT else found + (self._first - found) / (count + 1) ** 2
            return
        at, oldest = self._at, samples[self._at]
        self._at = (at + 1) % RECENT
        if oldest == sample:
            return
        samples[at] = sample
        # A sample on the same side of the level as the oldest one changes nothing: 0.2 µs instead of 3.
        if (oldest < level and sample < level) or (oldest > level and sample > level):
            return
        self.level = sorted(samples)[math.ceil(quantile * RECENT) - 1]

    def has_moved(self) -> bool:
        """Return whether the estimate differs much from that last sent to workers; if so, note it as sent."""
        if abs(self.level - self._reported_level) <= TOLD_BEYOND * self._reported_level:
            return False
        self._reported_level = self.level
        return True


class _Learned(LruEntry):
    """Statistics of an organization's calls to one model and service, streamed or not."""

    __slots__ = (
        "answers", "bytes_per_output_token", "ceiling", "input_mean", "input_ratio", "input_share", "output",
        "speed", "texts",
    )  # fmt: skip

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.output = _Quantile(float(min(OUTPUT_TOKENS_FIRST, ceiling)))
        self.input_ratio, self.input_share = _Quantile(INPUT_RATIO_FIRST), _Quantile(1.0)
        self.input_mean = INPUT_RATIO_FIRST
        self.bytes_per_output_token = BYTES_PER_OUTPUT_TOKEN_FIRST
        self.speed = OUTPUT_PER_SECOND_FIRST
        self.answers = self.texts = 0


class _LearnedUsage(LruEntry):
    """Statistics of one organization's calls, by service and model, streamed or not.

    Input shares are learned by API key too, because some keys have prompts in a cache and others do not.
    """

    __slots__ = ("keys", "models")

    def __init__(self, most: int) -> None:
        self.models: LruCache[tuple[str, str, bool], _Learned] = LruCache(most)
        self.keys: LruCache[KeyName, _Quantile] = LruCache(KEYS_SHARE)

    @property
    def size(self) -> int:
        """The size in bytes by which these statistics count in a cache."""
        return LEARNED_BYTES * len(self.models) + KEY_BYTES * len(self.keys)


@dataclass(slots=True)
class Estimate:
    """The tokens that a call may use."""

    need: int = 0  # likely
    ceiling: int = 0  # the most
    least: int = 0  # the most input and one token for each answer, 0 if the call states its maximum
    read: int = 0  # the most input, as often as it may be read
    answers: int = 0  # choices and compactions that share a maximum, 0 for the choices alone
    beside: int = 0  # the most output of other models
    input_share: float = 1.0  # likely cost of the input, divided by its cost by size at the requested price

    def bound(self, most: int, call: CallRequest) -> int:
        """Return the most output tokens of one answer if the call may use `most` tokens in all."""
        return max(1, (most - self.read - self.beside) // (self.answers or call.spec.choices))


NO_ESTIMATE: Final = Estimate()


class Estimator:
    """Estimates the tokens of a call from similar calls, and from what it states.

    Memory is bounded by `bytes_max`, and by `share` models for each organization, so that invented names
    displace no other organization's statistics.
    """

    def __init__(
        self,
        ceilings: dict[str, int] | None = None,
        bytes_max: int = LEARNED_BYTES_MAX,
        tokenizer: Tokenizer | None = None,
        share: int = LEARNED_SHARE,
        quantile: float = QUANTILE,
    ) -> None:
        self._quantile = quantile
        self._tokenizer = tokenizer
        self._ceilings = MODEL_CEILINGS if ceilings is None else {**MODEL_CEILINGS, **ceilings}
        self._share = share
        self.known: LruCache[int, _LearnedUsage] = LruCache(bytes_max)
        self._moved: dict[tuple[int, KeyName], None] = {}
        self.unbound: dict[int, None] = {}  # tenants whose plan lets a call pass its hold
        load()  # not within a call
        # Called when there are lessons for other workers.
        self.learned: Callable[[], None] | None = None

    def note_plan(self, tenant_id: int, *, binds: bool) -> None:
        """Note whether a tenant's plan made a hold its call's limit. An unknown plan counts as one that does."""
        if len(self.unbound) >= TENANTS_REMEMBERED_MAX:
            self.unbound.clear()
        if binds:
            self.unbound.pop(tenant_id, None)
        else:
            self.unbound[tenant_id] = None

    def hold(
        self,
        call: CallRequest,
        organization_id: int,
        service_key: str,
        key_id: int = 0,
        *,
        binds: bool = True,
    ) -> Estimate:
        """Return the tokens to hold (reserve) for a call, and the most that it could use.

        The most follows from the call's text: statistics of other prompts never lower it. Where the hold
        `binds` (may be the limit of its call), that is a bound; else it is what texts have at most. A call
        without text and media has no tokens.
        """
        if not call.input_bytes and not call.media.tokens and not call.objects.kept:
            return NO_ESTIMATE
        kept = self._learned_of(call, organization_id, service_key)
        learned = kept or self._first(call.spec.model)
        tokens_of = None if self._tokenizer is None else self._tokenizer(call.spec.model)
        call.learned = Learned(learned.bytes_per_output_token, learned.input_mean, tokens_of, kept)
        blobs, choices = call.media.tokens, call.spec.choices
        used = math.ceil(call.input_bytes * learned.input_ratio.level) + blobs
        tokenizer = _tokenizer_of_all(call) if call.body.content and (binds or call.body.rare_bytes) else ""
        worst = self._most_text(call, tokenizer) if binds else usual_most_text(call, tokenizer)
        if tokenizer and learned.input_ratio.level <= INPUT_RATIO_FIRST:
            used = min(used, worst + blobs)  # three bytes of an alphabet may be less than a token
        read = max(used, worst + blobs)
        if blobs or call.body.names.files or call.media.endless:  # calls of text alone have none
            read = max(used, worst + blobs + _media_beyond(call))
        if call.body.tools:
            added = _added_for_tools(call)
            read += added
            used += 0 if kept else added  # what was learned has them
        if call.objects.kept > 0:
            named = min(call.objects.kept, _context_of(call))
            used, read = used + named, read + named
        elif call.objects.kept and binds:  # a token that nobody here has seen
            read += _context_of(call)
        call.input_ceiling, call.output_ceiling = read, _within(call, learned.ceiling)
        answers, beside, stated = choices, 0, call.output_max
        if stated is None and call.output_default:
            stated = call.output_default
        within = answers_within(call)
        if within is not None:
            answers += within.compactions
            for model, uses, most in within.models:
                beside += uses * (self._ceiling(model) if most is None else most)
            readings = 1 + within.compactions + sum([uses for _, uses, _ in within.models])
            read, beside = min(read * readings, INTEGER_MAX), min(beside, INTEGER_MAX)
        likely = math.ceil(learned.output.level)
        share = learned.input_share.level
        if kept is not None:
            keys = self.known.known[organization_id].keys
            own = keys.find((key_id, service_key, call.spec.model, call.spec.streamed))
            share = share if own is None else own.level
        most = call.output_ceiling
        if stated is not None:
            # A picture has as many tokens as its size and quality cost, not what earlier ones had.
            most, likely = stated, stated if call.spec.units.likely else min(stated, likely)
        need = min(used + likely * choices, INTEGER_MAX)
        ceiling = max(need, min(read + most * answers + beside, INTEGER_MAX))
        least = min(read + answers * call.aim.output_least + beside, ceiling) if stated is None else 0
        return Estimate(need, ceiling, least, read, answers, beside, share)

    def learn(
        self, call: CallRequest, organization_id: int, service_key: str, usage: TokenUsage,
        input_share: float | None = None, *, key_id: int = 0, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Update the statistics from a complete answer whose upstream reported its usage.

        Usage that the gateway counted itself is ignored. `input_share` is the cost of the input,
        divided by what its size would cost at the requested price; None if unknown. `seconds` is the
        time that the upstream took.
        """
        if not usage.reported or usage.estimated or not call.input_bytes:
            return
        kept = call.objects.kept
        own = 0 if kept == UNSEEN else usage.input - call.media.tokens - kept
        if own <= 0 and usage.output <= 0:
            return
        learned = call.learned.entry
        if not isinstance(learned, _Learned):
            learned = self._learned_of(call, organization_id, service_key)
        if learned is None:
            learned = self._first(call.spec.model)
            self._keep(organization_id, (service_key, call.spec.model, call.spec.streamed), learned)
        if input_share is not None:
            input_share = _bounded(input_share)
            learned.input_share.add(input_share, self._quantile)
        if own > 0:
            ratio = own / call.input_bytes
            # Callers choose the samples, so these never lower the ratio below the first value.
            ratio = min(max(ratio, INPUT_RATIO_FIRST), 1.0)
            learned.input_ratio.add(ratio, self._quantile)
            learned.answers = min(learned.answers + 1, MEAN_OVER)
            learned.input_mean += (ratio - learned.input_mean) / learned.answers
        if usage.output > 0:
            produced = max(usage.output / call.spec.choices, float(min(OUTPUT_TOKENS_FIRST, learned.ceiling)))
            learned.output.add(produced, self._quantile)
            if seconds > 0:
                speed = min(usage.output / call.spec.choices / seconds, OUTPUT_PER_SECOND_MAX)
                speed = max(speed, OUTPUT_PER_SECOND_FIRST)  # callers choose the samples, as above
                learned.speed += (speed - learned.speed) / MEAN_OVER
            visible = usage.output - usage.reasoning
            if call.text_bytes > 0 and visible > 0:
                learned.texts = min(learned.texts + 1, MEAN_OVER)
                bytes_per_token = min(max(1.0, call.text_bytes / visible), BYTES_PER_OUTPUT_TOKEN_FIRST)
                step = bytes_per_token - learned.bytes_per_output_token
                learned.bytes_per_output_token += step / learned.texts
        if key_id and input_share is not None:
            name = key_id, service_key, call.spec.model, call.spec.streamed
            self._learn_share(learned, organization_id, name, input_share)

    def _most_text(self, call: CallRequest, tokenizer: str) -> int:
        """Return the most tokens of the text in a call's body, whatever it says.

        The tokenizer of its models counts, if it is installed and known; else a table bounds it. Where a body
        has media, or is long or no JSON, its ASCII counts by size.
        """
        body, size = call.body.content, call.input_bytes
        found, has_media = None, size < len(body)
        if body.startswith(b"{") and size <= len(body) <= BOUND_BYTES_MAX:
            count = None
            if tokenizer and self._tokenizer is not None:
                count = self._tokenizer(min(_answering(call)))
            if count is None:
                found = bound_tokens(body, tokenizer, rare_alone=has_media)
            else:
                found = counted(body, count, rare_alone=has_media)
        if found is None:
            found = call.body.rare_bytes, call.body.rare_bytes  # a token a byte
        elif not has_media:
            return found[0]
        tokens, covered = found
        left = max(0, size - covered) + _beyond_words(call)
        return tokens + -(-left // WORST_BYTES_PER_TOKEN)

    def most_of_message(self, body: bytes, size: int, call: CallRequest | None) -> int:
        """Return the most tokens of the text in a message of a live session, which has `size` bytes of it.

        `call` is the turn of the session that was last admitted.
        """
        rare = len(body) - len(body.translate(None, NOT_ASCII))
        spec = UNREAD if call is None else CallSpec(call.spec.model)
        message = CallRequest("", GENERIC, Body(body, rare_bytes=min(rare, size)), spec, input_bytes=size)
        if call is not None:
            message.aim, message.models_beside = call.aim, call.models_beside
        return min(self._most_text(message, "" if call is None else _tokenizer_of_all(message)), size)

    def most_put(self, call: CallRequest) -> int:
        """Return the most tokens of the text and media that a free call puts into a stored object."""
        document, puts = call.body.document or {}, FAMILIES[call.family].objects.puts
        name = next((name for name in puts if document.get(name)), "")
        if not name:
            return 0
        media, body = media_in(document, replace(SHAPES[puts[name]].media, root=name)), call.body
        names = FieldNames(files=max(0, body.names.files - media.named - quotes_in(document)))
        rare = len(body.content) - len(body.content.translate(None, NOT_ASCII))
        put = CallRequest(
            puts[name], call.family, Body(body.content, document, names=names, rare_bytes=rare, tools=body.tools),
            input_bytes=len(body.content) - media.size, media=media,
        )  # fmt: skip
        self.hold(put, 0, "")
        return put.input_ceiling

    def speed(self, call: CallRequest) -> float:
        """Return the likely speed of one answer, in output tokens a second."""
        learned = call.learned.entry
        return learned.speed if isinstance(learned, _Learned) else OUTPUT_PER_SECOND_FIRST

    def take_lessons(self) -> list[Lesson]:
        """Return the estimates that changed since the last call, for workers that have no statistics yet."""
        lessons: list[Lesson] = []
        for organization_id, name in self._moved:
            share = self.known.known.get(organization_id)
            learned = None if share is None else share.models.known.get(name[1:])
            own = None if share is None else share.keys.known.get(name)
            if learned is None or own is None:
                continue
            levels = learned.output.level, learned.input_ratio.level, learned.input_share.level, own.level
            lessons.append((organization_id, *name, *levels))
        self._moved.clear()
        return lessons

    def take_over(self, lesson: Lesson) -> None:
        """Store the estimates of another worker, unless this one has statistics of calls of that kind.

        The values are limited like samples.
        """
        organization_id, key_id, service, model, streamed, output, ratio, input_share, own = lesson
        share, name = self.known.find(organization_id), (service, model, streamed)
        if share is None or name not in share.models.known:
            learned = self._first(model)
            least = float(min(OUTPUT_TOKENS_FIRST, learned.ceiling))
            learned.output = _Quantile(min(max(output, least), float(learned.ceiling)))
            learned.input_ratio = _Quantile(min(max(ratio, INPUT_RATIO_FIRST), 1.0))
            learned.input_share = _Quantile(_bounded(input_share))
            share = self._keep(organization_id, name, learned)
        if (key_id, *name) not in share.keys.known:
            self._keep_of_key(organization_id, share, (key_id, *name), _Quantile(_bounded(own)))

    def _learn_share(self, learned: _Learned, organization_id: int, name: KeyName, sample: float) -> None:
        """Add a sample to the statistics of how dear the input of an API key's calls is.

        They begin with the value of the key's organization. Note what to send to other workers.
        """
        share = self.known.known.get(organization_id)
        if share is None:
            return
        own = share.keys.find(name)
        if own is None:
            own = _Quantile(learned.input_share.level)
            self._keep_of_key(organization_id, share, name, own)
        own.add(sample, self._quantile)
        moved = own.has_moved()
        moved = learned.output.has_moved() or learned.input_ratio.has_moved() or moved
        if moved and len(self._moved) < LESSONS_MAX:
            self._moved[organization_id, name] = None
            if self.learned is not None:
                self.learned()

    def _learned_of(self, call: CallRequest, organization_id: int, service_key: str) -> _Learned | None:
        share = self.known.find(organization_id)
        return (
            None if share is None else share.models.find((service_key, call.spec.model, call.spec.streamed))
        )

    def _first(self, model: str) -> _Learned:
        return _Learned(self._ceiling(model))

    def _keep(self, organization_id: int, name: tuple[str, str, bool], learned: _Learned) -> _LearnedUsage:
        share = self.known.find(organization_id) or _LearnedUsage(self._share)
        share.models.put(name, learned)
        self.known.put(organization_id, share, share.size)
        return share

    def _keep_of_key(self, organization_id: int, share: _LearnedUsage, name: KeyName, own: _Quantile) -> None:
        share.keys.put(name, own)
        self.known.put(organization_id, share, share.size)

    def _ceiling(self, model: str) -> int:
        fitting = [prefix for prefix in self._ceilings if model.startswith(prefix)]
        return self._ceilings[max(fitting, key=len)] if fitting else CEILING


def _bounded(input_share: float) -> float:
    return min(max(input_share, INPUT_SHARE_MIN), INPUT_SHARE_MAX)


def _within(call: CallRequest, ceiling: int) -> int:
    """Return the most output tokens of one answer, at whichever upstream of the call allows most.

    `ceiling` is the maximum of the model. Where the size of an upstream's context is known, the output
    has only the rest after the prompt.
    """
    if not call.aim.facts:
        return ceiling
    tokens = 1
    for facts in call.aim.facts:
        most = ceiling if facts.output_max is None else facts.output_max
        rest = most if facts.context is None else facts.context - call.input_estimate
        tokens = max(tokens, min(most, rest))
    return tokens


@lru_cache(1024)
def model_bounds(model: str) -> tuple[int, int]:
    """Return the most tokens that a model answers with and reads, by its family's tables; 0 if they have none."""
    return _value_of_prefix(model, MODEL_CEILINGS, 0), _value_of_prefix(model, _CONTEXTS, 0)


def usual_most_text(call: CallRequest, tokenizer: str) -> int:
    """Return the most tokens of the text in a call's body if it is written in a language, or is code or data.

    Rare letters in a row, or marks, have more. One token a byte beyond ASCII if the tokenizer is unknown.
    """
    rare = call.body.rare_bytes
    if tokenizer and rare:
        rare = 2 * rare_tokens(call.body.content, tokenizer) - rare
    return -(-(call.input_bytes + rare + _beyond_words(call)) // WORST_BYTES_PER_TOKEN)


def _beyond_words(call: CallRequest) -> int:
    """Return the bytes to add to a call's size, because digits and capitals make more tokens than words.

    Those that occur in usual words are not counted.
    """
    dense = min(dense_bytes(call.body.content) - call.media.dense, call.input_bytes)
    return max(0, dense - call.input_bytes // WORDS_PER_DENSE) * 5 // 4


@dataclass(slots=True)
class InnerAnswers:
    """Answers of other models, or compactions, within a call.

    `models` has each model with how often it may answer, and its output maximum (None: its ceiling). Each of
    `compactions` reads the input again.
    """

    models: list[tuple[str, int, int | None]]
    compactions: int = 0


def answers_within(call: CallRequest) -> InnerAnswers | None:
    """Return the answers of other models within a call, such as advisors, and its compactions of input.

    None if only the requested model answers.
    """
    document = call.body.document
    if document is None or not (call.models_beside or _MANAGEMENT in document):
        return None
    shape, found = SHAPES.get(call.meter), InnerAnswers([], _compactions(document))
    field = shape.tool_uses if shape is not None else ""
    for tool in call.body.tools if call.models_beside else ():
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _MAKERS:
            continue
        advisor = bool(field) and _is_advisor(tool)
        uses = stated_uses(tool.get(field)) if advisor else None
        most = stated_uses(tool.get("max_tokens")) if advisor else None
        found.models += [(model, uses or MODEL_USES, most) for model in models_of(tool, "tools")]
    for plugin in call.body.plugins if call.models_beside else ():
        found.models += [(model, 1, None) for model in models_of(plugin, "plugins")]
    found.models += [
        (attempt.model, 1, call.output_max if attempt.output_max is None else attempt.output_max)
        for attempt in call.spec.attempts
    ]
    return found if found.models or found.compactions else None


def limit_models(call: CallRequest) -> None:
    """Set how often an advisor may answer, in a call that does not state it, if its API has such a field."""
    shape = SHAPES.get(call.meter)
    if shape is None or not (shape.tool_uses and call.models_beside):
        return
    for tool in call.body.tools:
        if _is_advisor(tool) and stated_uses(tool.get(shape.tool_uses)) is None:
            tool[shape.tool_uses] = MODEL_USES
            call.body.put(shape.tool_uses)


def _is_advisor(tool: Document) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind.startswith(_ADVISOR)


def _compactions(document: Document) -> int:
    """Return how often a model may compact (summarize) a call's input, by the fields that ask for it."""
    managed = document.get(_MANAGEMENT)
    if isinstance(managed, dict):
        edits = elements(managed, "edits", f"{_MANAGEMENT}.")
    else:
        edits = elements(document, _MANAGEMENT)
    kinds = [edit.get("type") for edit in edits]
    return sum(isinstance(kind, str) and kind.startswith(_COMPACTION) for kind in kinds)


def stated_uses(most: object) -> int | None:
    """Return the maximum of uses that a tool states in the value `most`, or None if that is no valid one."""
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        return min(most, TOOL_USES_MAX)
    return None


def _tokenizer_of_all(call: CallRequest) -> str:
    """Return the name of the tokenizer of all models that may answer; empty if they differ."""
    names = {tokenizer_of(model) for model in _answering(call)}
    return names.pop() if len(names) == 1 else ""


def _answering(call: CallRequest) -> set[str]:
    """Return the models that may answer, as the upstreams call them."""
    return ({target.model or call.spec.model for target in call.aim.targets} or {call.spec.model}).union(
        call.models_beside
    )


def tokenizer_of(model: str) -> str:
    """Return the name of a model's tokenizer, by the longest known prefix; empty if none is public."""
    name = model.removeprefix(FINE_TUNED)
    fitting = [prefix for prefix in _TOKENIZERS if name.startswith(prefix)]
    return _TOKENIZERS[max(fitting, key=len)] if fitting else ""


def _media_beyond(call: CallRequest) -> int:
    """Return the most tokens of a call's media beyond its `tokens`, by the dearest of its models.

    A named image counts as one, and a named file that may be long as all that the model reads.
    """
    costs = [_media_costs(call.family, model) for model in _answering(call)]
    picture, text = max([cost.picture for cost in costs]), max([cost.page_text for cost in costs])
    most, second = _context_of(call), max([cost.second for cost in costs])
    patches = (
        [_value_of_prefix(model, _PATCHES, _NO_PATCH) for model in _answering(call)]
        if call.media.sizes
        else []
    )
    if not call.media.endless and not call.unmeasured:
        heard = call.media.seconds * second + call.media.video_seconds * SHAPES[call.meter].media.frame
        pages = call.media.pages * (picture + text) + -(-call.media.unsure // WORST_BYTES_PER_TOKEN)
        most = min(most, pages + max(heard, call.media.recording_tokens))
    beyond = call.media.count * (picture - BLOB_TOKENS) - _smaller(call, picture, patches)
    beyond += call.body.names.files * picture + call.media.sound_beyond + call.media.text_beyond
    return beyond + max(0, most - call.media.document_tokens - call.media.recording_tokens)


def _context_of(call: CallRequest) -> int:
    """Return the most tokens that a model of a call reads at all."""
    configured = [upstream.context for upstream in call.aim.facts]
    if configured and None not in configured:
        return max([context or 0 for context in configured])
    return max([_media_costs(call.family, model).context for model in _answering(call)])


def _added_for_tools(call: CallRequest) -> int:
    """Return the most tokens that a provider adds to the prompt of a call with tools, beside the text of these."""
    family = OF_METER.get(call.meter)
    if family is None:
        return 0
    costs, tokens = tool_costs(family.name), tool_tokens(family.name)
    dearest = max(tokens.values(), default=0)
    own = [tokens.get(kind, dearest) for tool in call.body.tools for kind, _ in kinds_of(tool, costs)]
    return max([_media_costs(family.name, model).tool_prompt for model in _answering(call)]) + sum(own)


def _smaller(call: CallRequest, picture: int, patches: list[tuple[int, int]]) -> int:
    """Return how many tokens less than `picture` each the images of known size have at most."""
    if picture <= BLOB_TOKENS or not patches or _NO_PATCH in patches:
        return 0
    side, hundredths = min([patch[0] for patch in patches]), max([patch[1] for patch in patches])
    costs = [
        -(-width // side) * -(-height // side) * hundredths // 100 + 1 for width, height in call.media.sizes
    ]
    return sum([max(0, picture - max(cost, BLOB_TOKENS)) for cost in costs])


class _ModelCosts(NamedTuple):
    """The most tokens of parts of a prompt, as one model of an API counts them."""

    picture: int
    page_text: int
    context: int  # that the model reads at all
    second: int
    tool_prompt: int  # added where a call has tools


def _media_costs(family: Family, model: str) -> _ModelCosts:
    """Return what a model of an API counts at most; results are cached."""
    costs = _costs.get((family, model))
    if costs is None:
        if len(_costs) >= MODELS_REMEMBERED_MAX:
            _costs.clear()
        costs = _costs[family, model] = _ModelCosts(
            _value_of_prefix(model, _PICTURES, _PICTURES_UNKNOWN[family]),
            _value_of_prefix(model, _PAGE_TEXT, PAGE_TEXT_TOKENS),
            _value_of_prefix(model, _CONTEXTS, CONTEXT_MAX),
            _value_of_prefix(model, _SECONDS, SECOND_TOKENS),
            _value_of_prefix(model, _TOOL_PROMPTS, _TOOL_PROMPTS_UNKNOWN[family]),
        )
    return costs


_costs: Final[dict[tuple[Family, str], _ModelCosts]] = {}
# A version goes on with one or two more digits, not with those of a date.
_GOES_ON: Final = r"(?<=\d)\d{1,2}(?!\d)"


def _value_of_prefix(model: str, table: dict[str, _Value], usual: _Value) -> _Value:
    """Return the value of the longest prefix in a table with which a model's name begins.

    Providers put their own name, a region or an account in front. A prefix that ends within a version, such
    as `gpt-5` of `gpt-54`, does not fit.
    """
    name, fitting = model.lower(), ""
    for prefix in table:
        if len(prefix) > len(fitting) and re.search(rf"(?:^|[/.:@]){re.escape(prefix)}(?!{_GOES_ON})", name):
            fitting = prefix
    return table[fitting] if fitting else usual
