"""Which upstreams are left alone, and until when: the table of one worker. Pure.

An upstream that refused says how long it wants not to be asked. What it limits is an account, which is the
address and credential that all callers share, and a model. Where it says that a limit is spent, nobody asks
for that meanwhile. Else the call itself may be the reason: its organization alone waits, and everybody once a
second organization was refused. Models are callers' words and waits are strangers': entries and times have a
maximum, and of too many the one that ends first goes.
Times are seconds of the worker's monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

ENTRIES_MAX = 64
NAME_CHARACTERS_MAX = 256
FIELDS_BYTES_MAX = 1024
COOLING_S_MAX = 60.0
COOLING_S_MIN = 0.1  # what is shorter is over before it is told
TOLD_S_MAX = 366 * 86_400.0
_LINE = re.compile(rb"[A-Za-z0-9-]+:[\x20-\x7e]*")


EVERYBODY = 0


class Cooled(NamedTuple):
    """Nobody of an organization, or of all, asks before `until`; the upstream itself said `told_until`, and
    its limits in `fields`.
    """

    until: float
    told_until: float
    fields: tuple[bytes, ...]
    organization_id: int = EVERYBODY

    def concerns(self, organization_id: int) -> bool:
        """Whether calls of this organization wait."""
        return self.organization_id in {EVERYBODY, organization_id}


class Cooling:
    """The entries by their names, none where `s_max` is 0. `begun` hears of those that begin here."""

    __slots__ = ("_begun", "entries", "s_max")

    def __init__(self, s_max: float = COOLING_S_MAX, begun: Callable[[], None] = lambda: None) -> None:
        self.entries: dict[str, Cooled] = {}
        self.s_max = s_max
        self._begun = begun

    def bound(self, s_max: float, now: float) -> None:
        """Have another maximum, for what is in the table too."""
        self.s_max = s_max
        self.entries = {
            name: one._replace(until=min(one.until, now + s_max)) for name, one in self.entries.items()
        }
        self.sweep(now)

    def begin(  # which upstream, for how long, and who waits
        self, name: str, wait_s: float, fields: Sequence[bytes], now: float, organization_id: int = EVERYBODY
    ) -> float:
        """An upstream wants to be left alone: for how many seconds more than before it is."""
        told_until, known = now + min(wait_s, TOLD_S_MAX), self.of(name, now)
        self.take(name, Cooled(told_until, told_until, _within(fields), organization_id), now)
        one = self.of(name, now)
        if one is None or one == known:
            return 0.0
        self._begun()
        before = known.until if known is not None and known.organization_id == one.organization_id else now
        return one.until - before

    def take(self, name: str, one: Cooled, now: float) -> None:
        """Have an entry, unless there is one that ends later, or is of no use.

        One of another organization makes it everybody's, for as long as both have heard.
        """
        until = min(one.until, now + self.s_max)
        known, entries = self.of(name, now), self.entries
        if known is not None and known.concerns(one.organization_id):
            if known.until >= until or known.organization_id != one.organization_id:
                return
        elif known is not None and one.organization_id != EVERYBODY:
            until, one = min(known.until, until), one._replace(organization_id=EVERYBODY)
        if until - now < COOLING_S_MIN or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            return
        if name not in entries and len(entries) >= ENTRIES_MAX:
            self.sweep(now)
            if len(entries) >= ENTRIES_MAX:
                soonest = min(entries, key=lambda each: entries[each].until)
                if entries[soonest].until >= until:
                    return
                del entries[soonest]
        entries[name] = one._replace(until=until)

    def of(self, name: str, now: float) -> Cooled | None:
        """The entry of this name, while it lasts."""
        one = self.entries.get(name)
        return one if one is not None and one.until > now else None

    def sweep(self, now: float) -> None:
        """Forget what is over."""
        for name in [name for name, one in self.entries.items() if one.until <= now]:
            del self.entries[name]


def _within(fields: Sequence[bytes]) -> tuple[bytes, ...]:
    """The fields that are plain text, as many as are kept."""
    kept, left = [], FIELDS_BYTES_MAX
    for line in fields:
        left -= len(line)
        if left >= 0 and _LINE.fullmatch(line):
            kept.append(line)
    return tuple(kept)
