"""How long a refusing upstream asks to be left alone, read from the fields of its answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Numbers from here on are Unix times, in seconds or in milliseconds.
_EPOCH_S, _EPOCH_MS = 10**9, 10**12

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


# A limit counts as used up if less than this part of it remains.
LEFT_MIN = 0.01
_MARK = b"ratelimit-"
_ROLES = frozenset({"limit", "remaining", "reset", "status"})
_BEYOND = "overage"  # use beyond a subscription: may be rejected while much of the subscription remains
_SPAN = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_SPAN_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


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
    fields = _header_values(lines)
    now_s = date_s(fields.get(b"date", "")) or now_s  # a time to wait for is by the upstream's clock
    limits = _limits(fields, now_s)
    spent = [limit for limit in limits.values() if limit.spent]
    left = [
        limit.remaining for name, limit in limits.items() if "token" in name and limit.remaining is not None
    ]
    if not spent and left and min(left) < tokens:
        return 0.0, False
    retry = _retry_s(fields, now_s)
    if retry is not None:
        return retry, bool(spent)
    if spent:
        return max((limit.wait_s for limit in spent if limit.wait_s is not None), default=0.0), True
    if any(limit.remaining is not None for limit in limits.values()):
        return 0.0, False
    return min((limit.wait_s for limit in limits.values() if limit.wait_s is not None), default=0.0), False


def stated_limits(lines: Iterable[bytes]) -> tuple[int, int]:
    """Return the requests and tokens per minute that an answer's fields state as limits; 0 if unstated."""
    limits = _limits(_header_values(lines), 0.0)

    def of(*names: str) -> int:
        return sum(int(limit.limit or 0) for name in names if (limit := limits.get(name)) is not None)

    return of("requests"), of("tokens") or of("input-tokens", "output-tokens")


def _header_values(lines: Iterable[bytes]) -> dict[bytes, str]:
    """Return values by lower-case name; empty if a value is too long, or two values differ."""
    headers: dict[bytes, str] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        name = name.lower()
        text = value.decode("latin-1") if len(value) <= VALUE_CHARS_MAX else ""
        headers[name] = text if headers.get(name, text) == text else ""
    return headers


def _limits(fields: dict[bytes, str], now_s: float) -> dict[str, _Limit]:
    """Return the limits that header fields state, by their unit: `requests`, `input-tokens` and so on."""
    limits: dict[str, _Limit] = {}
    for field, value in fields.items():
        words = field.partition(_MARK)[2].decode("latin-1").split("-")
        role = next((word for word in (words[-1], words[0]) if word in _ROLES), "")
        if not role or not value or _BEYOND in words:
            continue
        words.remove(role)
        limit = limits.setdefault("-".join(words), _Limit())
        if role == "reset":
            limit.wait_s = _reset_s(value, now_s)
        elif role == "remaining":
            limit.remaining = number_of(value)
        elif role == "limit":
            limit.limit = number_of(value)
        else:
            limit.rejects = value == "rejected"
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
