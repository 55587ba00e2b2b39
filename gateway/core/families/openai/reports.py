"""The meaning of a usage report in OpenAI's shape, from any server: all differences are in one table.

A number has several names, and may be missing. Parts may be included in a number or not, and a total may
exceed the sum of its parts. A report may be about one choice of several, and may be repeated.
"""

from __future__ import annotations

from math import ceil, isqrt
from operator import attrgetter
from typing import Final

from gateway.core.billing.price_book import SEARCH
from gateway.core.families.family import objects_in
from gateway.core.families.openai.shapes import USAGE, InputDetails, OutputDetails, ReportedUsage
from gateway.core.metering.content import content_bytes
from gateway.core.metering.meter import Detail, Meter
from gateway.core.metering.report import bounded_output

# Tokens of the prompt, of the completion, cached and of reasoning.
Numbers = tuple[int, int, int, int]

# The names of one number at different servers. The largest value counts. The first names are OpenAI's
# chats', the second OpenAI's responses'; behind them stand DeepSeek, Moonshot and Together, Mistral, and
# those that pass on what messages report.
_PROMPT: Final = attrgetter("prompt_tokens", "input_tokens")
_COMPLETION: Final = attrgetter("completion_tokens", "output_tokens")
_CACHED: Final = attrgetter(
    "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cache_read_input_tokens"
)
_WRITTEN: Final = attrgetter("cache_write_tokens", "created_cache_tokens")
_TOKEN_CHARACTERS: Final = 10  # of formal English, which is the densest: a report of fewer tokens is doubtful
_LENGTH: Final = "length"
_TIMINGS: Final = "timings"  # of llama.cpp, whose report is about the first choice


def _largest_count(counts: tuple[int | None, ...]) -> int | None:
    """Return the largest of these counts of a report, or None if all are missing."""
    most: int | None = None
    for count in counts:
        if count is not None and (most is None or count > most):
            most = count
    return most


def read_usage(meter: Meter, raw: bytes) -> Numbers | None:
    """Return the token counts of a usage report, and note its details; None if the report has no count."""
    usage = USAGE.read(meter, raw)
    if usage is None:
        return None
    meter.detail.note_cost(raw)
    total, told = usage.total_tokens, _largest_count(_COMPLETION(usage))
    completion = told or 0
    prompt = _largest_count(_PROMPT(usage))
    if prompt is None:  # some embedding servers report a total alone
        prompt = 0 if total is None else max(0, total - max(0, completion))
        if told is None and total is None:
            return None
    if prompt < 0 and (told is None or told < 0):
        return None
    cached, reasoning, within = _note(meter.detail, usage)
    if usage.server_tool_use or usage.server_side_tool_usage_details or usage.plugins is not None:
        _note_uses(meter.detail, usage, raw)
    if min(prompt, completion) < 0:
        return prompt, completion, cached, reasoning
    total, cited = _without_sources(usage, prompt + completion)
    if within > prompt:  # the parts exceed the prompt, so they are not included in it
        prompt += within
    elif total is not None and total - prompt - completion in {cached, within} - {0, reasoning}:
        prompt = total - completion
    if reasoning > completion:
        completion, reasoning_beside = completion + reasoning, 0
    else:
        reasoning_beside = reasoning
    if total is not None and total != prompt + completion:
        if total - prompt - completion != reasoning_beside:
            meter.detail.keep(raw)
        completion = bounded_output(meter, completion, total - prompt)
    return prompt + cited, completion, cached, reasoning


def _without_sources(usage: ReportedUsage, parts: int) -> tuple[int | None, int]:
    """Return the total without the texts of sources that the model read, and the tokens of these texts.

    They are in no other number, and in some totals.
    """
    total, cited = usage.total_tokens, max(0, usage.citation_tokens or 0)
    return (total - cited if total == parts + cited else total), cited


def _note_uses(detail: Detail, usage: ReportedUsage, raw: bytes) -> None:
    for uses in (usage.server_tool_use, usage.server_side_tool_usage_details):
        note_tools(detail, uses, raw)
    _note_plugins(detail, usage.plugins, raw)


def note_tools(detail: Detail, uses: dict[str, int] | None, raw: bytes) -> None:
    """Note uses of a provider's tools, by names such as `web_search_requests` and `x_search_calls`."""
    if not uses:
        return
    for name, times in uses.items():
        if not detail.used_tool(name.removesuffix("_requests").removesuffix("_calls"), times):
            detail.keep(raw)


def _note_plugins(detail: Detail, plugins: object, raw: bytes) -> None:
    """Note uses of a provider's plugins, each with a `count` (Alibaba, whose web search is `search`)."""
    if plugins is None:
        return
    for name, plugin in plugins.items() if isinstance(plugins, dict) else ((None, None),):
        count = plugin.get("count") if isinstance(plugin, dict) else None
        tool = SEARCH if name == "search" else str(name)
        if type(count) is not int or count < 0 or not detail.used_tool(tool, count):
            detail.keep(raw)


def _note(detail: Detail, usage: ReportedUsage) -> tuple[int, int, int]:
    """Note cached, sound and image tokens of a usage report.

    Return three counts: cached tokens, reasoning tokens, and all that were read from or written to a
    cache.
    """
    if usage.num_search_queries:
        detail.used_tool(SEARCH, usage.num_search_queries)
    read: InputDetails | None = usage.prompt_tokens_details or usage.input_tokens_details
    made: OutputDetails | None = usage.completion_tokens_details or usage.output_tokens_details
    cached, written = _largest_count(_CACHED(usage)) or 0, usage.cache_creation_input_tokens or 0
    reasoning = 0
    if read is not None:
        cached, written = (
            max(cached, read.cached_tokens or 0),
            max(written, _largest_count(_WRITTEN(read)) or 0),
        )
        kept = read.cache_write_tokens_details
        detail.cache_write_1h = 0 if kept is None else kept.ttl_12h_tokens or 0
        detail.audio_input, detail.image_input = read.audio_tokens or 0, read.image_tokens or 0
    if read is not None or written:
        detail.cache_write = written - detail.cache_write_1h
    if made is not None:
        reasoning = made.reasoning_tokens or 0
        detail.audio_output, detail.image_output = made.audio_tokens or 0, made.image_tokens or 0
    if read is not None and detail.main_input:
        detail.text_input = max(0, read.text_tokens or 0) or detail.text_input
    if made is not None and detail.main_output:
        detail.text_output = max(0, made.text_tokens or 0)
    reasoning = max(reasoning, usage.reasoning_tokens or 0)
    return cached, reasoning, max(0, cached) + max(0, written)


class _Sum:
    """The summed token counts of several choices. Choices of the same prompt share its input."""

    __slots__ = ("_choices", "_prompts", "cached", "read", "reasoning", "written")

    def __init__(self) -> None:
        self._choices: dict[int, tuple[int, int]] = {}
        self._prompts: dict[int, tuple[int, int]] = {}
        self.read = self.written = self.cached = self.reasoning = 0

    def put(self, index: int, prompt: int, numbers: Numbers) -> None:
        """Record the tokens of choice `index`, whose prompt has the number `prompt`.

        Numbers that are lower than in an earlier report of the same choice are ignored.
        """
        read, written, cached, reasoning = numbers
        written_before, reasoning_before = self._choices.get(index, (0, 0))
        written, reasoning = max(written, written_before), max(reasoning, reasoning_before)
        self._choices[index] = written, reasoning
        self.written += written - written_before
        self.reasoning += reasoning - reasoning_before
        read_before, cached_before = self._prompts.get(prompt, (0, cached))
        read, cached = max(read, read_before), min(cached, cached_before)
        self.cached += cached - (cached_before if prompt in self._prompts else 0)
        self.read += read - read_before
        self._prompts[prompt] = read, cached

    def __len__(self) -> int:
        return len(self._choices)


class ChoiceReports:
    """The usage reports in a stream of several choices. `each` choices share a prompt.

    A report in an event with a choice is about that choice. Other reports are about all choices. But
    llama.cpp sends one after the end of each choice: then each is about the choice that ended before.
    """

    __slots__ = (
        "_choice_reports",
        "_covered",
        "_each",
        "_ended_choices",
        "_largest",
        "_last",
        "_last_report",
        "_other_reports",
        "_reported_at_end",
        "_reporting_choices",
    )  # fmt: skip

    def __init__(self, each: int) -> None:
        self._each = each
        self._reporting_choices: set[int] = set()
        self._ended_choices: set[int] = set()
        self._last = self._largest = 0
        # Reports in events with a choice; other reports by the choice that ended before; the last of these.
        self._choice_reports, self._other_reports = _Sum(), _Sum()
        self._last_report: Numbers = 0, 0, 0, 0
        # Choices whose own report came at their end; the size of events with content and a report.
        self._reported_at_end: set[int] = set()
        self._covered = 0

    def see(self, meter: Meter, index: int, ends: bool) -> None:
        """Note that an event has text of choice `index`; `ends` says that the choice is complete."""
        if index not in self._reporting_choices:
            self._reporting_choices.add(index)
            self._check(meter)
        if ends:
            self._ended_choices.add(index)
            self._last = index

    def report(self, meter: Meter, index: int, numbers: Numbers, content: int) -> None:
        """Add the usage report `numbers` of choice `index`, or of all choices if `index` is -1.

        `content` is the size of the text in the same event.
        """
        own, alone = self._choice_reports, self._other_reports
        if index < 0:
            alone.put(self._last, self._last // self._each, numbers)
            self._last_report = numbers
        else:
            own.put(index, index // self._each, numbers)
            self._covered += content
            if index in self._ended_choices:
                self._reported_at_end.add(index)
        whole = self._last_report
        if len(alone) > 1:
            whole = alone.read, alone.written, alone.cached, alone.reasoning
        # The sum of several reports is bounded by the call or its model. A single report is not.
        self._largest = max(self._largest, numbers[1])
        most = max(self._largest, meter.output_most)
        used, output = max(whole[0], own.read), min(max(whole[1], own.written), most)
        counted = output >= meter.content_events
        of_one = meter.call.aim.reports_each and 0 < len(alone) < len(self._reporting_choices)
        tells_all = not of_one and (len(alone) > 1 or (counted and whole[1] >= own.written))
        meter.reported_part = 1.0 if tells_all else meter.call.spec.first_part
        final = counted and (
            len(self._reported_at_end) >= len(self._reporting_choices)
            or (not of_one and self._covered == meter.content_events)
            or len(alone) >= len(self._reporting_choices)
            or (len(alone) == 1 and tells_all)
        )
        cached = whole[2] if whole[0] >= own.read else own.cached
        meter.report(used, output, cached, max(whole[3], own.reasoning), used + output, final=final)
        meter.final = final  # another choice may begin behind the last word of those before
        self._check(meter)

    def _check(self, meter: Meter) -> None:
        """Mark the output as uncounted if fewer choices have a report of their own than have text."""
        reports = len(self._other_reports) or len(self._choice_reports)
        of_all = len(self._other_reports) == 1 and not meter.call.aim.reports_each
        meter.uncounted = 0 < reports < len(self._reporting_choices) and not of_all


def report_all(meter: Meter, document: dict[str, object], numbers: Numbers) -> Numbers:
    """Return the token counts of an answer with several choices, whose report may count the first alone.

    The report of llama.cpp and of upstreams configured so does, and one that has fewer tokens than choices
    that reached their maximum, and no more than that maximum. `numbers` are the counts of the report. A report
    that is small for the texts is noted as contradicted, and counts.
    """
    choices, call = objects_in(document, "choices"), meter.call
    prompt, completion, cached, reasoning = numbers
    texts = [content_bytes(choice, size_of=len) for choice in choices]
    if len(texts) < 2 or completion < 0:
        return numbers
    stated = call.output_max or 0
    at_most = [
        place for place, choice in enumerate(choices) if stated and choice.get("finish_reason") == _LENGTH
    ]
    of_one = completion <= stated and completion < stated * len(at_most)
    if not (call.aim.reports_each or _TIMINGS in document or of_one):
        meter.detail.contradicted = sum(texts) > _TOKEN_CHARACTERS * completion
        return numbers
    meter.marked = meter.detail.contradicted = True
    known = dict.fromkeys(at_most, stated) | {0: completion}
    counted = _count_tokens(texts, known, stated, call.learned.output_bytes_per_token)
    most = max(completion, stated * len(texts)) if stated else meter.bounds.usage_tokens_max
    output = min(max(completion, counted), most)
    return ceil(max(0, prompt) / call.spec.first_part), output, cached, reasoning


def _count_tokens(texts: list[int], known: dict[int, int], stated: int, learned: float) -> int:
    """Return the tokens of several texts. `texts` are their sizes, `known` the tokens of some, by index.

    Each other text has as many tokens for its size as the densest known one, or as the `learned` bytes for
    a token say, whichever is more, plus one for its end, plus the square root of the number, because its
    words may be shorter; at most `stated`, if that is not 0.
    """
    tokens, size = known[0], texts[0]
    for place, one in known.items():
        if texts[place] and (not size or one * size > tokens * texts[place]):
            tokens, size = one, texts[place]
    total = 0
    for place, text in enumerate(texts):
        likely = max(-(-tokens * text // size) if size else tokens, ceil(text / learned))
        likely += isqrt(likely) + 1
        total += known.get(place, min(likely, stated) if stated else likely)
    return total
