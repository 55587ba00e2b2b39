"""How values look on a page: numbers, money, times, the state of things. Text in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

NONE = "—"
# What a word says of its row: the tone its mark is set in.
TONES: Mapping[str, str] = {
    word: tone
    for tone, words in {
        "good": ("active", "within", "finalized", "delivered", "IN", "recharge", "redriven", "released",
                 "admin", "paid", "done"),
        "calm": ("draft", "pending", "future", "reset", "lag", "promotional", "readonly", "resolved",
                 "waiting", "canceled"),
        "warn": ("adjust", "nearly used up", "passed", "expired", "over", "refund", "correction", "delete",
                 "full", "unasked"),
        "bad": ("void", "failed", "blocked", "used up", "revoked", "drift", "gap", "excess", "open",
                "conflict", "behind", "unknown_account", "overdue", "uncollectible", "contradiction", "more"),
    }.items()
    for word in words
}  # fmt: skip
# Currencies whose sign is nobody else's; others are said by their code.
SYMBOLS: Mapping[str, str] = {"USD": "$", "EUR": "€", "GBP": "£"}
CENTS = 2
# Of an amount below one: how many digits are read at a glance.
SMALL_DIGITS = 3
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
    """An exact amount with its currency: its decimals stay, its thousands are set apart."""
    return NONE if value is None else "".join(money_parts(value, currency))


def money_parts(value: object, currency: str = "", places: int = 0) -> tuple[str, str, str]:
    """An exact amount in three pieces: what is read at a glance, further decimals, what follows.

    A text keeps its decimals, a computed amount has as many as it needs. They are filled up to `places`, so
    that amounts stand below each other.
    """
    amount = value.normalize() if isinstance(value, Decimal) else Decimal(str(value))
    whole, _, part = f"{abs(amount):f}".partition(".")
    minus, symbol = "−" if amount < 0 else "", SYMBOLS.get(currency, "")
    part = part.ljust(max(places, CENTS if symbol and (part or isinstance(value, Decimal)) else 0), "0")
    zeros = len(part) - len(part.lstrip("0"))
    glance = CENTS if int(whole) or zeros == len(part) else max(CENTS, zeros + SMALL_DIGITS)
    head = f"{minus}{symbol}{int(whole):,}" + (f".{part[:glance]}" if part else "")
    return head, part[glance:], f" {currency}" if currency and not symbol else ""


def plain(value: object) -> str:
    """A number for programs: exact, without exponent and without zeros that say nothing."""
    return f"{Decimal(str(value)).normalize():f}"


def about(value: object, currency: str = "") -> str:
    """An amount to be read at a glance: to cents, a small one to its first digits."""
    amount = Decimal(str(value))
    places = CENTS
    if 0 < abs(amount) < 1:
        places = max(CENTS, SMALL_DIGITS - 1 - amount.adjusted())
    rounded = f"{amount.quantize(Decimal(1).scaleb(-places)):f}"
    whole, _, part = rounded.partition(".")
    return money(f"{whole}.{part[:CENTS]}{part[CENTS:].rstrip('0')}", currency)


def percent(part: float, whole: float) -> float:
    """A share of a whole, from 0 to 100."""
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0


def moment(value: object) -> str:
    """An instant (RFC 3339 or a datetime) to the second, UTC."""
    if value is None:
        return NONE
    at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def minute(value: object) -> str:
    """An instant to the minute, UTC."""
    return moment(value)[: len("2026-01-31 10:00")]


def day(value: object) -> str:
    """A date."""
    if value is None:
        return NONE
    return str(value)[: len("2026-01-31")]


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
