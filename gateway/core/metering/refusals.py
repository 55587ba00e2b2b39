"""Refusals of models: of Claude in every API that serves it, models that took over, and fees of other vendors.

A refusal before any output is not billed in every category, so an answer notes it, and the charge decides.
Content is the test of output: a vendor reports a few tokens of an answer without any. Each model is judged by
the content between the block in which it took over and the one in which it gave way.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from gateway.core.billing.unbilled import Declined, VendorOutcome
from gateway.core.metering.meter import Meter
from gateway.core.metering.reading import loose_document

REFUSAL: Final = "refusal"
FALLBACK: Final = "fallback"  # the type of a content block between two models
# The use that a vendor bills for a request which it refused, and how the error of such a refusal begins: of
# xAI, {"code": …, "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}.
VIOLATION: Final = "usage_guidelines_violation"
_VIOLATES: Final = "Content violates usage guidelines"
FEW_TOKENS: Final = 16  # a vendor reports at most so many of an answer without content
_CLAUDE: Final = "claude"


def note_fee(meter: Meter, answer: bytes) -> None:
    """Note the fee that a vendor takes for a request which it refuses with this error."""
    if _VIOLATES.encode() not in answer:
        return
    error = loose_document(answer).get("error")
    text = error.get("message") if isinstance(error, dict) else error
    if isinstance(text, str) and text.startswith(_VIOLATES):
        meter.detail.used_tool(VIOLATION, 1)
        meter.report_units()


class Attempts:
    """The attempts of models to write one answer.

    `gave_way` are the outcomes of the models that gave way, None behind content. `refused` is that of the
    last one if it refused before any content. `has_content` says whether a block of the present model has some,
    and `before` is what the meter had seen when that model began.
    """

    __slots__ = ("before", "gave_way", "has_content", "refused")

    def __init__(self) -> None:
        self.gave_way: list[VendorOutcome | None] = []
        self.refused: VendorOutcome | None = None
        self.has_content = False
        self.before = 0

    def outcome(self, meter: Meter, details: object) -> VendorOutcome | None:
        """Return the outcome of the present model, which refused with these `details`; None behind content."""
        if self.has_content or _count_content(meter) > self.before:
            return None
        return VendorOutcome(_CLAUDE, REFUSAL, _category_in(details))


def _count_content(meter: Meter) -> int:
    """Return a number that grows with each piece of content that the meter sees."""
    return meter.seen_bytes + meter.content_events


def attempts_of(meter: Meter) -> Attempts:
    """Return the attempts in this answer, noted at first use."""
    if not isinstance(meter.notes, Attempts):
        meter.notes = Attempts()
    return meter.notes


def see_block(meter: Meter, block: dict[str, object]) -> None:
    """Note a block of content, which may be the place where one model gives way to the next."""
    attempts = attempts_of(meter)
    if block.get("type") == FALLBACK:
        attempts.gave_way.append(attempts.outcome(meter, block.get("trigger")))
        attempts.has_content, attempts.before = False, _count_content(meter)
        meter.detail.handed_to(_member(block.get("to"), "model"))
    elif block.get("type") != "text" or block.get("text"):
        attempts.has_content = True


def see_blocks(meter: Meter, content: object) -> None:
    """Note the content of a whole message, which should be blocks."""
    if isinstance(content, list):
        for block in content:
            see_block(meter, block if isinstance(block, dict) else {})
    elif content:
        attempts_of(meter).has_content = True


def _category_in(details: object) -> str | None:
    """Return the category in the `details` of a refusal (`stop_details`, `trigger`)."""
    category = _member(details, "category")
    return category if isinstance(category, str) else None


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def refuse(meter: Meter, details: object) -> None:
    """Note that an answer was refused. Before any content, the next report alone counts its output."""
    attempts = attempts_of(meter)
    attempts.refused = attempts.outcome(meter, details)
    if attempts.refused is not None and None not in attempts.gave_way:
        if not meter.final:
            meter.forget_output()
        meter.detail.declined = [Declined(attempts.refused)]


def outcomes(meter: Meter, models: Iterable[str]) -> list[VendorOutcome | None]:
    """Return the outcome of each attempt, whose models are given in their order; None for one that is billed.

    Attempts of one model in a row are one hop. Each hop but the last gave way where the answer has a block of
    that; the last one was refused if the answer was.
    """
    attempts, hops = attempts_of(meter), [list(hop) for _, hop in groupby(models)]
    gave_way = [*attempts.gave_way, *[None] * len(hops)]
    ends = [*gave_way[: len(hops) - 1], attempts.refused]
    return [end for end, hop in zip(ends, hops, strict=True) for _ in hop]
