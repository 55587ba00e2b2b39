"""How values look on a page: numbers, money, times, the state of things. Text in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

NONE = "—"
# What a word says of its row: the tone its mark is set in.
TONES: Mapping[str, str] = {
    word: tone
    for tone, words in {
        "good": ("active", "finalized", "delivered", "IN", "recharge", "redriven", "released", "admin"),
        "calm": ("draft", "pending", "future", "reset", "lag", "promotional", "readonly", "resolved"),
        "warn": ("adjust", "expired", "over", "refund", "correction", "delete"),
        "bad": ("void", "failed", "blocked", "used up", "revoked", "drift", "gap", "excess", "open",
                "conflict", "behind", "unknown_account"),
    }.items()
    for word in words
}  # fmt: skip
STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
LIMITS = (
    ("requests_per_minute", "requests/min"),
    ("tokens_per_minute", "tokens/min"),
    ("concurrency", "at once"),
)


def number(value: object) -> str:
    """A number with its thousands set apart."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{int(str(value)):,}".replace("-", "−")


def short(value: float) -> str:
    """A number in three figures: 1.23 M."""
    size = abs(value)
    # What rounds up to a thousand of one unit is one of the next.
    step, unit = next((each for each in STEPS if size >= each[0] * 0.9995), (1, ""))
    scaled = size / step
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    text = f"{scaled:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{'−' if value < 0 else ''}{text} {unit}".rstrip()


def money(value: object, currency: str = "") -> str:
    """A decimal string as money: its decimals stay, its thousands are set apart."""
    if value is None:
        return NONE
    whole, _, part = str(Decimal(str(value))).partition(".")
    text = f"{int(whole):,}" + (f".{part}" if part else "")
    if str(value).startswith("-") and not text.startswith("-"):
        text = f"-{text}"
    return f"{text} {currency}".strip().replace("-", "−", 1)


def percent(part: float, whole: float) -> float:
    """A share of a whole, from 0 to 100."""
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0


def moment(value: object) -> str:
    """An instant (RFC 3339 or a datetime) to the second, UTC."""
    if value is None:
        return NONE
    at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def day(value: object) -> str:
    """A date."""
    if value is None:
        return NONE
    return value.isoformat() if isinstance(value, date) else str(value)[:10]


def span(seconds: float) -> str:
    """A length of time in one or two units, from milliseconds up."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    for size, unit, inner_size, inner in UNITS:
        whole, rest = divmod(int(seconds), size)
        if whole:
            return f"{whole} {unit}" + (f" {rest // inner_size} {inner}" if rest // inner_size else "")
    raise AssertionError


def limits(value: Mapping[str, int] | None) -> str:
    """Limits of one scope in a line."""
    said = [f"{number(value[name])} {unit}" for name, unit in LIMITS if value and value.get(name) is not None]
    return " · ".join(said) or "not limited"


def document(value: object) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def tone(word: Any) -> str:
    """How a state is set."""
    return TONES.get(str(word), "plain")
