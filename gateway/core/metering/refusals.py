"""Refusals of Claude, in every API that serves it, and the models that took over from one that refused.

Its vendor bills a refusal before any output in some categories alone. So a meter notes refusals, and the charge
decides. Content is the test of output: an answer without any is reported with a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from gateway.core.billing.unbilled import Declined, VendorOutcome
from gateway.core.metering.meter import Meter

REFUSAL: Final = "refusal"
FALLBACK: Final = "fallback"  # the type of a content block between two models
_CLAUDE: Final = "claude"


class Attempts:
    """The attempts of models to write one answer.

    `categories` are the reasons of models that gave way. `refused` is the outcome of the last attempt, if it
    refused before any content. `has_content`: some attempt wrote content.
    """

    __slots__ = ("categories", "has_content", "refused")

    def __init__(self) -> None:
        self.categories: list[str | None] = []
        self.refused: VendorOutcome | None = None
        self.has_content = False


def attempts_of(meter: Meter) -> Attempts:
    """Return the attempts in this answer, noted at first use."""
    if not isinstance(meter.notes, Attempts):
        meter.notes = Attempts()
    return meter.notes


def see_block(meter: Meter, block: dict[str, object]) -> None:
    """Note a block of content, which may be the place where one model gives way to the next."""
    attempts = attempts_of(meter)
    if block.get("type") == FALLBACK:
        attempts.categories.append(_category_in(block.get("trigger")))
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
    if not (meter.seen_bytes or meter.content_events or attempts.has_content):
        if not meter.final:
            meter.forget_output()
        attempts.refused = VendorOutcome(_CLAUDE, REFUSAL, _category_in(details))
        meter.detail.declined = [Declined(attempts.refused)]


def outcomes_of(meter: Meter, models: Iterable[str]) -> list[VendorOutcome | None]:
    """Return the outcome of each attempt, whose models are given in their order; None for one that answered.

    Attempts of one model in a row are one hop. Each hop but the last gave way; the last one was refused if
    the answer was.
    """
    attempts, hops = attempts_of(meter), [list(hop) for _, hop in groupby(models)]
    categories = [*attempts.categories, *[None] * len(hops)]
    ends = [
        *[VendorOutcome(_CLAUDE, REFUSAL, category) for category in categories[: len(hops) - 1]],
        attempts.refused,
    ]
    return [end for end, hop in zip(ends, hops, strict=True) for _ in hop]
