"""Count the usage of one answer, from the bytes that pass.

A meter alters an answer only to remove a usage frame that the client did not ask for, and to end an answer
that is cut. Reported usage is charged; without a report the text is counted. The bytes that show a client
that the answer is complete wait in the meter until `finish`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from gateway.core.accounts.call_facts import UNKNOWN_BYTES_MAX
from gateway.core.billing.price_book import KINDS, Counts
from gateway.core.billing.reported_cost import read_cost
from gateway.core.billing.unbilled import Declined
from gateway.core.calls.call import CallRequest, UsageBounds, input_tokens
from gateway.core.metering.content import LooseContent, words_in
from gateway.core.metering.endings import BY_CONNECTION, Ending
from gateway.core.model import TokenUsage

# Details of an answer: kinds of tokens, tools, tier, and the model that answered.

NAME_CHARACTERS_MAX = 128
TOOLS_MAX = 64
QUERIES_MAX = 1_024  # distinct queries of an answer's searches
TOOL_USES_MAX = 1_000_000  # each may have a price
_HALF_READ = "\ufffd"


class Detail:
    """What one answer reports besides its token counts. Tokens here are parts of these counts."""

    __slots__ = (
        "_believed", "_queries", "audio_input", "audio_output", "beside", "cache_write", "cache_write_1h",
        "contradicted", "cost", "declined", "image_input", "image_output", "main_input", "main_output", "model",
        "replaces_units", "retry_s", "says_more", "service_tier", "text_input", "text_output", "tools", "unknown",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cache_write = self.cache_write_1h = 0  # tokens written for the short lifetime, and for an hour
        self.audio_input = self.audio_output = self.image_input = self.image_output = 0
        # The kind of unsplit tokens, empty if these are text, and the tokens of text beside them.
        self.main_input = self.main_output = ""
        self.text_input = self.text_output = 0
        self.model = self.service_tier = ""
        self.tools: dict[str, int] = {}  # uses of the provider's tools by name
        self.unknown = b""  # the last report with unknown fields, raw; empty if it was too long
        # Whether there was a report with unknown fields, and whether the content proves a report wrong.
        self.says_more = self.contradicted = False
        self.replaces_units = (
            False  # what is reported is charged in place of the units that the call asked for
        )
        self.retry_s = 0.0  # seconds until a retry, as a refusal states
        self.cost: int | None = None  # nano-dollars, as the provider states
        self.beside: list[tuple[str, Counts]] = []  # tokens of other models that answered within the call
        self.declined: list[Declined] = []  # attempts before any output, which their vendor may not bill
        self._queries: set[int] | None = None
        self._believed: tuple[int, int, int, int, int, int, list[tuple[str, Counts]]] | None = None

    def answered_by(self, model: object) -> None:
        """Note the model that an answer says it is from. Only the first one that it names counts."""
        if not self.model:
            self.model = _name(model)

    def handed_to(self, model: object) -> None:
        """Note the model that answers in the place of the one that an answer named before."""
        self.model = _name(model) or self.model

    def served_as(self, tier: object) -> None:
        """Note the service tier that an answer reports."""
        if tier is not None:
            self.service_tier = _name(tier).lower()

    def used_tool(self, name: str, times: int) -> bool:
        """Set how often a provider's tool was used; a later report replaces the number.

        Return False if the name is invalid or `TOOLS_MAX` is reached. Names are in lower case, as in
        prices.
        """
        if times <= 0:
            return True
        name = _name(name).lower()
        if not name or (name not in self.tools and len(self.tools) == TOOLS_MAX):
            self.says_more = True
            return False
        self.tools[name] = min(times, TOOL_USES_MAX)
        return True

    def searched(self, queries: Iterable[object], kind: str = "") -> None:
        """Count the search queries of the whole answer: each distinct one of a `kind` counts once, an empty one not."""
        known = self._queries
        if known is None:
            known = self._queries = set()
        for query in queries:
            if isinstance(query, str) and query.strip() and len(known) < QUERIES_MAX:
                known.add(hash((kind, query)) if kind else hash(query))
        self.used_tool("web_search", len(known))

    def believe(self, of_input: bool, of_output: bool) -> None:
        """Merge the details of the last report into those believed so far: each number keeps its maximum.

        Details of the input count only if `of_input`, those of the output only if `of_output`.
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

    def forget(self) -> None:
        """Forget the parts of earlier reports: the next report is about all that was used."""
        self.cache_write = self.cache_write_1h = 0
        self._believed = None

    def answered_within(self, model: object, counts: Counts) -> None:
        """Add the tokens of another model that answered within the call; `model` may be no valid name."""
        self.beside.append((_name(model), counts))

    def note_cost(self, report: bytes) -> None:
        """Note the cost that a usage report states, unless an earlier report stated a higher one."""
        cost = read_cost(report)
        if cost is not None and (self.cost is None or cost > self.cost):
            self.cost = cost

    def keep(self, report: bytes) -> None:
        """Store a usage report with unknown fields as it came; its known fields are counted in any case."""
        self.says_more = True
        if len(report) <= UNKNOWN_BYTES_MAX and _is_text(report):
            self.unknown = report

    def counts(self, usage: TokenUsage) -> Counts:
        """Return the tokens of `usage` by `KINDS`, with the kinds that the answer reported.

        No kind exceeds the charged input or output, whatever the answer reports.
        """
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
        counts = (
            left, cache_read, cache_write, cache_write_1h, output, reasoning, audio_input, audio_output,
            self.image_input and _within(self.image_input, left - audio_input),
            self.image_output and _within(self.image_output, output - audio_output),
        )  # fmt: skip
        return self._split(counts, usage.reported) if self.main_input or self.main_output else counts

    def _split(self, counts: Counts, reported: bool) -> Counts:
        """Return counts in which what no report splits is of the main kinds; `reported`: by the upstream.

        Input that the gateway itself counted is split by its media.
        """
        split = dict(zip(KINDS, counts, strict=True))
        if self.main_output:
            named = split["reasoning"] + split["audio_output"] + split["image_output"] + self.text_output
            split[self.main_output] += max(0, split["output"] - named)
        if self.main_input and reported:
            named = split["audio_input"] + split["image_input"] + self.text_input
            split[self.main_input] += max(0, split["input"] - named)
        return tuple(split.values())

    def count_in_wholes(self, counts: Counts) -> Counts:
        """Return counts of a use whose price names no pictures: those that no report names are output."""
        if self.main_output != "image_output":
            return counts
        return (*counts[:-1], min(counts[-1], max(0, self.image_output)))


def _within(count: int, most: int) -> int:
    if count < 0:
        return 0
    return min(count, most)


def _name(value: object) -> str:
    """Return a name if it is a text that can be stored and shown; else an empty text."""
    if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX and value.isprintable():
        return "" if _HALF_READ in value else value
    return ""


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


TOKENIZED_BYTES_MAX = 1 << 20  # longer texts are counted by the learned bytes a token
TOKEN_BYTES_MAX = 64  # on the average of a text: English has nine at most, runs of spaces more
SLIM_BYTES_MAX = 128 << 10  # of a document or an event, while memory is short
TEXTS_MAX = 1024  # pieces of a text: each takes fifty bytes besides its letters
BEGUN_MAX = 1024  # choices that are tracked one by one
BEHIND_END_BYTES_MAX = 64 << 10  # bytes that may follow the end of an answer, all stored

# Phases of an answer. OPEN: more follows. FINISHED: every choice ended, unless more content follows.
# CLOSED: the API sends nothing more.
OPEN: Final = 0
FINISHED: Final = 1
CLOSED: Final = 2


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to read and end the answers of one API.

    `read_event` notes choices with `Meter.note_choice`, counts ended choices in `Meter.finished`, and calls
    `Meter.close` at the last word.
    """

    read_whole: Callable[[Meter, bytes], None]  # reads a complete JSON answer
    # reads one event; True for a usage frame alone
    read_event: Callable[[Meter, bytes], bool] = lambda meter, data: False
    closing: Callable[[Meter], bytes] = lambda meter: b""  # makes the events that end a cut stream well
    # makes the event of an error
    failing: Callable[[Meter, bytes], bytes] = lambda meter, body: b"data: %b\n\n" % body
    # Finds a text, a number or padding that may differ between events, by groups of these names. An event
    # that differs from an earlier one in these parts alone is not decoded.
    texts: re.Pattern[bytes] | None = None
    ending: Ending = BY_CONNECTION  # the last word of a stream
    brought: frozenset[str] = frozenset()  # fields with content that the model did not write


class Meter:
    """Count the usage of one answer: the arithmetic that every meter shares.

    Flags of the answer: its connection `ended` well; its API sent the `last_word`; it `failed` or is empty;
    part of it is `unread`, as nobody can read it; it `broke` off in its first piece; a `surplus` of bytes
    follows its end.

    Flags of the report: it is `final`, so it covers the whole answer; it is `partial`, so a required number
    is missing; its output is `uncounted`, as it is no number; it has units and no tokens (`by_units`); it is
    `marked` as an estimate.
    """

    __slots__ = (
        "_reported_at", "answer_tokens", "begun", "behind", "bounds", "broke", "by_units", "cached", "call",
        "content_events", "continues", "dense_from", "detail", "ended", "envelope", "failed", "final", "finished", "input",
        "known_ids", "last_word", "marked",
        "notes", "opening", "output", "output_most", "own_id", "partial", "phase", "position", "reasoning",
        "reported", "reported_part", "said", "status", "surplus", "text_bytes", "texts", "told", "total", "uncounted",
        "unread", "whole_bytes", "withheld", "words",
    )  # fmt: skip

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds) -> None:
        self.call = call
        self.status = status
        self.bounds = bounds
        self.input = self.output = self.cached = self.reasoning = self.total = 0
        self.detail = Detail()
        # Bytes of text in pieces, and in events that repeat it; then events with content, and ended choices.
        self.text_bytes = self.whole_bytes = self.content_events = self.finished = 0
        self.envelope = 0  # the most bytes of an event beside its text, where all of it was looked at
        self.withheld = self._reported_at = 0  # waiting bytes; content events at the last report
        self.phase: int = OPEN
        self.behind = False  # whether `feed` without bytes has more to do
        self.told: list[str] = []  # ids of stored objects in the answer
        self.known_ids = call.objects.brought  # of those, which need no owner: brought, or told before
        # The id of the answer itself, and the token by which a call continues it.
        self.own_id = self.continues = ""
        self.said: dict[tuple[int, str], int] = {}  # sizes of content by item and kind of event, for a family
        self.begun: dict[int, bool] = {}  # whether each choice is finished, by its index
        # Counted tokens are bounded by the call's maximum; reported ones are not.
        output_ceiling, most = call.output_max, bounds.usage_tokens_max
        if output_ceiling is None:
            output_ceiling = call.output_ceiling or most
        self.output_most = min(output_ceiling * call.spec.choices, most)
        # From so many bytes on the text is probably longer than the maximum, and its words are counted.
        self.dense_from, self.words = int(self.output_most * call.learned.output_bytes_per_token), 0
        self.reported = self.partial = self.uncounted = self.marked = self.final = False
        self.ended = self.last_word = self.failed = self.surplus = self.by_units = False
        self.unread = self.broke = False
        self.answer_tokens = 0  # of one choice, by what the answer says of it; 0 if that is unknown
        self.reported_part = 1.0  # the part of the prompts that the report covers
        self.notes: object = None  # a family's own, such as its reports of several choices
        self.opening: bytes | None = None  # the first event, empty if it is long
        self.position = -1  # the open block, or the last sequence number
        # Pieces of several choices are interleaved, so they are no text together.
        self.texts: list[str] | None = (
            [] if call.learned.tokens_of is not None and call.spec.choices == 1 else None
        )

    def feed(self, chunk: bytes) -> bytes:
        """Read the next bytes of the answer, and return those that may pass now.

        The bytes returned never show a client that the answer is complete.
        """
        return chunk

    def finish(self) -> bytes:
        """Read the end of a complete answer, and return the rest to pass on.

        If the meter then has `behind` set, `feed` with no bytes returns more. Do not call this for an
        answer that broke off.
        """
        self.ended = True
        return b""

    def whole(self, answer: bytes) -> bytes:
        """Read an answer that is complete already, instead of calls of `feed` and `finish`."""
        return self.feed(answer) + self.finish()

    def cut(self) -> bytes:
        """Return bytes that end the answer at this point, well-formed in the shape of its API.

        Empty if that is impossible, as in a JSON document or a compressed answer: then the connection is
        closed.
        """
        return b""

    def fail(self, body: bytes) -> bytes:
        """Return bytes that end the stream with the error `body` in its own shape, empty if impossible."""
        return b""

    @property
    def kept(self) -> int:
        """The bytes of the answer that are in memory."""
        return self.withheld + (self.text_bytes if self.texts is not None else 0)

    def slim(self) -> None:
        """Drop what the charge does not need, because memory is short. The charge never falls by this."""
        self.texts = None

    @property
    def produced(self) -> bool:
        """Whether the answer has had any content or usage report so far."""
        return self.reported or self.content_events > 0 or self.seen_bytes > 0

    @property
    def seen_bytes(self) -> int:
        """The bytes of text so far: counted in pieces, or in an event with the whole text if that is more."""
        return max(self.text_bytes, self.whole_bytes)

    @property
    def known(self) -> bool:
        """Whether the charge is certain already, whatever else the answer contains."""
        return False

    @property
    def is_whole(self) -> bool:
        """Whether the answer is complete. Otherwise it broke off, however its connection ended."""
        return self.ended

    def note_choice(self, index: object, place: int, *, finished: bool) -> None:
        """Note that a choice of the answer has begun or, with `finished`, is complete.

        `place` is used as its number if `index` is no integer.
        """
        begun, number = self.begun, index if type(index) is int else place
        if number not in begun and len(begun) >= BEGUN_MAX:
            number = -1
        if finished:
            begun[number] = True
        else:
            begun.setdefault(number, False)

    def close(self) -> None:
        """Note that the current event ends the answer properly."""
        self.phase, self.last_word = CLOSED, True

    def ends_by(self, ending: Ending) -> bool:
        """Return whether the answer is complete, by the way in which its API marks the end.

        For an answer that cannot be read, it is enough that the connection ended without an error.
        """
        if self.last_word or (ending.choices and self.begun and False not in self.begun.values()):
            return True
        return self.ended and not self.broke and (self.unread or ending is BY_CONNECTION)

    def observed(self) -> int:
        """Return the tokens that a running answer has used so far; 0 before its first content."""
        if not self.produced:
            return 0
        return max(self.total, self._bounded((self.input or self.call.input_estimate) + self._running()))

    def so_far(self) -> TokenUsage:
        """Return the usage of a running answer so far, from reports and counted text."""
        if not self.produced:
            return TokenUsage(units=0)
        output = max(self.output, self._running())
        read = self.input or self.call.input_estimate
        return TokenUsage(
            read, output, self.cached, self.reasoning, self._bounded(max(self.total, read + output))
        )

    def usage(self) -> TokenUsage:
        """Return the usage to charge for this answer, complete or not."""
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
        """Return the output tokens by the size of the text, at least one for each event with content."""
        size = int(-(-self.seen_bytes // self.call.learned.output_bytes_per_token))
        return min(max(self.content_events, size), self.output_most)

    def _running(self) -> int:
        """Return the output tokens of a running answer: beyond the call's maximum those that are sure.

        An event has a token at least, and so has a word. A text has at most `TOKEN_BYTES_MAX` for a token.
        """
        return max(self.counted(), self.content_events, self.words, self.seen_bytes // TOKEN_BYTES_MAX)

    def see_rest(self, part: bytes) -> None:
        """Count the text in `part`, the incomplete event or element with which the answer broke off."""
        if part:
            self.whole_bytes = max(self.whole_bytes, self.text_bytes + LooseContent(part).size)

    def unreadable(self, size: int) -> None:
        """Count `size` unreadable bytes as text, unless the call produces no tokens."""
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

    def see_words(self, event: bytes, before: int) -> None:
        """Count the words of an event beyond the call's maximum, under whatever names its text stands.

        `before` is `text_bytes` before the event: only text that was counted with it has words.
        """
        self.words += min(words_in(event), -(-(self.text_bytes - before) // 2))

    def report(self, used: int, output: int, cached: int, reasoning: int, total: int, *, final: bool) -> None:
        """Record a usage report, cumulative from the start of the answer.

        A number never falls below that of an earlier report. Numbers above the bound are clamped, a negative
        output is replaced by the counted tokens, and a final report below an earlier final one is ignored.
        Each of these marks the usage as estimated.
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
            if used >= output:  # the larger is reduced, so that the sum stays within the bound
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

    def forget_output(self) -> None:
        """Forget the output that was reported: the next report may tell less."""
        self.output = self.reasoning = 0
        self.total = self.input

    def forget_reports(self) -> None:
        """Forget what was reported: the next report is about all that was used, and may tell less."""
        self.forget_output()
        self.input = self.cached = self.total = 0
        self.detail.forget()

    def report_units(self) -> None:
        """Record a report of units instead of tokens. The units themselves are in `detail`."""
        self.by_units = True
        self.report(0, 0, 0, 0, 0, final=True)

    def _reported_usage(self, is_whole: bool) -> TokenUsage:
        """Return the usage that the answer reported, raised to what the gateway counted if that is more.

        A prompt or a text never costs zero tokens. An answer that broke off may have used more than
        its last report states. `is_whole` says that it is complete.
        """
        read, output, total, marked = self.input, self.output, self.total, self.marked or not is_whole
        counted = self.counted()
        answered = 200 <= self.status < 300 and not self.by_units and (counted > 0 or not self.failed)
        no_input = answered and not read and self.call.has_input
        no_output = answered and not output and self.call.output_max != 0 and counted > 0
        no_output = no_output and not self.detail.declined
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
        """Return the most that the call could use, to charge an answer whose required report is missing."""
        call = self.call
        read = max(self.input, call.input_ceiling)
        most = call.output_ceiling if call.output_max is None else self.answer_tokens or call.output_max
        output = max(self.output, self._produced_tokens(), most * call.spec.choices)
        return TokenUsage(read, output, 0, 0, self._bounded(max(self.total, read + output)), 1, False, True)

    def _produced_tokens(self) -> int:
        """Return the output tokens by the model's own tokenizer if it is known, else by `counted`."""
        tokens_of = self.call.learned.tokens_of
        if self.texts and tokens_of is not None and self.whole_bytes <= self.text_bytes:
            return min(tokens_of("".join(self.texts)), self.output_most)
        return self.counted()

    def _bounded(self, tokens: int) -> int:
        return min(tokens, self.bounds.usage_tokens_max)


def slim(bounds: UsageBounds) -> UsageBounds:
    """Return bounds for an answer that limit stored bytes further, because memory is short."""
    return replace(
        bounds,
        kept_bytes_max=min(bounds.kept_bytes_max, SLIM_BYTES_MAX),
        event_bytes_max=min(bounds.event_bytes_max, SLIM_BYTES_MAX),
    )
