"""Count what one answer used, from the bytes that pass.

A meter never alters an answer except to leave out a usage frame nobody asked for, and to end
one that is cut. What an upstream reports is charged; what it does not report is counted. The bytes
by which a client knows that it has everything wait in the meter until `finish`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.calls.call import Bounds, Call, input_tokens
from gateway.core.metering.detail import Detail
from gateway.core.model import Usage

TOKENIZED_BYTES_MAX = 1 << 20  # longer texts are counted by what was learned
SLIM_BYTES_MAX = 128 << 10  # of a document or an event, while memory is short
TEXTS_MAX = 1024  # pieces of it: each takes fifty bytes beside its letters
BEHIND_END_BYTES_MAX = 64 << 10  # what may follow the end of an answer, all of it kept

# How far an answer has come: more follows; every choice has said that it is finished, which more
# content would disprove; the event has come behind which the API sends nothing.
OPEN: Final = 0
FINISHED: Final = 1
CLOSED: Final = 2


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API says what it produced and used.

    `read_whole` takes a complete JSON answer, `read_event` the data of one event and says
    whether that event is only a usage frame, `closing` the events that end a cut stream well, and `failing`
    the event that says a refusal's body in the middle of a stream.
    `read_event` counts in `Meter.finished` what finishes a choice, and sets `Meter.phase` to CLOSED.
    """

    read_whole: Callable[[Meter, bytes], None]
    read_event: Callable[[Meter, bytes], bool]
    closing: Callable[[Meter], bytes]
    failing: Callable[[Meter, bytes], bytes] = lambda meter, body: b"data: %b\n\n" % body


class Meter:
    """Count one answer: the arithmetic every meter shares.

    `ended` says the answer came to its end; `final` that the report covers all of it, `partial` that
    it leaves out what an API that always reports never does, `uncounted` that its output is no number;
    `failed` that the answer itself says it failed, or is empty; `unread` that nobody can read some of it.
    To end a stream well, `opening` keeps its first event (empty where that is long) and `position` where it
    stands: the open block or the last sequence number, as the API counts, -1 for none. `detail` is what the
    answer says beside what is charged. `phase` is OPEN, FINISHED or CLOSED, `finished` how often a choice
    was said to be finished. `withheld` bytes of what was fed wait for the end; `surplus` says that
    more came behind the end than may. `said` are sizes of content that a family adds up by itself, by their
    place and kind. `told` are ids of objects that the upstream keeps.
    `behind` says that `feed` has more to do with what it was fed, which it does once it is fed nothing.
    """

    __slots__ = (
        "_reported_at", "behind", "bounds", "cached", "call", "content_events", "detail", "ended", "failed",
        "final", "finished", "input", "marked", "opening", "output", "partial", "phase", "position",
        "reasoning", "reported", "said", "status", "surplus", "text_bytes", "texts", "told", "total",
        "uncounted", "unread", "withheld",
    )  # fmt: skip

    def __init__(self, call: Call, status: int, bounds: Bounds) -> None:
        self.call = call
        self.status = status
        self.bounds = bounds
        self.input = self.output = self.cached = self.reasoning = self.total = 0
        self.detail = Detail()
        self.text_bytes = self.content_events = self.finished = self.withheld = self._reported_at = 0
        self.phase: int = OPEN
        self.behind = False
        self.told: list[str] = []
        self.said: dict[tuple[int, str], int] = {}
        self.reported = self.partial = self.uncounted = self.marked = self.final = False
        self.ended = self.failed = self.surplus = self.unread = False
        self.opening: bytes | None = None
        self.position = -1
        # Pieces of several choices come in turn and are no text together.
        self.texts: list[str] | None = [] if call.tokens_of is not None and call.choices == 1 else None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the answer; return those to pass on now."""
        return chunk

    def finish(self) -> bytes:
        """The answer is complete; return what is left to pass on. Not called for a broken one."""
        self.ended = True
        return b""

    def whole(self, answer: bytes) -> bytes:
        """Take an answer that is complete already; return what to pass on of it."""
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
        """Keep no more than is needed to charge: memory is short. What is charged is never less by it."""
        self.texts = None

    @property
    def produced(self) -> bool:
        """True once the first content or the first report of use was seen."""
        return self.reported or self.content_events > 0 or self.text_bytes > 0

    @property
    def known(self) -> bool:
        """True once nothing that may still come changes what is charged."""
        return False

    def observed(self) -> int:
        """Tokens seen so far, zero before anything was produced."""
        if not self.produced:
            return 0
        return max(self.total, self._bounded((self.input or self.call.input_estimate) + self.counted()))

    def so_far(self) -> Usage:
        """What `observed` is made of."""
        if not self.produced:
            return Usage(units=0)
        output = max(self.output, self.counted())
        read = self.input or self.call.input_estimate
        return Usage(read, output, self.cached, self.reasoning, self._bounded(max(self.total, read + output)))

    def usage(self) -> Usage:
        """Return what this answer is charged, as far as it came."""
        ended_well = self.ended and not self.failed and 200 <= self.status < 300
        if ended_well and self.call.reports and (self.partial or not self.reported):
            return self._ceiling()
        if self.reported:
            is_final = self.final and self.content_events == self._reported_at
            if not self.uncounted and (
                is_final or (self.ended and not self.failed and self.counted() <= self.output)
            ):
                return Usage(
                    self.input, self.output, self.cached, self.reasoning, self.total, 1, True, self.marked
                )
            output = max(self.output, self._produced_tokens())
            total = self._bounded(max(self.total, self.input + output))
            return Usage(self.input, output, self.cached, self.reasoning, total, 1, True, True)
        if not 200 <= self.status < 300 or not (self.produced or (self.ended and not self.failed)):
            return Usage(units=0)
        spent = input_tokens(self.call)
        output = self._produced_tokens()
        return Usage(spent, output, 0, 0, self._bounded(spent + output), 1, False, True)

    def counted(self) -> int:
        """Output tokens by what passed: at least one for each content event."""
        return max(self.content_events, int(-(-self.text_bytes // self.call.output_bytes_per_token)))

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
        """Take a report of use, cumulative from the start of the answer.

        One that is not final lowers no earlier one, and content behind a final one shows that it was not.
        Numbers over the bound are clamped, a negative output is replaced by what was counted,
        and a final report smaller than an earlier final one is not believed; each marks the usage.
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
            used = min(used, most) if used >= 0 else self.call.input_estimate
            output = min(output if output >= 0 else self.counted(), most)
            cached, reasoning = max(0, min(cached, most)), max(0, min(reasoning, most))
            total = min(max(total, used + output), most)
            if used >= output:  # the larger gives way: no more is priced than counted
                used = min(used, most - output)
            else:
                output = min(output, most - used)
        if self.reported and not final:
            used, output, reasoning = (
                max(used, self.input),
                max(output, self.output),
                max(reasoning, self.reasoning),
            )
            cached, total = max(cached, self.cached), max(total, used + output)
        if self.final and total < self.total:
            self.marked = True
            self.detail.believe(False)
            return
        self.detail.believe(True)
        self.input, self.output, self.cached, self.reasoning, self.total = (
            used, output, cached, reasoning, total,
        )  # fmt: skip
        self.reported, self.uncounted = True, uncounted
        self.final, self._reported_at = self.final or final, self.content_events

    def _ceiling(self) -> Usage:
        """All that the call could use: whose API always tells, and did not, may have been kept from it."""
        call = self.call
        read = max(self.input, call.input_ceiling)
        most = call.output_ceiling if call.output_max is None else call.output_max
        output = max(self.output, self._produced_tokens(), most * call.choices)
        return Usage(read, output, 0, 0, self._bounded(max(self.total, read + output)), 1, False, True)

    def _produced_tokens(self) -> int:
        """Output tokens by the model's own tokenizer where it is known, else as `counted`."""
        tokens_of = self.call.tokens_of
        if self.texts and tokens_of is not None:
            return tokens_of("".join(self.texts))
        return self.counted()

    def _bounded(self, tokens: int) -> int:
        return min(tokens, self.bounds.usage_tokens_max)


def slim(bounds: Bounds) -> Bounds:
    """The bounds of an answer while memory is short."""
    return replace(
        bounds,
        kept_bytes_max=min(bounds.kept_bytes_max, SLIM_BYTES_MAX),
        event_bytes_max=min(bounds.event_bytes_max, SLIM_BYTES_MAX),
    )
