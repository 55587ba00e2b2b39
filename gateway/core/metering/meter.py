"""Count what one answer used, from the bytes that pass.

A meter never alters an answer except to leave out a usage frame nobody asked for, and to end
one that is cut. What an upstream reports is charged; what it does not report is counted. The bytes
by which a client knows that it has everything wait in the meter until `finish`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from gateway.core.accounts.outbox import UNKNOWN_BYTES_MAX
from gateway.core.billing.price_book import Counts
from gateway.core.billing.reported_cost import read_cost
from gateway.core.calls.call import CallRequest, UsageBounds, input_tokens
from gateway.core.metering.content import LooseContent
from gateway.core.metering.endings import BY_CONNECTION, Ending
from gateway.core.model import TokenUsage

# What an answer says beside what is charged: kinds of tokens, tools, tier, the model that answered.

NAME_CHARACTERS_MAX = 128
TOOLS_MAX = 64
QUERIES_MAX = 1_024  # distinct ones of an answer's searches
TOOL_USES_MAX = 1_000_000  # each may have a price
_HALF_READ = "\ufffd"


class Detail:
    """One answer's, as far as it was read. Tokens are parts of its `TokenUsage`.

    `cache_write` are those with the short lifetime. `tools` counts uses of the provider's tools by
    name. `unknown` is the last report of use that says something nobody here knows, a JSON object, empty
    where that is too long to keep; `says_more` that there was one. `contradicted` says that what passed shows
    a report to be untrue. `retry_s` is after how many seconds a
    refusal says to try again. `beside` are the tokens of other models that answered within the call, each
    with the model's name; they are in what its `TokenUsage` has. `cost` is what its provider says it cost, in
    nano-dollars, None where it says nothing of that.
    """

    __slots__ = (
        "_believed", "_queries", "audio_input", "audio_output", "beside", "cache_write", "cache_write_1h",
        "contradicted", "cost", "image_input", "image_output", "model", "retry_s", "says_more",
        "service_tier", "tools", "unknown",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cache_write = self.cache_write_1h = 0
        self.audio_input = self.audio_output = self.image_input = self.image_output = 0
        self.model = self.service_tier = ""
        self.tools: dict[str, int] = {}
        self.unknown = b""
        self.says_more = self.contradicted = False
        self.retry_s = 0.0
        self.cost: int | None = None
        self.beside: list[tuple[str, Counts]] = []
        self._queries: set[int] | None = None
        self._believed: tuple[int, int, int, int, int, int, list[tuple[str, Counts]]] | None = None

    def answered_by(self, model: object) -> None:
        """Note the model that an answer says made it."""
        if not self.model:
            self.model = _name(model)

    def served_as(self, tier: object) -> None:
        """Note the tier of service that an answer says it had."""
        if tier is not None:
            self.service_tier = _name(tier).lower()

    def used_tool(self, name: str, times: int) -> bool:
        """Set the uses of a tool, as the last report says; return whether there is place for them.

        Prices name tools in lower case.
        """
        if times <= 0:
            return True
        name = _name(name).lower()
        if not name or (name not in self.tools and len(self.tools) == TOOLS_MAX):
            self.says_more = True
            return False
        self.tools[name] = min(times, TOOL_USES_MAX)
        return True

    def searched(self, queries: Iterable[object]) -> None:
        """Count the distinct queries of the whole answer, without empty ones."""
        known = self._queries
        if known is None:
            known = self._queries = set()
        for query in queries:
            if isinstance(query, str) and query.strip() and len(known) < QUERIES_MAX:
                known.add(hash(query))
        self.used_tool("web_search", len(known))

    def believe(self, of_input: bool, of_output: bool) -> None:
        """Raise each part to the most of any believed report: `of_input` and `of_output` say which sides of
        the last one are believed.
        """
        before = self._believed or (0, 0, 0, 0, 0, 0, [])
        written = self.cache_write + self.cache_write_1h
        if not of_input:
            written, self.cache_write_1h, self.audio_input, self.image_input, self.beside = (
                before[0], before[1], before[2], before[3], before[6],
            )  # fmt: skip
        if not of_output:
            self.audio_output, self.image_output = before[4], before[5]
        if self._believed is not None:
            written, self.cache_write_1h = max(written, before[0]), max(self.cache_write_1h, before[1])
            self.audio_input, self.image_input = (
                max(self.audio_input, before[2]),
                max(self.image_input, before[3]),
            )
            self.audio_output, self.image_output = (
                max(self.audio_output, before[4]),
                max(self.image_output, before[5]),
            )
            self.beside = self.beside or before[6]
        self.cache_write = written - self.cache_write_1h
        self._believed = (
            written, self.cache_write_1h, self.audio_input, self.image_input, self.audio_output,
            self.image_output, self.beside,
        )  # fmt: skip

    def answered_within(self, model: object, counts: Counts) -> None:
        """Add the reported tokens of a model that answered within the call, whose name may be unknown."""
        self.beside.append((_name(model), counts))

    def note_cost(self, report: bytes) -> None:
        """Note what a report of use says that all of it cost: of several reports the most."""
        cost = read_cost(report)
        if cost is not None and (self.cost is None or cost > self.cost):
            self.cost = cost

    def keep(self, report: bytes) -> None:
        """Store a report of use with unknown parts as it came; it is counted all the same."""
        self.says_more = True
        if len(report) <= UNKNOWN_BYTES_MAX and _is_text(report):
            self.unknown = report

    def counts(self, usage: TokenUsage) -> Counts:
        """Return tokens by kind: each is within what is charged, whatever an answer says."""
        left, output = usage.input, usage.output
        cache_read = usage.cached and _within(usage.cached, left)
        left -= cache_read
        cache_write_1h = self.cache_write_1h and _within(self.cache_write_1h, left)
        left -= cache_write_1h
        cache_write = self.cache_write and _within(self.cache_write, left)
        left -= cache_write
        reasoning = usage.reasoning and _within(usage.reasoning, output)
        audio_input = self.audio_input and _within(self.audio_input, left)
        audio_output = self.audio_output and _within(self.audio_output, output)
        return (
            left, cache_read, cache_write, cache_write_1h, output, reasoning, audio_input, audio_output,
            self.image_input and _within(self.image_input, left - audio_input),
            self.image_output and _within(self.image_output, output - audio_output),
        )  # fmt: skip


def _within(count: int, most: int) -> int:
    if count < 0:
        return 0
    return min(count, most)


def _name(value: object) -> str:
    """Return a name as it may be stored and shown; empty where it is none."""
    if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX and value.isprintable():
        return "" if _HALF_READ in value else value
    return ""


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


TOKENIZED_BYTES_MAX = 1 << 20  # longer texts are counted by what was learned
SLIM_BYTES_MAX = 128 << 10  # of a document or an event, while memory is short
TEXTS_MAX = 1024  # pieces of it: each takes fifty bytes beside its letters
BEGUN_MAX = 1024  # choices that count each by itself
BEHIND_END_BYTES_MAX = 64 << 10  # what may follow the end of an answer, all of it kept

# How far an answer has come: more follows; every choice has said that it is finished, which more
# content would disprove; the API sends nothing after the event.
OPEN: Final = 0
FINISHED: Final = 1
CLOSED: Final = 2


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API says what it produced and used.

    `read_whole` takes a complete JSON answer, `read_event` the data of one event and says
    whether that event is only a usage frame, `closing` the events that end a cut stream well, and `failing`
    the event that says a refusal's body in the middle of a stream. An API that streams nothing has the first.
    `read_event` notes choices by `Meter.note_choice`, counts in `Meter.finished` what finishes one of them,
    and calls `Meter.close` at the last word, by its `ending`.
    `texts` finds where a text begins that is produced, or padding or a number that may differ beside it, by
    groups of these names: an event that differs from one before it by these alone is not decoded. Without it,
    every event is. `brought` names what stands in an answer beside what its model wrote, in this API alone.
    """

    read_whole: Callable[[Meter, bytes], None]
    read_event: Callable[[Meter, bytes], bool] = lambda meter, data: False
    closing: Callable[[Meter], bytes] = lambda meter: b""
    failing: Callable[[Meter, bytes], bytes] = lambda meter, body: b"data: %b\n\n" % body
    texts: re.Pattern[bytes] | None = None
    ending: Ending = BY_CONNECTION
    brought: frozenset[str] = frozenset()


class Meter:
    """Count one answer: the arithmetic every meter shares.

    `ended` says that its connection came to the answer's end, `last_word` that its API said so, and `begun`
    are the choices that began, each with whether it is finished. `final` says that the report covers all of
    it, `partial` that it leaves out what an API that always reports never does, `uncounted` that its output
    is no number, `by_units` that it tells no tokens, `reported_part` which part of the prompts it is about;
    `by_choice` is what a family keeps of the reports of several choices, `output_most` the most tokens that
    all choices may write, by what the call states or its model can; `failed` says that the answer itself says
    it failed, or is empty; `unread` that nobody can read some of it, `broke` that it ended within the first
    piece of it. `text_bytes` came in pieces, and `whole_bytes` are those of an event that says all of it.
    To end a stream well, `opening` keeps its first event (empty where that is long) and `position` where it
    stands: the open block or the last sequence number, as the API counts, -1 for none. `detail` is what the
    answer says beside what is charged. `phase` is OPEN, FINISHED or CLOSED, `finished` how often a choice
    was said to be finished. `withheld` bytes of its input wait for the end; `surplus` says that more came
    behind the end than may. `said` are sizes of content that a family adds up by itself, by their place and
    kind. `told` are ids of objects that the upstream keeps. `behind` says that `feed` has more to do with
    what it was fed, which it does once it is fed nothing.
    """

    __slots__ = (
        "_reported_at", "begun", "behind", "bounds", "broke", "by_choice", "by_units", "cached", "call",
        "content_events", "detail", "ended", "failed", "final", "finished", "input", "last_word", "marked",
        "opening", "output", "output_most", "partial", "phase", "position", "reasoning", "reported",
        "reported_part", "said", "status", "surplus", "text_bytes", "texts", "told", "total", "uncounted",
        "unread", "whole_bytes", "withheld",
    )  # fmt: skip

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds) -> None:
        self.call = call
        self.status = status
        self.bounds = bounds
        self.input = self.output = self.cached = self.reasoning = self.total = 0
        self.detail = Detail()
        self.text_bytes = self.whole_bytes = self.content_events = self.finished = 0
        self.withheld = self._reported_at = 0
        self.phase: int = OPEN
        self.behind = False
        self.told: list[str] = []
        self.said: dict[tuple[int, str], int] = {}
        self.begun: dict[int, bool] = {}
        # Counts stay within what the call may have; reports need not.
        each, most = call.output_max, bounds.usage_tokens_max
        if each is None:
            each = call.output_ceiling or most
        self.output_most = min(each * call.choices, most)
        self.reported = self.partial = self.uncounted = self.marked = self.final = False
        self.ended = self.last_word = self.failed = self.surplus = self.by_units = False
        self.unread = self.broke = False
        self.reported_part = 1.0
        self.by_choice: object = None
        self.opening: bytes | None = None
        self.position = -1
        # Pieces of several choices come in turn and are no text together.
        self.texts: list[str] | None = [] if call.tokens_of is not None and call.choices == 1 else None

    def feed(self, chunk: bytes) -> bytes:
        """Read the next bytes of the answer; return those to pass on now.

        By what is returned nobody can know that the answer is complete.
        """
        return chunk

    def finish(self) -> bytes:
        """End a complete answer; return the rest to pass on, but for the part it is `behind`.

        Not called for a broken one.
        """
        self.ended = True
        return b""

    def whole(self, answer: bytes) -> bytes:
        """Read an answer that is complete already, in place of `feed` and `finish`."""
        return self.feed(answer) + self.finish()

    def cut(self) -> bytes:
        """Return bytes that end the answer here, well-formed in the API's own shape.

        Empty where it cannot be ended well at this byte: it is broken off. A document and a compressed
        answer never can.
        """
        return b""

    def fail(self, body: bytes) -> bytes:
        """Return bytes that say in the stream's own shape why it ends here; empty where that cannot be."""
        return b""

    @property
    def kept(self) -> int:
        """Bytes of the answer that are kept in memory."""
        return self.withheld + (self.text_bytes if self.texts is not None else 0)

    def slim(self) -> None:
        """Drop all that a charge does not need: memory is short. The charge is never less by it."""
        self.texts = None

    @property
    def produced(self) -> bool:
        """True once the first content or the first report of use was seen."""
        return self.reported or self.content_events > 0 or self.seen_bytes > 0

    @property
    def seen_bytes(self) -> int:
        """Bytes of the text that was seen, in pieces or as a whole."""
        return max(self.text_bytes, self.whole_bytes)

    @property
    def known(self) -> bool:
        """True once nothing that may still come changes what is charged."""
        return False

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its last word: else it broke off, however its connection ended."""
        return self.ended

    def note_choice(self, index: object, place: int, *, finished: bool) -> None:
        """Note a choice that begins or goes on, by its index, else by its place; or that it is finished."""
        begun, number = self.begun, index if type(index) is int else place
        if number not in begun and len(begun) >= BEGUN_MAX:
            number = -1
        if finished:
            begun[number] = True
        else:
            begun.setdefault(number, False)

    def close(self) -> None:
        """Mark an event as the last word of the answer's API."""
        self.phase, self.last_word = CLOSED, True

    def ends_by(self, ending: Ending) -> bool:
        """Return whether a stream came to one of these last words, or nobody can read whether it did."""
        if self.last_word or (ending.choices and self.begun and False not in self.begun.values()):
            return True
        return self.ended and not self.broke and (self.unread or ending is BY_CONNECTION)

    def observed(self) -> int:
        """Return tokens seen so far, zero before anything was produced."""
        if not self.produced:
            return 0
        return max(self.total, self._bounded((self.input or self.call.input_estimate) + self.counted()))

    def so_far(self) -> TokenUsage:
        """Return the use of the tokens up to now, as far as reported."""
        if not self.produced:
            return TokenUsage(units=0)
        output = max(self.output, self.counted())
        read = self.input or self.call.input_estimate
        return TokenUsage(
            read, output, self.cached, self.reasoning, self._bounded(max(self.total, read + output))
        )

    def usage(self) -> TokenUsage:
        """Return the use to charge for this answer, as far as it came."""
        is_whole, good = self.is_whole, 200 <= self.status < 300
        ended_well = self.ended and not self.failed and good
        if ended_well and is_whole and self.call.reports and (self.partial or not self.reported):
            return self._ceiling()
        if self.reported:
            return self._reported_usage(is_whole)
        if not good or not (self.produced or self.unread or (ended_well and is_whole)):
            return TokenUsage(units=0)
        spent = input_tokens(self.call)
        output = self._produced_tokens()
        return TokenUsage(spent, output, 0, 0, self._bounded(spent + output), 1, False, True)

    def counted(self) -> int:
        """Count output tokens by what passed, at least one a content event, up to the call's maximum."""
        size = int(-(-self.seen_bytes // self.call.output_bytes_per_token))
        return min(max(self.content_events, size), self.output_most)

    def see_rest(self, part: bytes) -> None:
        """Count the text in the part of an event or element within which the answer ends so far."""
        if part:
            self.whole_bytes = max(self.whole_bytes, self.text_bytes + LooseContent(part).size)

    def unreadable(self, size: int) -> None:
        """Count bytes of an answer that nobody can read, as far as its call produces any tokens."""
        self.unread = self.unread or size > 0
        if self.call.output_max != 0:
            self.text_bytes += size
            self.texts = None

    def saw(self, text: str) -> None:
        """Count a piece of produced text."""
        self.text_bytes += len(text) if text.isascii() else len(text.encode())
        if self.texts is not None:
            self.texts.append(text)
            if self.text_bytes > TOKENIZED_BYTES_MAX:
                self.texts = None
            elif len(self.texts) > TEXTS_MAX:
                self.texts = ["".join(self.texts)]

    def report(self, used: int, output: int, cached: int, reasoning: int, total: int, *, final: bool) -> None:
        """Record a report of use, cumulative from the start of the answer.

        None lowers a number of an earlier one, and content behind a final one shows that it was not. Numbers
        over the bound are clamped, a negative output is replaced by what was counted, and a final report that
        is smaller than an earlier final one is not believed there; each marks the usage.
        """
        most = self.bounds.usage_tokens_max
        uncounted = output < 0
        if not (
            0 <= used <= most
            and 0 <= output <= most
            and 0 <= cached <= most
            and 0 <= reasoning <= most
            and 0 <= total <= most
        ):
            self.marked = True
            used = min(used, most) if used >= 0 else self.input or self.call.input_estimate
            output = min(output if output >= 0 else self.counted(), most - min(used, 1))
            cached, reasoning = max(0, min(cached, most)), max(0, min(reasoning, most))
            total = min(max(total, used + output), most)
            if used >= output:  # the larger gives way: no more is priced than counted
                used = min(used, most - output)
            else:
                output = min(output, most - used)
        of_input, of_output = used >= self.input, output >= self.output
        self.detail.believe(of_input, of_output)
        if of_input:
            self.input, self.cached = used, max(cached, self.cached)
        if of_output:
            self.output, self.reasoning, self.uncounted = output, max(reasoning, self.reasoning), uncounted
        if not (of_input and of_output):
            self.marked = self.marked or (final and self.final)
            total = self.input + self.output
        self.total = min(max(total, self.total), most)
        self.reported = True
        self.final = self.final or final
        if of_output:  # one that tells less than was told is not about what came since
            self._reported_at = self.content_events

    def report_units(self) -> None:
        """Record a report of units beside tokens, which are noted in `detail`: it is about no tokens."""
        self.by_units = True
        self.report(0, 0, 0, 0, 0, final=True)

    def _reported_usage(self, is_whole: bool) -> TokenUsage:
        """Return the reported numbers, or those counted where the answer shows more: no prompt is read and no
        text written by zero tokens, and an answer may have broken off.
        """
        read, output, total, marked = self.input, self.output, self.total, self.marked or not is_whole
        counted = self.counted()
        answered = 200 <= self.status < 300 and not self.by_units and (counted > 0 or not self.failed)
        no_input = answered and not read and self.call.has_input
        no_output = answered and not output and self.call.output_max != 0 and counted > 0
        if no_input:
            read, marked = input_tokens(self.call), True
        is_final = self.final and self.content_events == self._reported_at
        covers = is_final or (is_whole and self.ended and not self.failed and counted <= output)
        if self.uncounted or no_output or not covers:
            read, output, marked = ceil(read / self.reported_part), max(output, self._produced_tokens()), True
            self.detail.contradicted = self.detail.contradicted or no_output or self.reported_part < 1.0
        elif not is_whole:
            output = max(output, min(self.content_events, self.output_most))
        self.detail.contradicted = self.detail.contradicted or no_input
        if read != self.input or output != self.output:
            total = self._bounded(max(total, read + output))
        told = not no_input or self.output > 0
        return TokenUsage(read, output, self.cached, self.reasoning, total, 1, told, marked)

    def _ceiling(self) -> TokenUsage:
        """Return all that the call could use: its API always reports, and may have been kept from it."""
        call = self.call
        read = max(self.input, call.input_ceiling)
        most = call.output_ceiling if call.output_max is None else call.output_max
        output = max(self.output, self._produced_tokens(), most * call.choices)
        return TokenUsage(read, output, 0, 0, self._bounded(max(self.total, read + output)), 1, False, True)

    def _produced_tokens(self) -> int:
        """Count output tokens by the model's own tokenizer where it is known, else as `counted`."""
        tokens_of = self.call.tokens_of
        if self.texts and tokens_of is not None and self.whole_bytes <= self.text_bytes:
            return min(tokens_of("".join(self.texts)), self.output_most)
        return self.counted()

    def _bounded(self, tokens: int) -> int:
        return min(tokens, self.bounds.usage_tokens_max)


def slim(bounds: UsageBounds) -> UsageBounds:
    """Return the bounds of an answer while memory is short."""
    return replace(
        bounds,
        kept_bytes_max=min(bounds.kept_bytes_max, SLIM_BYTES_MAX),
        event_bytes_max=min(bounds.event_bytes_max, SLIM_BYTES_MAX),
    )
