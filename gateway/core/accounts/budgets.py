"""Budgets: how much money, tokens or calls an interval may use, and which calls each is about. Pure.

Callers must not escape a budget by fields that they can change: case never distinguishes two models, and
calls without a user share one account.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from gateway.core.accounts.intervals import TOTAL, bounds, wrong_calendar
from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import money
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX
from gateway.core.times import DAY_MS, ms_of

MONEY, TOKENS, REQUESTS = UNITS = ("money", "tokens", "requests")
USER, KEY, PROJECT, SESSION = EACH = ("user", "key", "project", "session")
ENFORCE, AUDIT = MODES = ("enforce", "audit")
FINISH, CUT = ON_EXHAUSTED = ("finish", "cut")
LIKELY, MAXIMUM = HOLDS = ("likely", "maximum")
OPEN, APPROVED, DENIED = RAISE_STATUSES = ("open", "approved", "denied")
# Most accounts that a call uses, and most windows of one account.
BUDGET_ACCOUNTS_MAX: Final = 16
WINDOWS_MAX: Final = 16
# After so many whole days without calls an account of `each` is given up, and a session's is forgotten.
EACH_UNUSED_DAYS: Final = 30
# Most raises of single owners that a budget has at a time, and all budgets of an organization: each gateway
# worker has those of the organizations that call.
RAISES_MAX: Final = 10_000
ORGANIZATION_RAISES_MAX: Final = 20_000
# Origins of the limit of an account.
BY_BUDGET, BY_RAISE = LIMITS_BY = ("budget", "raise")

# One window as it is sent with a call. Its flags are the unit, and what happens once it is used up. In an
# endless window `after` is how long (ms) an unused account is kept: 0 is for ever.
DEFINED_WINDOW = Layout("DEFINED_WINDOW", "f64 budget_id limit start next after, u8 flags")
FLAG_MONEY, FLAG_TOKENS, FLAG_REQUESTS, FLAG_ENFORCE, FLAG_CUT = 1, 2, 4, 8, 16
UNIT_OF: Final = {FLAG_MONEY: MONEY, FLAG_TOKENS: TOKENS, FLAG_REQUESTS: REQUESTS}
_FLAG_OF: Final = {unit: flag for flag, unit in UNIT_OF.items()}
# A limit of money above 2^53 - 1 nano-units is packed in steps of so many of them, with other flags in place
# of the unit's. With all three flags it is in nano-units, and the used or held amount is above 2^53 - 1.
# Windows with such flags are wide: they count in two numbers (lua/lib/wide.lua).
FLAGS_OVERFLOWED: Final = FLAG_MONEY | FLAG_TOKENS | FLAG_REQUESTS
WIDE_STEPS: Final = {
    FLAG_MONEY | FLAG_TOKENS: 10**6,
    FLAG_MONEY | FLAG_REQUESTS: 10**7,
    FLAG_TOKENS | FLAG_REQUESTS: 10**9,
    FLAGS_OVERFLOWED: 1,
}


class PersonalRaise(NamedTuple):
    """The amount of one owner of a budget with `each` until `until_ms` (Unix ms), in its unit as counted."""

    amount: int
    until_ms: int


class Limit(NamedTuple):
    """The limit of an account, and its origin, one of `LIMITS_BY`."""

    amount: int
    by: str


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on a `unit` in each interval, for all calls that match its selector.

    The selector is `tenant_id`, `user`, `api_key_id`, `project_id`, `model` (exact, or `prefix*`),
    `service_id`, `tool` and the tool's `server`: 0, empty text or None match any call. With `each`, every
    user, key, project or session has a separate amount. `amount` and `raised_to` are nano-units of the
    organization's currency if the unit is money. `raised_to` replaces the amount until `raised_until_ms` (0:
    not raised). Without `enforce` the use is only counted and reported. With `cut` the budget ends the stream
    that uses it up. `hold` is how much of a call is held, `likely` or `maximum`; empty means that the
    tenant's plan decides. `raises` are those of single owners, by the owner's part of the account's name.
    """

    id: int
    name: str
    unit: str
    amount: int
    interval: str
    time_zone: str = "UTC"
    anchor_day: int = 1
    enforce: bool = True
    cut: bool = False
    tenant_id: int = 0
    user: str = ""
    api_key_id: int = 0
    project_id: int | None = None
    model: str = ""
    service_id: int = 0
    each: str = ""
    created_ms: int = 0
    raised_to: int = 0
    raised_until_ms: int = 0
    hold: str = ""
    tool: str = ""
    server: str = ""
    raises: dict[str, PersonalRaise] = field(default_factory=dict, hash=False)

    @property
    def selector(self) -> tuple[object, ...]:
        """The fields that select calls, and the kind of users with an account each, as a key for comparison.

        Budgets with equal keys share their accounts. Names of accounts are hashes of this tuple, so
        the rarely used tool and server are appended only if set.
        """
        of_tools = (self.tool.lower(), self.server.lower()) if self.tool or self.server else ()
        return (
            self.tenant_id, self.user, self.api_key_id, self.project_id, self.model.lower(), self.service_id,
            self.each, *of_tools,
        )  # fmt: skip

    def limit_at(self, at_ms: int) -> int:
        """Return the limit at a time (Unix ms): `raised_to` while the budget is raised, else `amount`."""
        return self.raised_to if at_ms < self.raised_until_ms else self.amount

    def limit_of(self, owner: str, at_ms: int) -> Limit:
        """Return the limit of one owner's account at a time (Unix ms); a raise of the owner never lowers it.

        `owner` is a result of `owner_in`; empty for the account of all, and the shared one.
        """
        usual, own = self.limit_at(at_ms), self.raises.get(owner)
        if own is None or at_ms >= own.until_ms or own.amount <= usual:
            return Limit(usual, BY_BUDGET)
        return Limit(own.amount, BY_RAISE)

    @property
    def is_large(self) -> bool:
        """Whether a limit of money is more than one number counts, so that windows are wide."""
        amounts = (self.amount, self.raised_to, *[own.amount for own in self.raises.values()])
        return self.unit == MONEY and max(amounts) > INTEGER_MAX

    def matches(self, asked: CallAttributes) -> bool:
        """Return whether this budget applies to a call: each field that it sets must match the call's."""
        return (
            self.tenant_id in {0, asked.tenant_id}
            and self.api_key_id in {0, asked.api_key_id}
            and self.service_id in {0, asked.service_id}
            and self.user in {"", asked.user}
            and self.project_id in {None, asked.project_id}
            and (not self.model or any(model and is_of(model, self.model) for model in asked.models))
            and self.tool.lower() in {"", asked.tool.lower()}
            and self.server.lower() in {"", asked.server.lower()}
        )

    def value_of(self, asked: CallAttributes) -> str:
        """Return the user, key, project or session that has its own account in this budget, of a call.

        Empty if all calls share one account, or if the call does not name one.
        """
        if self.each == USER:
            return asked.user
        if self.each == KEY:
            return str(asked.api_key_id)
        if self.each == PROJECT:
            return "" if asked.project_id is None else str(asked.project_id)
        return asked.session if self.each == SESSION else ""


# The owner of the account that is shared beyond the maximum of accounts of `each`; see lua/lib/short.lua.
OTHERS = "other"
ALL_OTHERS = "all others"  # its name for people


class CallAttributes(NamedTuple):
    """Attributes of a call that select its budgets. `models` are all models that may answer the call.

    `tool` and its `server` are set for calls of a tool.
    """

    tenant_id: int
    api_key_id: int
    service_id: int
    user: str = ""
    project_id: int | None = None
    models: tuple[str, ...] = ()
    session: str = ""
    tool: str = ""
    server: str = ""


def is_of(model: str, pattern: str) -> bool:
    """Return whether a model matches a budget's pattern: the whole name, or a prefix if it ends in `*`.

    Upper and lower case are the same, because many upstreams ignore case.
    """
    model, pattern = model.lower(), pattern.lower()
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


def account_of(organization_id: int, budget: Budget, value: str = "") -> str:
    """Return the name of a budget's account: a hash of the organization and of the budget's selector.

    If `budget.each` is set (an account for each user, for example), a hash of `value` follows, which is a
    result of `value_of`. It is hashed because it may name a person.
    """
    named = json.dumps([organization_id, *budget.selector], ensure_ascii=False)
    name = _digest(named)[:16]
    return f"{name}:{owner_of(value)}" if budget.each else name


def owner_of(value: str) -> str:
    """Return the owner's part of an account's name: a hash of the user, key, project or session `value`."""
    return _digest(value)[:24]


def owner_in(account: str) -> str:
    """Return the owner's part of an account's name; empty for an account of all."""
    return account.partition(":")[2]


def are_raised(budgets: Iterable[Budget], owner: str) -> bool:
    """Return whether one of these budgets has a raise of this owner, in force or over."""
    return any(owner in budget.raises for budget in budgets)


def defined(budgets: Iterable[Budget], at_ms: int, owner: str = "") -> bytes:
    """Return the current windows of one account's budgets at `at_ms` (Unix ms), packed for Lua scripts.

    The limits are those of `owner`, a result of `owner_in`.
    """
    packed = list[bytes]()
    for one in sorted(budgets, key=lambda one: one.id):
        limit, flags = packed_limit(one.limit_of(owner, at_ms).amount, flags_of(one))
        times = (
            (0, 0, EACH_UNUSED_DAYS * DAY_MS)
            if is_forgotten_unused(one)
            else bounds(one.interval, one.time_zone, one.anchor_day, at_ms)
        )
        packed.append(DEFINED_WINDOW.pack(one.id, limit, *times, flags))
    return b"".join(packed)


def packed_limit(limit: int, flags: int) -> tuple[int, int]:
    """Return a limit and the flags of its window as the scripts take them: a large one of money in steps.

    What no step divides is rounded down: `wrong_amount` knows none.
    """
    if not flags & FLAG_MONEY or limit <= INTEGER_MAX:
        return limit, flags
    whole = FLAG_TOKENS | FLAG_REQUESTS
    found = (one for one, step in WIDE_STEPS.items() if limit % step == 0 and limit // step <= INTEGER_MAX)
    unit = next(found, whole)
    return min(limit // WIDE_STEPS[unit], INTEGER_MAX), flags - FLAG_MONEY + unit


def read_limit(limit: int, flags: int) -> tuple[int, int]:
    """Return a limit and flags as `packed_limit` was given them: nano-units of money."""
    unit = flags & FLAGS_OVERFLOWED
    step = WIDE_STEPS.get(unit)
    return (limit, flags) if step is None else (limit * step, flags - unit + FLAG_MONEY)


@lru_cache(4096)
def ends_of(windows: bytes) -> tuple[bool, int, bool]:
    """Return three facts about an account's packed windows.

    The facts are: whether a window never ends, the latest end of the windows that end (Unix ms), and
    whether an endless window is forgotten once it is unused.
    """
    fields = DEFINED_WINDOW.struct.iter_unpack(windows)
    ends = [(int(next_), after > 0) for _, _, _, next_, after, _ in fields]
    endless = [ends_unused for next_, ends_unused in ends if not next_]
    return not all(endless), max(next_ for next_, _ in ends), bool(endless)


def is_forgotten_unused(budget: Budget) -> bool:
    """Return whether Redis forgets the amount of a budget once unused: a total amount for each session."""
    return budget.each == SESSION and budget.interval == TOTAL


def defined_until(budgets: Iterable[Budget], at_ms: int, owner: str = "") -> int:
    """Return the Unix ms at which the result of `defined` next changes; 0 is never.

    It changes when a window ends, or when a limit that was raised for a time falls back.
    """
    ends = [0]
    for one in budgets:
        ends += [bounds(one.interval, one.time_zone, one.anchor_day, at_ms)[1], one.raised_until_ms]
        ends += [one.raises[owner].until_ms] if owner in one.raises else []
    return min((end for end in ends if end > at_ms), default=0)


def flags_of(budget: Budget) -> int:
    """Return the bit flags (`FLAG_…`) of a budget: its unit, whether it is enforced, and cuts calls."""
    return _FLAG_OF[budget.unit] | FLAG_ENFORCE * budget.enforce | FLAG_CUT * budget.cut


def accounts_of(budgets: Sequence[Budget]) -> list[list[Budget]]:
    """Return the budgets in groups that share an account, because their selectors are equal; ids ascend."""
    groups: dict[object, list[Budget]] = {}
    for one in sorted(budgets, key=lambda one: one.id):
        groups.setdefault(one.selector, []).append(one)
    return list(groups.values())


def shown(unit: str, amount: int, currency: str) -> str:
    """Return an amount as text for people: `12.5 USD`, `3000 tokens`, `20 requests`."""
    return f"{shown_amount(unit, amount)} {currency if unit == MONEY else unit}"


def shown_amount(unit: str, amount: int) -> str:
    """Return an amount as text without unit: money as a decimal, without trailing zeros."""
    if unit != MONEY:
        return str(amount)
    text = f"{money(amount):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@lru_cache(4096)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# How many budgets one call may match at once, whatever its attributes. Pure.

# Most budgets of one organization: gateways hold them all in memory.
BUDGETS_MAX: Final = 1_000
# Most comparisons of selectors, a tenth of a second. A search that needs more is refused.
LOOKS_MAX: Final = 20_000
# Most budgets named in an error.
NAMES_MAX: Final = 20
# Fields by which a budget selects calls.
SELECTING: Final = (
    "tenant_id", "user", "api_key_id", "project_id", "model", "service_id", "tool", "server",
)  # fmt: skip
_MODEL: Final = SELECTING.index("model")
_FOLDED: Final = ("model", "tool", "server")  # compared without case


class Selector(NamedTuple):
    """The fields by which a budget selects calls; None matches any call.

    Budgets with another `each` have separate accounts.
    """

    tenant_id: int | None
    user: str | None
    api_key_id: int | None
    project_id: int | None
    model: str | None
    service_id: int | None
    tool: str | None
    server: str | None
    each: str | None


def selector_of(values: Mapping[str, Any]) -> Selector:
    said = {name: values.get(name) for name in Selector._fields}
    return Selector(**{**said, **{name: value.lower() for name in _FOLDED if (value := said[name])}})


def too_many(others: Mapping[str, Selector], new: Selector) -> Iterator[tuple[str, str]]:
    """Yield (field, reason) if an organization may not have a budget with the selector `new` too.

    `others` are the selectors of the organization's existing budgets by name.
    """
    if len(others) >= BUDGETS_MAX:
        yield "organization_id", f"it has {BUDGETS_MAX} budgets: there cannot be more"
    elif sum(one == new for one in others.values()) >= WINDOWS_MAX:
        yield "name", f"there are {WINDOWS_MAX} budgets of just these calls: there cannot be more"
    elif met := may_meet_more(others.values(), new):
        most = BUDGET_ACCOUNTS_MAX
        names = ", ".join([name for name, one in others.items() if one in met][:NAMES_MAX])
        yield (
            "organization_id",
            f"a call could then meet budgets of more than {most} different selectors, with: {names}",
        )


def may_meet_more(
    others: Collection[Selector], new: Selector, most: int = BUDGET_ACCOUNTS_MAX, looks_max: int = LOOKS_MAX
) -> frozenset[Selector]:
    """Return the selectors that one call could match at once if they need more than `most` accounts.

    They include `new`; the result is empty if no call can match so many. A call has one tenant, one user
    and so on, and is assumed to name one model. `looks_max` bounds the comparisons.
    """
    met = {new, *(one for one in others if _meet(one, new))}
    return frozenset(_exceeding(list(met), 0, most, [looks_max]) if len(_shapes(met, 0)) > most else ())


def _exceeding(selectors: Sequence[Selector], at: int, most: int, left: list[int]) -> Sequence[Selector]:
    """Return selectors that one call may match and that need more than `most` accounts; empty if none do.

    The fields of `SELECTING` before position `at` are decided already. `left` holds the number of
    remaining comparisons: once it is used up, all `selectors` are returned.
    """
    if at == len(SELECTING):
        return selectors if len(selectors) > most else ()
    left[0] -= len(selectors)
    if left[0] < 0:
        return selectors
    name, following = SELECTING[at], at + 1
    by_value: dict[Any, list[Selector]] = {}
    for one in selectors:
        by_value.setdefault(one[at], []).append(one)
    anybodys = by_value.pop(None, [])
    shapes = _shapes(anybodys, following)
    for value in by_value or (None,):
        alike = by_value if name == "model" else (value,)
        own = [one for like in alike if _takes(name, like, value) for one in by_value.get(like, ())]
        if len(shapes) + len(_shapes(own, following)) <= most:
            continue
        if found := _exceeding([*anybodys, *own], following, most, left):
            return found
    return ()


def _shapes(selectors: Iterable[Selector], at: int) -> set[object]:
    """Return the distinct shapes of selectors; a call matches at most one selector of each shape.

    A shape has the values of the fields before position `at`, and tells which later fields are set. For a
    model with `*` it includes the length of the prefix: a call matches at most one prefix of each length.
    """
    return {
        (
            one[:at],
            *(part is not None for part in one[at:-1]),
            _length(one.model) if at <= _MODEL else 0,
            one.each,
        )
        for one in selectors
    }


def _length(model: str | None) -> int:
    return len(model) if model and model.endswith("*") else 0


def _meet(one: Selector, other: Selector) -> bool:
    """Return whether one call may match both selectors."""
    return all(
        a is None or b is None or _takes(name, a, b) or _takes(name, b, a)
        for name, a, b in zip(SELECTING, one, other, strict=False)
    )


def _takes(name: str, wanted: Any, value: Any) -> bool:
    """Return whether the selector's value `wanted` of the field `name` covers `value`; None covers all.

    A model may be a prefix with `*`.
    """
    if wanted is None or wanted == value:
        return True
    return name == "model" and is_of(value.removesuffix("*"), wanted)


# Budgets as administrators define them: faults of one, and conversion for calls. Pure.

# In units of the currency, up to so many decimals: beyond 2^53 billionths, in whole millions, those that
# currencies have.
MONEY_MAX: Final = 10**15
MONEY_DIGITS_MAX: Final = {9: 9_000_000, 3: 10**12, 2: 10**13, 0: MONEY_MAX}
THRESHOLDS_MAX: Final = 10
THRESHOLDS: Final = (0.5, 0.8, 1.0)
# Selector fields that exclude a value of `each`: one user cannot be split by user.
_FIXES: Final = {USER: "user", KEY: "api_key_id", PROJECT: "project_id"}

Wrong = Iterator[tuple[str, str]]
_ID: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


def wrong_window(values: Mapping[str, Any]) -> Wrong:
    """Yield (field, fault) for each error in the fields of a new budget, such as its amount and interval."""
    yield from wrong_amount(values["unit"], values["amount"], "amount")
    each = values.get("each")
    if each in _FIXES and values.get(_FIXES[each]) is not None:
        yield "each", f"there is one {each} alone: {_FIXES[each]} names it"
    yield from wrong_calendar(values["interval"], values.get("time_zone", "UTC"), values.get("anchor_day"))


def wrong_amount(unit: str, amount: object, field: str) -> Wrong:
    """Yield `field` and the fault of an amount that its unit does not allow."""
    if unit != MONEY:
        if not isinstance(amount, int) or not 0 < amount <= INTEGER_MAX:
            yield field, f"must be a whole number from 1 to {INTEGER_MAX} where the unit is {unit}"
    elif not isinstance(amount, Decimal):
        yield field, 'must be a decimal in a string, such as "12.50", where the unit is money'
    elif not (
        amount > 0
        and any(
            amount <= most and amount == round(amount, digits) for digits, most in MONEY_DIGITS_MAX.items()
        )
    ):
        most = ", ".join(
            f"{digits} decimals up to {most}" for digits, most in MONEY_DIGITS_MAX.items() if digits
        )
        yield field, f"must be above 0 and at most {MONEY_MAX}, with at most {most}"


def wrong_raise(
    budget: Budget, amount: object, until: datetime, now: datetime, who: str | None = None
) -> Wrong:
    """Yield (field, fault) for each error in a raise of a budget's limit to `amount`, `until` a time.

    With `who`, the raise is of one user, key, project or session, and not below an earlier one of it.
    """
    found = list(wrong_amount(budget.unit, amount, "amount"))
    yield from found
    has = 0 if who is None else budget.limit_of(owner_of(who), ms_of(now)).amount
    if not found and counted(budget.unit, amount) < has:
        yield "amount", "must not be below what this one has: what it is raised to, not by"
    elif not found and counted(budget.unit, amount) < budget.amount:
        yield "amount", "must not be below the budget's own: what it is raised to, not by"
    if until <= now:
        yield "until", "must be in the future"
    if who is not None and not budget.each:
        yield "who", "needs a budget with `each`: this one has one amount for all"
    elif who is not None and budget.each in {KEY, PROJECT} and _ID.fullmatch(who) is None:
        yield "who", f"must be the id of a {budget.each}, such as 7"


def counted(unit: str, amount: Any) -> int:
    """Return an amount as it is counted: nano-units of money, tokens, or requests."""
    exact = Decimal(amount) * (NANO if unit == MONEY else 1)
    assert exact == int(exact), amount
    return int(exact)


def amount_of(unit: str, number: int) -> Decimal | int:
    """Return a counted number as an amount: money in its currency, tokens, or requests."""
    return money(number) if unit == MONEY else number


def told_amount(unit: str, number: int) -> str | int:
    """Return a counted number as callers read it: money as decimal text, other units as a number."""
    return shown_amount(MONEY, number) if unit == MONEY else number


def read_budget(row: Mapping[str, Any]) -> Budget:
    """Return the budget of a database row. Fields that are null get the default.

    `raises` of the row are by owner, each beginning with the amount and its end, in Unix ms.
    """
    unit = row["unit"]
    said: dict[str, Any] = {
        one.name: row[one.name] for one in fields(Budget) if row.get(one.name) is not None
    }
    said |= {name: counted(unit, said[name]) for name in ("amount", "raised_to") if name in said}
    said["raises"] = {
        owner: PersonalRaise(counted(unit, amount), until_ms)
        for owner, (amount, until_ms, *_) in (row.get("raises") or {}).items()
    }
    return Budget(
        **said, enforce=row["mode"] == ENFORCE, cut=row["on_exhausted"] == CUT,
        created_ms=ms_of(row["created_at"]), raised_until_ms=ms_of(row["raised_until"]),
    )  # fmt: skip


# The current use of a budget: per window, Redis's value if it has one, else PostgreSQL's. Pure.
@dataclass(frozen=True, slots=True)
class LiveWindow:
    """A window of an account as Redis has it, in its budget's unit; it began at `start_ms` (Unix ms)."""

    budget_id: int
    used: int
    held: int
    start_ms: int


@dataclass(frozen=True, slots=True)
class BudgetBalance:
    """The limit, used and held amounts of a budget in its current window, and its end; 0 is never.

    `limit_by` is the origin of the limit, one of `LIMITS_BY`.
    """

    limit: int
    used: int
    held: int
    resets_ms: int
    limit_by: str


def window_of(budget: Budget, at_ms: int) -> tuple[int, int]:
    """Return the start and end of a budget's current window (Unix ms); 0 is never."""
    start, following, _ = bounds(budget.interval, budget.time_zone, budget.anchor_day, at_ms)
    return start, following


def figures(
    budget: Budget,
    at_ms: int,
    stored: tuple[int, int] | None,
    live: Mapping[int, LiveWindow] | None = None,
    owner: str = "",
) -> BudgetBalance:
    """Return the limit, use and held amount of the account of an `owner` in a budget at `at_ms` (Unix ms).

    `stored` is the start and the use of the last window in PostgreSQL. `live` are the account's windows
    in Redis by budget id, or None if Redis lacks the account or is unreachable. Use in an earlier window
    counts as 0.
    """
    start, following = window_of(budget, at_ms)
    limit, by = budget.limit_of(owner, at_ms)
    window = (live or {}).get(budget.id)
    if window is not None:
        used = window.used if window.start_ms >= start else 0
        return BudgetBalance(limit, used, window.held, following, by)
    used = stored[1] if stored is not None and stored[0] >= start else 0
    return BudgetBalance(limit, used, 0, following, by)
