"""How long an upstream that refused a call asks to be left alone, read from the fields of its answer. Pure.

Every value is a stranger's: what is negative, no number and no time says nothing, and neither does what is
said twice in two ways. Source: what the families' own APIs document of their rate limits (`retry-after-ms`,
resets such as `6m0s` or by RFC 3339, `unified`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.core.retry_after import VALUE_CHARS_MAX, date_s, number_of, retry_after_s

# What is left of a limit counts as nothing below this part of it.
LEFT_MIN = 0.01
_MARK = b"ratelimit-"
_ROLES = frozenset({"limit", "remaining", "reset", "status"})
_BEYOND = "overage"  # what may be had beyond a subscription: it may be rejected while much of that is left
_SPAN = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_SPAN_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
# A number this large is a time since the epoch, in seconds; or in milliseconds.
_EPOCH_S, _EPOCH_MS = 10**9, 10**12


@dataclass(slots=True)
class _Limit:
    """One limit as the upstream tells of it; None is what it does not say."""

    limit: float | None = None
    remaining: float | None = None
    wait_s: float | None = None
    rejects: bool = False

    @property
    def spent(self) -> bool:
        """Whether nobody can have anything of it."""
        return self.rejects or (self.remaining is not None and self.remaining <= LEFT_MIN * (self.limit or 0))


def wait_told(lines: Iterable[bytes], tokens: int, now_s: float) -> tuple[float, bool]:
    """Seconds to wait, 0 where the upstream does not say so, and whether a limit is said to be spent.

    `lines` are the fields of the answer, `tokens` what the refused call may use by our estimate, `now_s` the
    time of day. Where no limit is spent, but fewer tokens are left than that, only this call was too large.
    Else `Retry-After` counts. Without one the latest reset of what is spent does, or the first of all where
    nothing is said of what is left. Where none is spent, the call itself may be the reason.
    """
    fields = _said(lines)
    now_s = date_s(fields.get(b"date", "")) or now_s  # a wait until a time goes by the clock of who says it
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


def _said(lines: Iterable[bytes]) -> dict[bytes, str]:
    """Values by name, in lower case; empty where one is too long or there are two."""
    said: dict[bytes, str] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        name = name.lower()
        text = value.decode("latin-1") if len(value) <= VALUE_CHARS_MAX else ""
        said[name] = text if said.get(name, text) == text else ""
    return said


def _limits(fields: dict[bytes, str], now_s: float) -> dict[str, _Limit]:
    """The limits by what they count: `requests`, `input-tokens`, `unified` and so on."""
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
    """What `Retry-After` says; None where it says nothing that can be read."""
    milliseconds = number_of(fields.get(b"retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    return retry_after_s(fields.get(b"retry-after", ""), now_s)


def _reset_s(value: str, now_s: float) -> float | None:
    """Seconds until a reset that is a span, a number, or a time."""
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
