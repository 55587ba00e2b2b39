"""What an answer says beside what is charged: kinds of tokens, tools, tier, the model that answered."""

from __future__ import annotations

from gateway.core.accounts.facts import UNKNOWN_BYTES_MAX
from gateway.core.billing.vector import Counts
from gateway.core.model import Usage

NAME_CHARACTERS_MAX = 128
TOOLS_MAX = 64
PARTS_MAX = 128  # of an answer that each tell of a tool, as many as choices
TOOL_USES_MAX = 1_000_000  # each may have a price
_HALF_READ = "\ufffd"


class Detail:
    """One answer's, as far as it was read. Tokens are parts of what its `Usage` has.

    `cache_write` are those with the short lifetime. `tools` counts uses of the provider's tools by
    name. `unknown` is the last report of use that says something nobody here knows, a JSON object, empty
    where that is too long to keep; `says_more` that there was one. `retry_s` is after how many seconds a
    refusal says to try again. `beside` are the tokens of other models that answered within the call, each
    with the model's name; they are in what its `Usage` has.
    """

    __slots__ = (
        "_believed", "_parts", "audio_input", "audio_output", "beside", "cache_write", "cache_write_1h",
        "image_input", "image_output", "model", "retry_s", "says_more", "service_tier", "tools", "unknown",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cache_write = self.cache_write_1h = 0
        self.audio_input = self.audio_output = self.image_input = self.image_output = 0
        self.model = self.service_tier = ""
        self.tools: dict[str, int] = {}
        self.unknown = b""
        self.says_more = False
        self.retry_s = 0.0
        self.beside: list[tuple[str, Counts]] = []
        self._parts: dict[tuple[str, str], int] = {}
        self._believed: tuple[int, int, int, int, int, int, list[tuple[str, Counts]]]
        self._believed = (0, 0, 0, 0, 0, 0, [])

    def answered_by(self, model: object) -> None:
        """An answer names the model that made it."""
        if not self.model:
            self.model = _name(model)

    def served_as(self, tier: object) -> None:
        """An answer names the tier of service it had."""
        if tier is not None:
            self.service_tier = _name(tier).lower()

    def used_tool(self, name: str, times: int) -> bool:
        """So often a tool was used, as the last report says; whether there is place for it.

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

    def used_tool_in(self, part: str, name: str, times: int) -> None:
        """So often a part of the answer used a tool, as the most of its events says."""
        place = part, name
        before = self._parts.get(place, 0)
        if times > before and (before or len(self._parts) < PARTS_MAX):
            self._parts[place] = times
            self.used_tool(name, sum([uses for (_, used), uses in self._parts.items() if used == name]))

    def believe(self, believed: bool) -> None:
        """A report is believed, so are the parts it told of; else they are those of the last that was."""
        if believed:
            self._believed = (
                self.cache_write, self.cache_write_1h, self.audio_input, self.audio_output,
                self.image_input, self.image_output, self.beside,
            )  # fmt: skip
        else:
            (
                self.cache_write, self.cache_write_1h, self.audio_input, self.audio_output,
                self.image_input, self.image_output, self.beside,
            ) = self._believed  # fmt: skip

    def answered_within(self, model: object, counts: Counts) -> None:
        """A report tells of tokens of a model that answered within the call, whose name may be unknown."""
        self.beside.append((_name(model), counts))

    def keep(self, report: bytes) -> None:
        """A report of use says something nobody here knows: it is counted, and kept as it came."""
        self.says_more = True
        if len(report) <= UNKNOWN_BYTES_MAX and _is_text(report):
            self.unknown = report

    def counts(self, usage: Usage) -> Counts:
        """Tokens by kind: each is within what is charged, whatever an answer says."""
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
    """A name as it may be stored and shown; empty where it is none."""
    if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX and value.isprintable():
        return "" if _HALF_READ in value else value
    return ""


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
