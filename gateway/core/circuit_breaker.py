"""Upstreams that get no calls for a while, because they refused some: the table of one worker. Pure.

An upstream that refuses a call states how long to wait. Its limit applies to an account (the address and
credential that all callers share) and a model. If it says that a limit is used up, no call is sent for that
long. Otherwise the call itself may be the reason: only its organization waits, and everybody once a second
organization was refused. Names of models come from callers and waits from upstreams, so entries and times
have a maximum; beyond it the entry that ends first is dropped.

Times are seconds of the worker's monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ENTRIES_MAX = 64
NAME_CHARACTERS_MAX = 256
FIELDS_BYTES_MAX = 1024
COOLING_S_MAX = 60.0
COOLING_S_MIN = 0.1  # a shorter pause is over before others know of it
TOLD_S_MAX = 366 * 86_400.0
_LINE = re.compile(rb"[A-Za-z0-9-]+:[\x20-\x7e]*")


EVERYBODY = 0


class BackoffEntry(NamedTuple):
    """A pause of calls to an upstream until `until`, for one organization or all.

    The upstream itself asked for a pause until `told_until`, and stated its limits in `fields`.
    """

    until: float
    told_until: float
    fields: tuple[bytes, ...]
    organization_id: int = EVERYBODY

    def concerns(self, organization_id: int) -> bool:
        """Return whether this pause stops calls of an organization."""
        return self.organization_id in {EVERYBODY, organization_id}


class CircuitBreaker:
    """The pauses of upstreams by name. `s_max` is the longest one, 0 for none.

    `begun` is called when a pause begins in this worker.
    """

    __slots__ = ("_begun", "entries", "s_max")

    def __init__(self, s_max: float = COOLING_S_MAX, begun: Callable[[], None] = lambda: None) -> None:
        self.entries: dict[str, BackoffEntry] = {}
        self.s_max = s_max
        self._begun = begun

    def bound(self, s_max: float, now: float) -> None:
        """Set the longest pause to `s_max` seconds, also for the pauses in progress."""
        self.s_max = s_max
        self.entries = {
            name: entry._replace(until=min(entry.until, now + s_max)) for name, entry in self.entries.items()
        }
        self.sweep(now)

    def begin(  # which upstream, for how long, and who waits
        self, name: str, wait_s: float, fields: Sequence[bytes], now: float, organization_id: int = EVERYBODY
    ) -> float:
        """Pause calls to the upstream `name` for `wait_s` seconds; return the seconds added to its pause.

        `fields` are header lines of its refusal, to repeat to callers. `organization_id` limits the
        pause.
        """
        told_until, known = now + min(wait_s, TOLD_S_MAX), self.of(name, now)
        self.take(name, BackoffEntry(told_until, told_until, _within(fields), organization_id), now)
        entry = self.of(name, now)
        if entry is None or entry == known:
            return 0.0
        self._begun()
        before = known.until if known is not None and known.organization_id == entry.organization_id else now
        return entry.until - before

    def take(self, name: str, entry: BackoffEntry, now: float) -> None:
        """Store the pause `entry` of the upstream `name`, if long enough and if no stored one ends later.

        If a pause of another organization is stored, one for all organizations replaces both, and
        ends when the first of them does.
        """
        until = min(entry.until, now + self.s_max)
        known, entries = self.of(name, now), self.entries
        if known is not None and known.concerns(entry.organization_id):
            if known.until >= until or known.organization_id != entry.organization_id:
                return
        elif known is not None and entry.organization_id != EVERYBODY:
            until, entry = min(known.until, until), entry._replace(organization_id=EVERYBODY)
        if until - now < COOLING_S_MIN or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            return
        if name not in entries and len(entries) >= ENTRIES_MAX:
            self.sweep(now)
            if len(entries) >= ENTRIES_MAX:
                soonest = min(entries, key=lambda entry: entries[entry].until)
                if entries[soonest].until >= until:
                    return
                del entries[soonest]
        entries[name] = entry._replace(until=until)

    def of(self, name: str, now: float) -> BackoffEntry | None:
        """Return the pause of the upstream `name` at the time `now`, or None if its calls are not paused."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry.until > now else None

    def sweep(self, now: float) -> None:
        for name in [name for name, entry in self.entries.items() if entry.until <= now]:
            del self.entries[name]


def _within(fields: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the leading header lines that are printable ASCII, up to `FIELDS_BYTES_MAX`."""
    kept, left = [], FIELDS_BYTES_MAX
    for line in fields:
        left -= len(line)
        if left >= 0 and _LINE.fullmatch(line):
            kept.append(line)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to retry: the most attempts, the first pause, the factor of each next one, and the longest."""

    attempts_max: int
    first_s: float
    factor: float
    longest_s: float

    def after_s(self, attempts: int) -> float | None:
        """Return the seconds from attempt number `attempts` (from 1) to the next; None to give up."""
        if attempts >= self.attempts_max:
            return None
        return min(self.longest_s, self.first_s * self.factor ** (attempts - 1))


def is_worth_a_line(failures: int) -> bool:
    """Return whether to log failure number `failures`: the 1st, 2nd, 4th, 8th and so on."""
    return failures & (failures - 1) == 0


# Causes of failures of upstreams, logged at a bounded rate.
#
# Causes are labels of a metric and words of a log line; `gateway/outbound/tunnel.py` finds them in errors.

REFUSED, UNRESOLVED, TLS, UNROUTABLE, RESET = "refused", "unresolved", "tls", "unroutable", "reset"
TIMEOUT, CONNECT_TIMEOUT, BROKEN, OTHER = "timeout", "connect_timeout", "broken", "other"
UNFINISHED = "unfinished"  # its answer ended without the final event of its API
CREDENTIALS = "credentials"  # the gateway has none for it now
PROXY = "proxy"  # a proxy before the upstream: unreachable, refuses, or no HTTP
CAUSES = (
    REFUSED, UNRESOLVED, TLS, UNROUTABLE, RESET, CONNECT_TIMEOUT, TIMEOUT, BROKEN, UNFINISHED, PROXY,
    CREDENTIALS, OTHER,
)  # fmt: skip
KEYS_TELL_EACH_S = 60.0
