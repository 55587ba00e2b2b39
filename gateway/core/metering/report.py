"""The documented shape of a report of use, whichever API's."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.metering.content import UNCOUNTED, content_bytes, generated
from gateway.core.metering.meter import Meter


class UsageShape(msgspec.Struct, forbid_unknown_fields=True):
    """What a documented shape of a report is made from: every field may be missing.

    A field of any type is documented, and nothing is counted by it.
    """


# What an event may be longer than four times its text, before somebody looks for more in it.
ENVELOPE_BYTES: Final = 512


def may_hold_more(data: bytes, seen: int) -> bool:
    """Return whether an event with so many bytes of text seen may hold more than these."""
    return may_be_more(len(data), seen)


def may_be_more(size: int, seen: int) -> bool:
    """Return the same of an event of so many bytes."""
    return not seen or size > ENVELOPE_BYTES + 4 * seen


def see_content(meter: Meter, holder: object, seen: int) -> None:
    """Count the strings in the part of an event that holds content; `seen` bytes of it are counted."""
    size = content_bytes(holder)
    if size > seen:
        meter.text_bytes += size - seen
        meter.texts = None  # its model's tokenizer does not know this
        if not seen:
            meter.content_events += 1


def see_whole(meter: Meter, event: dict[str, object], left_out: frozenset[str] = UNCOUNTED) -> None:
    """Note the text of an event that says the answer as it stands: it may have come in pieces, or may not."""
    if meter.final and meter.output:
        return
    meter.whole_bytes = max(meter.whole_bytes, content_bytes(generated(event), left_out))


def bounded_output(meter: Meter, told: int, inferred: int) -> int:
    """Return the output by a total or by thoughts, which make it no more than the call or model allows."""
    most = max(told, meter.output_most)
    meter.marked = meter.marked or inferred > most
    return min(max(told, inferred), most)
