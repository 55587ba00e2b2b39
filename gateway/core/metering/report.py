"""The base of documented usage reports, for every API."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.metering.content import UNCOUNTED, content_bytes, generated
from gateway.core.metering.meter import Meter


class UsageShape(msgspec.Struct, forbid_unknown_fields=True):
    """Base of documented shapes of usage reports. Every field may be missing.

    A field of type Any is documented, and nothing is counted by it.
    """


# The most bytes of an event that frame its text.
ENVELOPE_BYTES: Final = 512


def may_hold_more(meter: Meter, data: bytes, seen: int) -> bool:
    """Return whether an event may contain more text than the `seen` bytes counted of it.

    It may if it is longer, beside this text, than each event of the answer that contained nothing else.
    """
    return not seen or len(data) - seen > meter.envelope


def may_be_more(size: int, seen: int) -> bool:
    """Return whether a known event of `size` bytes may contain more than the `seen` bytes of its text."""
    return not seen or size > ENVELOPE_BYTES + 4 * seen


def see_content(meter: Meter, holder: object, seen: int, size: int = 0) -> None:
    """Count the text in a part of an event of `size` bytes, except for `seen` bytes that are counted already."""
    content = content_bytes(holder, once=True)
    if content > seen:
        meter.text_bytes += content - seen
        meter.texts = None  # this content is not for the tokenizer
        if not seen:
            meter.content_events += 1
    elif size - seen > meter.envelope:
        meter.envelope = min(size - seen, ENVELOPE_BYTES)


def see_whole(meter: Meter, event: dict[str, object], left_out: frozenset[str] = UNCOUNTED) -> None:
    """Note the size of an event that repeats the whole text; its pieces may have been counted before.

    The larger number is charged. Fields in `left_out` do not count.
    """
    if meter.final and meter.output:
        return
    meter.whole_bytes = max(meter.whole_bytes, content_bytes(generated(event), left_out))


def bounded_output(meter: Meter, reported: int, inferred: int) -> int:
    """Return the output tokens: the larger of those reported (`reported`) and those counted (`inferred`).

    Counted tokens are cut to the most that the call or its model allows.
    """
    most = max(reported, meter.output_most)
    meter.marked = meter.marked or inferred > most
    return min(max(reported, inferred), most)
