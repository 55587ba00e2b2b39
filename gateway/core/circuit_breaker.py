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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
            name: one._replace(until=min(one.until, now + s_max)) for name, one in self.entries.items()
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
        one = self.of(name, now)
        if one is None or one == known:
            return 0.0
        self._begun()
        before = known.until if known is not None and known.organization_id == one.organization_id else now
        return one.until - before

    def take(self, name: str, one: BackoffEntry, now: float) -> None:
        """Store the pause `one` of the upstream `name`, if long enough and if no stored one ends later.

        If a pause of another organization is stored, one for all organizations replaces both, and
        ends when the first of them does.
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

    def of(self, name: str, now: float) -> BackoffEntry | None:
        """Return the pause of the upstream `name` at the time `now`, or None if its calls are not paused."""
        one = self.entries.get(name)
        return one if one is not None and one.until > now else None

    def sweep(self, now: float) -> None:
        for name in [name for name, one in self.entries.items() if one.until <= now]:
            del self.entries[name]


def _within(fields: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the leading header lines that are printable ASCII, up to `FIELDS_BYTES_MAX`."""
    kept, left = [], FIELDS_BYTES_MAX
    for line in fields:
        left -= len(line)
        if left >= 0 and _LINE.fullmatch(line):
            kept.append(line)
    return tuple(kept)


# How often and when to retry, and which failures to log.
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


# Reading `Retry-After`: how long another server asks to wait (RFC 9110, 10.2.3). Pure.
#
# Values are untrusted: negative numbers, and texts that are no number and no date, are ignored.

# Longest value that is read. A number may have that many digits: each caller limits its wait.
VALUE_CHARS_MAX = 64
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def retry_after_s(value: str, now_s: float) -> float | None:
    """Return the seconds in a `Retry-After` value, counted from `now_s` (Unix time); None if unreadable."""
    if len(value) > VALUE_CHARS_MAX:
        return None
    seconds = number_of(value)
    if seconds is not None:
        return seconds
    at = date_s(value)
    return None if at is None else max(0.0, at - now_s)


def number_of(value: str) -> float | None:
    """Return a non-negative decimal number in ASCII digits; None if the text is something else."""
    return float(value) if _NUMBER.fullmatch(value) else None


def date_s(value: str) -> float | None:
    """Return the Unix time of an HTTP date (RFC 9110, 5.6.7), which is in UTC; None if it is no date."""
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


# How long an upstream that refused a call asks to wait, read from the fields of its answer. Pure.
#
# Values are untrusted: a negative or unreadable value, or a field with two different values, is ignored.
# Source: documentation of rate limits by the providers of each family (`retry-after-ms`, resets such as
# `6m0s` or by RFC 3339, `unified`).

# A limit counts as used up if less than this part of it remains.
LEFT_MIN = 0.01
_MARK = b"ratelimit-"
_ROLES = frozenset({"limit", "remaining", "reset", "status"})
_BEYOND = "overage"  # use beyond a subscription: may be rejected while much of the subscription remains
_SPAN = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_SPAN_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
# Numbers from here on are Unix times, in seconds or in milliseconds.
_EPOCH_S, _EPOCH_MS = 10**9, 10**12


@dataclass(slots=True)
class _Limit:
    """One limit as the upstream reports it. Unknown values are None."""

    limit: float | None = None
    remaining: float | None = None
    wait_s: float | None = None
    rejects: bool = False

    @property
    def spent(self) -> bool:
        """Whether the limit is used up, so far as the upstream says."""
        return self.rejects or (self.remaining is not None and self.remaining <= LEFT_MIN * (self.limit or 0))


def wait_hint(lines: Iterable[bytes], tokens: int, now_s: float) -> tuple[float, bool]:
    """Return the seconds to wait before calling an upstream again, and whether a limit is used up.

    The seconds are 0 if unknown. `lines` are the header fields of its refusal, `tokens` the estimated use
    of the refused call, `now_s` the Unix time. If no limit is used up, but fewer tokens remain than
    `tokens`, only this call was too large: no wait. Otherwise `Retry-After` counts. Without it, the
    latest reset of a used up limit counts, or the first of all if no remaining amount is known. If no
    limit is used up, the call itself may be the reason.
    """
    fields = _said(lines)
    now_s = date_s(fields.get(b"date", "")) or now_s  # a time to wait for is by the upstream's clock
    limits = _limits(fields, now_s)
    spent = [one for one in limits.values() if one.spent]
    left = [one.remaining for name, one in limits.items() if "token" in name and one.remaining is not None]
    if not spent and left and min(left) < tokens:
        return 0.0, False
    retry = _retry_s(fields, now_s)
    if retry is not None:
        return retry, bool(spent)
    if spent:
        return max((one.wait_s for one in spent if one.wait_s is not None), default=0.0), True
    if any(one.remaining is not None for one in limits.values()):
        return 0.0, False
    return min((one.wait_s for one in limits.values() if one.wait_s is not None), default=0.0), False


def stated_limits(lines: Iterable[bytes]) -> tuple[int, int]:
    """Return the requests and tokens per minute that an answer's fields state as limits; 0 if unstated."""
    limits = _limits(_said(lines), 0.0)

    def of(*names: str) -> int:
        return sum(int(one.limit or 0) for name in names if (one := limits.get(name)) is not None)

    return of("requests"), of("tokens") or of("input-tokens", "output-tokens")


def _said(lines: Iterable[bytes]) -> dict[bytes, str]:
    """Return values by lower-case name; empty if a value is too long, or two values differ."""
    said: dict[bytes, str] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        name = name.lower()
        text = value.decode("latin-1") if len(value) <= VALUE_CHARS_MAX else ""
        said[name] = text if said.get(name, text) == text else ""
    return said


def _limits(fields: dict[bytes, str], now_s: float) -> dict[str, _Limit]:
    """Return the limits that header fields state, by their unit: `requests`, `input-tokens` and so on."""
    limits: dict[str, _Limit] = {}
    for field, value in fields.items():
        words = field.partition(_MARK)[2].decode("latin-1").split("-")
        role = next((word for word in (words[-1], words[0]) if word in _ROLES), "")
        if not role or not value or _BEYOND in words:
            continue
        words.remove(role)
        one = limits.setdefault("-".join(words), _Limit())
        if role == "reset":
            one.wait_s = _reset_s(value, now_s)
        elif role == "remaining":
            one.remaining = number_of(value)
        elif role == "limit":
            one.limit = number_of(value)
        else:
            one.rejects = value == "rejected"
    return limits


def _retry_s(fields: dict[bytes, str], now_s: float) -> float | None:
    """Return the seconds of `retry-after-ms` or `Retry-After`; None without a readable one."""
    milliseconds = number_of(fields.get(b"retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    return retry_after_s(fields.get(b"retry-after", ""), now_s)


def _reset_s(value: str, now_s: float) -> float | None:
    """Return the seconds until a reset, given as a duration, a number or a time; None if unreadable."""
    number = number_of(value)
    if number is not None:
        if number < _EPOCH_S:
            return number
        return max(0.0, (number if number < _EPOCH_MS else number / 1000) - now_s)
    span = _SPAN.fullmatch(value)
    if span is not None:
        return sum(float(part or 0) * unit for part, unit in zip(span.groups(), _SPAN_UNITS_S, strict=True))
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s)


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
# Seconds between two log lines about one upstream and cause; a line has the number of failures.
TELL_EACH_S = 10.0
KEYS_TELL_EACH_S = 60.0


class UnreportedFailures:
    """Counts of failures by upstream and cause since the last log line about them."""

    __slots__ = ("_untold",)

    def __init__(self) -> None:
        self._untold: dict[tuple[str, str], list[float]] = {}

    def note(self, upstream: str, cause: str, now: float, each_s: float = TELL_EACH_S) -> int:
        """Count a failure of an upstream. Return the failures since the last log line, or 0.

        It is 0 unless a line is due: at the first failure, and then every `each_s` seconds.
        """
        known = self._untold.get((upstream, cause))
        if known is None:
            self._untold[upstream, cause] = [now + each_s, 0.0]
            return 1
        known[1] += 1
        if now < known[0]:
            return 0
        count = int(known[1])
        known[0], known[1] = now + each_s, 0.0
        return count
