"""Formats values for pages: numbers, money, times, states, charts."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast

from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.resources.form_fields import words
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ENFORCE
from gateway.core.accounts.budgets import MONEY as IN_MONEY
from gateway.core.accounts.intervals import TOTAL
from gateway.core.accounts.plans import TERMS
from gateway.core.accounts.tags import tag_in
from gateway.core.accounts.usage_sums import MONEY_SUMS
from gateway.core.accounts.window_words import describe_length, render_window
from gateway.core.accounts.windows import FIRST_USE, ROLLING
from gateway.core.billing.price_book import KINDS
from gateway.core.times import to_second

NOTHING_TO_SHOW = "—"
# The tone (colour) of a mark by the word that it shows.
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
# Currencies with an unambiguous sign; others are shown by their code.
SYMBOLS: Mapping[str, str] = {"USD": "$", "EUR": "€", "GBP": "£"}
CENTS = 2
# Significant digits shown prominently of an amount below one.
SMALL_DIGITS = 3
STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
LIMITS = (
    ("requests_per_minute", "requests/min"),
    ("tokens_per_minute", "tokens/min"),
    ("concurrency", "at once"),
)


def number(value: object) -> str:
    """Format a number with thousands separators."""
    if value is None:
        return NOTHING_TO_SHOW
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{Decimal(str(value)):,f}".replace("-", "−")


def short(value: float) -> str:
    """Format a number with three digits and a unit: 1.23 M."""
    size = abs(value)
    # A number that rounds up to a thousand of one unit is 1 of the next.
    step, unit = next((pair for pair in STEPS if size >= pair[0] * 0.9995), (1, ""))
    scaled = size / step
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    text = f"{scaled:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{'−' if value < 0 else ''}{text} {unit}".rstrip()


def money(value: object, currency: str = "") -> str:
    """Format an exact amount with its currency, all decimals and thousands separators."""
    return NOTHING_TO_SHOW if value is None else "".join(money_parts(value, currency))


def money_parts(value: object, currency: str = "", places: int = 0) -> tuple[str, str, str]:
    """Return an exact amount in three parts: prominent digits, further decimals, and the currency's code.

    An amount with a currency's sign has cents at least. Decimals are padded with zeros to `places`, so that
    amounts align in columns.
    """
    amount = value.normalize() if isinstance(value, Decimal) else Decimal(str(value))
    whole, _, part = f"{abs(amount):f}".partition(".")
    minus, symbol = "−" if amount < 0 else "", SYMBOLS.get(currency, "")
    part = part.ljust(max(places, CENTS if symbol else 0), "0")
    zeros = len(part) - len(part.lstrip("0"))
    glance = CENTS if int(whole) or zeros == len(part) else max(CENTS, zeros + SMALL_DIGITS)
    head = f"{minus}{symbol}{int(whole):,}" + (f".{part[:glance]}" if part else "")
    return head, part[glance:], f" {currency}" if currency and not symbol else ""


def plain(value: object) -> str:
    """Format a number for programs: exact, without exponent and trailing zeros."""
    return f"{Decimal(str(value)).normalize():f}"


def round_money(value: object, currency: str = "") -> str:
    """Format an amount rounded to cents, or an amount below one to its first significant digits."""
    amount = Decimal(str(value))
    places = CENTS
    if 0 < abs(amount) < 1:
        places = max(CENTS, SMALL_DIGITS - 1 - amount.adjusted())
    rounded = f"{amount.quantize(Decimal(1).scaleb(-places)):f}"
    whole, _, part = rounded.partition(".")
    return money(f"{whole}.{part[:CENTS]}{part[CENTS:].rstrip('0')}", currency)


def percent(part: float, whole: float) -> float:
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0


def moment(value: object) -> str:
    """Format a time (RFC 3339 or a datetime) to the second, in UTC."""
    return NOTHING_TO_SHOW if value is None else to_second(value)


def minute(value: object) -> str:
    return moment(value)[: len("2026-01-31 10:00")]


def day(value: object) -> str:
    if value is None:
        return NOTHING_TO_SHOW
    return str(value)[: len("2026-01-31")]


def fact_of(value: object, name: str) -> str:
    """Format a field of a finance report by its name: month, date, rate or text."""
    if value is None:
        return NOTHING_TO_SHOW
    if name in {"month", "date"}:
        return day(value)[: MONTH_CHARS if name == "month" else None]
    if name == "rate":
        return f"{(Decimal(str(value)) * 100).normalize():f} %"
    return str(value).replace("_", " ")


def time_span(seconds: float) -> str:
    """Format a duration in one or two units, from milliseconds up."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    for size, unit, inner_size, inner in UNITS:
        whole, rest = divmod(int(seconds), size)
        if whole:
            return f"{whole} {unit}" + (f" {rest // inner_size} {inner}" if rest // inner_size else "")
    raise AssertionError


def limits_in_words(value: Mapping[str, int] | None) -> str:
    parts = [
        f"{number(value[name])} {unit}" for name, unit in LIMITS if value and value.get(name) is not None
    ]
    return " · ".join(parts) or "not limited"


def document(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def status_tone(word: Any) -> str:
    return TONES.get(str(word), "plain")


class Outcome(NamedTuple):
    """The outcome of a call by the status of its answer, and the tone of its mark."""

    word: str
    tone: str


ANSWERED, NOT_ALLOWED = Outcome("answered", "good"), Outcome("not allowed", "bad")
LIMIT_REACHED, WRONG_REQUEST = Outcome("limit reached", "warn"), Outcome("wrong request", "calm")
FAILED = Outcome("failed", "bad")
_OUTCOMES = {401: NOT_ALLOWED, 402: LIMIT_REACHED, 403: NOT_ALLOWED, 429: LIMIT_REACHED}


def outcome_of(status: int) -> Outcome:
    known = ANSWERED if status < 400 else WRONG_REQUEST if status < 500 else FAILED
    return _OUTCOMES.get(status, known)


# The use of a budget, in words and as a bar: text and numbers in, text and shares out.

NEARLY = 80.0


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """The use of a budget's account for a page: amounts as texts, shares of the limit in per cent."""

    used: str
    held: str
    left: str
    limit: str
    used_share: float
    held_share: float
    tone: str


NO_LIMIT = "no limit"
# Moments at which a rolling window gives back, on a page.
FREES_SHOWN = 3


def use_of(budget: Row, account: Row | None = None) -> BudgetUse | None:
    """Return used, held and remaining amounts of a budget, or of one `account` of it.

    None for a budget that has an account for each user or key, if `account` is not given.
    """
    row = budget if account is None else account
    if row["used"] is None:
        return None
    most = limit_of(budget) if account is None else account["limit"]
    if most is None:
        used_held = bare(budget, row["used"]), bare(budget, row["held"])
        return BudgetUse(*used_held, NO_LIMIT, NO_LIMIT, 0.0, 0.0, "good")
    if row.get("carried") is not None:
        most = max(Decimal(str(row["used"])) + Decimal(str(row["remaining"])), Decimal(0))
    limit, used, held = (Decimal(str(value)) for value in (most, row["used"], row["held"]))
    used_share = percent(float(used), float(limit))
    tone = "bad" if used >= limit else "warn" if used_share >= NEARLY else "good"
    return BudgetUse(
        bare(budget, row["used"]),
        bare(budget, row["held"]),
        bare(budget, row["remaining"]),
        amount(budget, most),
        round(used_share, 2),
        round(min(percent(float(held), float(limit)), 100.0 - used_share), 2),
        tone,
    )


def limit_of(budget: Row) -> object:
    """Return the current limit of a budget: its amount, the raised one, or that of the account it is shown for.

    None is no limit.
    """
    if "limit_by" in budget:
        return budget["limit"]
    return budget["amount"] if budget.get("raised_to") is None else budget["raised_to"]


def limit_text(budget: Row) -> str:
    return amount(budget, limit_of(budget))


def amount(budget: Row, value: object) -> str:
    if value is None:
        return NO_LIMIT
    if budget["unit"] == IN_MONEY:
        return round_money(value, str(budget["currency"]))
    unit = str(budget["unit"])
    return f"{number(value)} {unit.removesuffix('s') if number(value) == '1' else unit}"


def bare(budget: Row, value: object) -> str:
    """Format an amount without its unit, for use next to one with the unit."""
    return amount(budget, value) if budget["unit"] == IN_MONEY else number(value)


def window_title(budget: Row) -> str:
    """Return the heading over what is used in a budget's window."""
    interval = budget["interval"]
    if interval is None:
        length = describe_length(str(budget["length"]))
        return (
            f"The last {length.removeprefix('1 ')}"
            if budget["window"] == ROLLING
            else f"In {length} from a first call"
        )
    return "In all" if interval == TOTAL else f"This {interval}"


def resets_text(budget: Row) -> str:
    """Return when a budget resets, and how much of a rolling window is free at the next moments."""
    if budget["resets_at"]:
        return minute(budget["resets_at"])
    frees = cast("Sequence[Mapping[str, object]]", budget.get("frees") or ())
    if frees:
        return ", ".join(
            f"{amount(budget, freed['amount'])} at {_soon(freed['at'])}" for freed in frees[:FREES_SHOWN]
        )
    if budget["window"] == ROLLING:
        return "by and by"
    return "with a first call" if budget["window"] == FIRST_USE else "never"


def _soon(value: object) -> str:
    """Return a time to the minute, without its day if it is less than a day ahead."""
    at = datetime.fromisoformat(str(value))
    return minute(at)[DAY_CHARS:] if at < datetime.now(UTC) + timedelta(days=1) else minute(at)


def carried_text(budget: Row) -> str:
    """Return what earlier intervals left to an account of a budget; empty if nothing."""
    carried = budget.get("carried")
    if carried is None or not Decimal(str(carried)):
        return ""
    if Decimal(str(carried)) > 0:
        return f"{amount(budget, carried)} more from before"
    return f"{amount(budget, str(carried).removeprefix('-'))} taken off for use from before"


def window_text(budget: Row) -> str:
    """Return a budget's window for a table, with what goes on into the next one, and its steps."""
    carry: Any = budget.get("carry")
    parts = [render_window(budget)]
    parts += [f"up to {amount(budget, carry['max'])} goes on"] if carry else []
    count = len(cast("Sequence[object]", budget.get("steps") or ()))
    parts += [f"{count} step{'s' if count > 1 else ''}"] if count else []
    return ", ".join(parts)


def budget_state_of(budget: Row) -> str:
    """Return the state of a budget in a word or two."""
    use = use_of(budget)
    if use is None:
        return f"each {budget['each']}"
    if use.tone == "bad":
        return "used up" if budget["mode"] == ENFORCE else "passed"
    return "nearly used up" if use.tone == "warn" else "within"


# What a budget without a selector applies to.
WHOLE = "the whole organization"


def budget_selector(budget: Row, names: Mapping[tuple[str, int], str], targets: Mapping[str, str]) -> str:
    """Return the calls that a budget applies to, in words.

    `names` are names of rows by resource and id; `targets` are the resources by field.
    """
    parts = []
    for name in SELECTING:
        value: Any = budget[name]
        if value is not None:
            called = (
                names.get((targets.get(name, ""), value), str(value)) if isinstance(value, int) else value
            )
            parts.append(f"{words(name).lower()} {called}".replace("api key", "API key"))
    tags: Any = budget.get("tags") or {}
    parts += [f"tag {name} {value}" for name, value in tags.items()]
    if budget["each"]:
        parts.append(f"each {budget['each']}")
    return ", ".join(parts) or WHOLE


# Resources of owners that are ids, by `each`.
NAMED_OWNERS = {"key": "api-keys", "tenant": "tenants"}


def each_in_words(kind: object, *, many: bool = False) -> str:
    """Return whom a budget with `each` gives an amount, such as API key, or of a tag its value."""
    tag = tag_in(str(kind))
    word = "value" if tag else {"key": "API key"}.get(str(kind), str(kind))
    return f"{word}{'s' if many else ''}{f' of {tag}' if tag else ''}"


# The contents of a cell: each field of a row as a kind, a text and perhaps an address.

Names = Mapping[tuple[str, int], str]

TIMES = frozenset({"timestamp", "last_reset", "effective_from", "effective_to", "until", "at"})
TIME_ENDINGS = ("_at", "_until", "_on", "_date", "_start", "_end")
# The time from which what always holds is in force.
_EVER = "1970-01-01"
MARKS = frozenset(
    {
        "status", "payment_status", "state", "category", "kind", "role", "transaction_type", "direction",
        "meter",
        "billing_interval", "service_type", "action", "resolution", "mode",
        *(term.name for term in TERMS if term.choices),
    }
)  # fmt: skip
MONEY = frozenset(
    {"spend_cap", "monthly_cost", "annual_cost", "overage_unit_price", "unit_cost", "total_amount",
     "subtotal", "tax", "unit_price", "request", "amount", "amount_due",
     "amount_paid", "amount_applied", "amount_prepaid", "amount_left", "raised_to",
     "used", "held", "remaining", *MONEY_SUMS, *KINDS}
)  # fmt: skip
CODES = frozenset({"key", "prefix", "request_id", "entry_id", "raw", "account", "resource_id", "actor"})
# Parts of one, which are shown in per cent.
SHARES = {("tax-rates", "rate"), ("organization-services", "discount")}
UNLIMITED = frozenset({"total_amount", "tokens_remaining", "spend_cap", "total_remaining"})
LABELS = {
    "id": "No.",
    "quota": "Tokens left",
    "use": "Used",
    "of": "Of",
    "window": "Per",
    "after": "What",
    "resource_id": "Row",
    "timestamp": "When",
    "credits_added": "Added",
    "credits_remaining": "Left",
    "negotiated_credits": "Credits",
    "corrects": "Invoices corrected",
    "frees": "Gives back",
    "is_current": "Live",
    "invoicing_left_reason": "Not invoiced because",
    "retry_after_max_s": "Longest Retry-After, seconds",
}
# Fields that name an actor, and the resources of actors.
ACTORS = frozenset({"actor", "requested_by", "decided_by"})
_ACTOR, _ACTOR_OF = re.compile(r"(key|token):([0-9]{1,18})"), {"key": "api-keys", "token": "admin-tokens"}
ITEMS_MAX = 6
MINUTE_CHARS = len("2026-01-31 10:00")
DAY_CHARS = len("2026-01-31 ")


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a row for a table.

    `kind` is text, number, time, mark, code, document, quota, use or none; `tone` is the colour of a mark.
    `money` are the parts of an amount of money, which is a number.
    """

    kind: str
    text: str
    href: str = ""
    tone: str = ""
    money: tuple[str, str, str] | None = None


def label_of(column: str) -> str:
    return LABELS.get(column) or words(column)


def cell(screen: Screen, row: Row, column: str, names: Names) -> Cell:
    if column == "state":
        word = state_of(screen.name, row)
        return Cell("mark", word, tone=status_tone(word))
    if column in {"quota", "use"}:
        return Cell(column, "")
    if column in {"of", "window"}:
        targets = {name: screen.resource.target(name) for name in SELECTING}
        return Cell("text", budget_selector(row, names, targets) if column == "of" else window_text(row))
    if column == "change":
        sign, tone = ("+", "good") if row["direction"] == "IN" else ("−", "plain")
        return Cell("number", f"{sign}{number(row['amount'])}", tone=tone)
    value: Any = row.get(column)
    if column == "last_used_at" and screen.name == "api-keys" and value:
        return Cell("time", day(value))
    if column == "resource_id":
        its = SCREENS.get(str(row.get("resource")))
        page = f"/{its.name}/{value}" if its and its.has_page and str(value).isdecimal() else ""
        return Cell("code", str(value or NOTHING_TO_SHOW), page)
    if column == "request_id" and value and screen.name != "calls":
        return Cell("code", str(value), f"/calls?request_id={value}")
    if column == "model" and column not in row:
        metadata: Any = row.get("metadata") or {}
        value = metadata.get("model") or metadata.get("reason")
    if refers := _reference(screen, column, value):
        known = SCREENS.get(refers[0])
        name = names.get(refers) or (f"{known.one} {refers[1]}" if known else str(value))
        return Cell("text", name, f"/{refers[0]}/{refers[1]}" if known and known.has_page else "")
    if column == "status" and isinstance(value, int):
        reason = str(row.get("reason") or "").replace("_", " ")
        return Cell("mark", f"{value} {reason}".rstrip(), tone=outcome_of(value).tone)
    if value is None:
        return Cell(
            "none", "unlimited" if column in UNLIMITED and screen.name != "invoices" else NOTHING_TO_SHOW
        )
    return _of_value(screen, column, value, row)


def references(screen: Screen, rows: Iterable[Row]) -> dict[str, set[int]]:
    """Return all ids that rows refer to, by resource."""
    ids: dict[str, set[int]] = {}
    for row in rows:
        for column, value in row.items():
            if refers := _reference(screen, column, value):
                ids.setdefault(refers[0], set()).add(refers[1])
    return ids


def _reference(screen: Screen, column: str, value: object) -> tuple[str, int] | None:
    """Return the resource and id that a value refers to, or those of an actor's key or token; else None."""
    if isinstance(value, int):
        target = screen.resource.target(column)
        return (target, value) if target else None
    match = _ACTOR.fullmatch(str(value)) if column in ACTORS else None
    return (_ACTOR_OF[match[1]], int(match[2])) if match else None


def state_of(name: str, row: Row) -> str:
    if row.get("state"):
        return str(row["state"])
    if name == "budgets":
        return budget_state_of(row)
    if name == "tenants":
        quota: Any = row.get("quota") or {}
        if quota.get("manual_block"):
            return "blocked"
        return "used up" if quota.get("is_blocked") else "active"
    if row.get("revoked_at"):
        return "revoked"
    if row.get("resolved_at"):
        return str(row.get("resolution") or "resolved")
    if row.get("released_at"):
        return "released"
    ends = row.get("expires_at")
    if ends and datetime.fromisoformat(str(ends)) <= datetime.now(UTC):
        return "expired"
    return "open" if name in {"dead-letters", "quarantine"} else "active"


def _of_value(screen: Screen, column: str, value: Any, row: Row) -> Cell:
    if isinstance(value, bool):
        return Cell("mark", "yes" if value else "no", tone="good" if value else "plain")
    if column in MONEY and isinstance(value, str):
        parts = money_parts(value, str(row.get("currency") or ""))
        return Cell("number", "".join(parts), money=parts)
    if column in MARKS:
        return Cell("mark", str(value).replace("_", " "), tone=status_tone(value))
    if column == "id":
        return Cell("number", str(value))
    if isinstance(value, int) or column == "quantity":
        return Cell("number", number(value))
    if column in TIMES or column.endswith(TIME_ENDINGS):
        text = moment(value) if "T" in str(value) else day(value)
        text = "always" if text.startswith(_EVER) else text
        in_order = column in {"timestamp", "created_at"} and (screen.spans_time or not screen.has_page)
        return Cell("time", text if in_order else text[:MINUTE_CHARS])
    if column.endswith("limits"):
        return Cell("text", limits_in_words(value))
    if column in {"weights", "thresholds"}:
        text = ", ".join(_parts_of(value))
        return Cell("text" if text else "none", text or NOTHING_TO_SHOW)
    if column == "last_delivery":
        return Cell("mark", f"{value['event']}: {value['state']}", tone=status_tone(value["state"]))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        more = f" and {len(value) - ITEMS_MAX} more" if len(value) > ITEMS_MAX else ""
        empty = Cell("text", "everything") if column == "events" else Cell("none", NOTHING_TO_SHOW)
        return Cell("text", ", ".join(value[:ITEMS_MAX]) + more) if value else empty
    if isinstance(value, dict | list):
        return Cell("document", document(value)) if value else Cell("none", NOTHING_TO_SHOW)
    text = fact_of(value, "rate") if (screen.name, column) in SHARES else str(value)
    return Cell("code" if column in CODES else "text", text)


def _parts_of(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        return (f"{words(kind).lower()} {weight}" for kind, weight in value.items())
    return (f"{100 * part:g} %" for part in value)


# Use over time as stacked bars: heights for the drawing, exact amounts for the table next to it.

SERIES_MAX = 6
REST = "everything else"
HEIGHT = 100.0
MONTH_CHARS = len("2026-01")

Amount = int | Decimal
# Time, series, amount.
Used = tuple[date, Hashable, Amount]


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a column in a chart of height 100: its position and height."""

    colour: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """An interval in a chart: the amount of each series, and the total."""

    at: date
    total: Amount
    parts: tuple[Amount, ...]
    bars: tuple[Bar, ...]

    @property
    def seconds(self) -> int:
        """The start of the column's interval, in seconds since 1970."""
        begins = self.at if isinstance(self.at, datetime) else datetime(*self.at.timetuple()[:3], tzinfo=UTC)
        return int(begins.timestamp())


@dataclass(frozen=True, slots=True)
class Chart:
    """The columns of a chart in order, the series' names, highest total first, and the highest column.

    `unit` is the unit of the amounts; for money, `currency` is its code.
    """

    columns: tuple[Column, ...]
    series: tuple[str, ...]
    top: Amount
    total: Amount
    unit: str
    currency: str
    interval: str

    @property
    def legend(self) -> list[tuple[int, str]]:
        return [(_colour(index, name), name) for index, name in enumerate(self.series)]

    @property
    def is_empty(self) -> bool:
        return not self.top

    def render_amount(self, amount: Amount) -> str:
        return money(amount, self.currency) if self.currency else number(amount)

    def glance(self, amount: Amount) -> str:
        return round_money(amount, self.currency) if self.currency else short(float(amount))

    def label(self, column: Column) -> str:
        if self.interval == "hour":
            return minute(column.at)
        return day(column.at)[: MONTH_CHARS if self.interval == "month" else None]


def stacked(
    used: Iterable[Used],
    times: Sequence[date],
    names: Mapping[Hashable, str],
    *,
    unit: str,
    currency: str = "",
    interval: str = "day",
) -> Chart:
    """Return a chart of use by time, stacked by series; the smallest beyond `SERIES_MAX` are merged."""
    by_time: dict[date, dict[Hashable, Amount]] = {at: defaultdict(int) for at in times}
    sums = defaultdict[Hashable, Amount](int)
    for at, key, amount in used:
        if at in by_time:
            by_time[at][key] += amount
            sums[key] += amount
    ranked = sorted(
        (key for key in sums if sums[key]), key=lambda key: (names[key] == REST, -sums[key], names[key])
    )
    apart = ranked if len(ranked) <= SERIES_MAX else ranked[: SERIES_MAX - 1]
    rest = ranked[len(apart) :]
    totals = {at: sum(parts.values()) for at, parts in by_time.items()}
    top = max(totals.values(), default=0)
    series = (*(names[key] for key in apart), *([REST] if rest else []))
    columns = []
    for at, parts in by_time.items():
        amounts = [parts[key] for key in apart] + ([sum(parts[key] for key in rest)] if rest else [])
        columns.append(Column(at, totals[at], tuple(amounts), _bars(series, amounts, top)))
    return Chart(tuple(columns), series, top, sum(sums.values()), unit, currency, interval)


def _bars(series: Sequence[str], amounts: Sequence[Amount], top: Amount) -> tuple[Bar, ...]:
    bars, base = [], 0.0
    for index, amount in enumerate(amounts):
        if amount > 0:
            height = HEIGHT * float(amount / top)
            y, shown_height = round(HEIGHT - base - height, 3), round(max(height, 0.4), 3)
            bars.append(Bar(_colour(index, series[index]), y, shown_height))
            base += height
    return tuple(bars)


def _colour(index: int, name: str) -> int:
    return SERIES_MAX if name == REST else index
