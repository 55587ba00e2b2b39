"""Budgets: how much money, tokens or calls an interval may use, and which calls each is about. Pure.

Callers must not escape a budget by fields that they can change: case never distinguishes two models, and
calls without a user share one account.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.core.accounts.intervals import TOTAL
from gateway.core.accounts.steps import Step
from gateway.core.accounts.tags import Tags, tag_in
from gateway.core.accounts.windows import (
    CALENDAR,
    FLAG_FIRST_USE,
    FLAG_ROLLING,
    WHOLE_PARTS,
    CalendarWindow,
    Carry,
    EndLimit,
    WindowForm,
    form_of_length,
)
from gateway.core.billing.money import NANO
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX
from gateway.core.times import DAY_MS

MONEY, TOKENS, REQUESTS = UNITS = ("money", "tokens", "requests")
USER, KEY, PROJECT, SESSION, TENANT = EACH = ("user", "key", "project", "session", "tenant")
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
# Most overrides of a budget, and of all budgets of an organization: these too are in each gateway worker.
OVERRIDES_MAX: Final = 10_000
ORGANIZATION_OVERRIDES_MAX: Final = 20_000
# How the owner of an override begins that is a group: no value of `each` that begins so has one of its own.
OF_GROUP: Final = "group:"
# Origins of the limit of an account.
BY_BUDGET, BY_OVERRIDE, BY_GROUP, BY_RAISE = LIMITS_BY = ("budget", "override", "group", "raise")

# One window as it is sent with a call, with the times of `Times`. Its flags are its unit, its kind, and what
# happens once it is used up.
DEFINED_WINDOW = Layout("DEFINED_WINDOW", "f64 budget_id limit start next after, u8 flags")
FLAG_MONEY, FLAG_TOKENS, FLAG_REQUESTS, FLAG_ENFORCE, FLAG_CUT = 1, 2, 4, 8, 16
# A window that carries is followed by one with the flags of both other kinds, whose limit is the most that is
# carried (`lua/lib/carries.lua`).
FLAG_CARRIES = FLAG_ROLLING | FLAG_FIRST_USE
# More flags of that: it was told in this interval, it carries debt, and its window has been used.
CARRY_TOLD, CARRY_DEBT, CARRY_BEGUN = 8, 16, 32
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


class PersonalOverride(NamedTuple):
    """The amount of one owner in place of the budget's, None for no limit, until `until_ms` (0: for ever)."""

    amount: int | None
    until_ms: int = 0

    def is_in_force(self, at_ms: int) -> bool:
        return self.until_ms == 0 or at_ms < self.until_ms


class Limit(NamedTuple):
    """The limit of an account, None for no limit, its origin, one of `LIMITS_BY`, and the id of the group behind it."""

    amount: int | None
    by: str
    group_id: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on a `unit` in each interval, for all calls that match its selector.

    The selector is `tenant_id`, `user`, `api_key_id`, `project_id`, `model` (exact, or `prefix*`),
    `service_id`, `tool`, the tool's `server`, `tags`, all of them, and the group of its caller (`group_id`):
    0, empty text, None or no tags match any call. With `each`, every user, key, project, session, tenant or
    value of a tag has a separate amount. `amount` and `raised_to` are nano-units of the organization's currency
    if the unit is money. `raised_to` replaces the amount until `raised_until_ms` (0: not raised). Without
    `enforce` the use is only counted and reported. With `cut` the budget ends the stream that uses it up. `hold`
    is how much of a call is held, `likely` or `maximum`; empty means that the tenant's plan decides. `raises`
    and `overrides` are of single owners, by the owner's part of the account's name, and overrides of groups by
    `group:ID`. A `window` that is not of the calendar has a length and no interval. `changed_ms` is when the budget,
    a raise or an override last changed.
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
    tags: Tags = ()
    raises: dict[str, PersonalRaise] = field(default_factory=dict, hash=False)
    overrides: dict[str, PersonalOverride] = field(default_factory=dict, hash=False)
    group_id: int = 0
    window: str = CALENDAR
    length_ms: int = 0
    carry: Carry | None = None
    steps: tuple[Step, ...] = ()
    changed_ms: int = 0

    @property
    def selector(self) -> tuple[object, ...]:
        """The fields that select calls, and the kind of users with an account each, as a key for comparison.

        Budgets with equal keys share their accounts. Names of accounts are hashes of this tuple, so
        the rarely used tool and server, tags, and the group, are appended only if set.
        """
        of_tools = (self.tool.lower(), self.server.lower()) if self.tool or self.server else ()
        of_tags = (self.tags,) if self.tags else ()
        of_group = (("group", self.group_id),) if self.group_id else ()
        return (
            self.tenant_id, self.user, self.api_key_id, self.project_id, self.model.lower(), self.service_id,
            self.each, *of_tools, *of_tags, *of_group,
        )  # fmt: skip

    @property
    def form(self) -> WindowForm:
        """When its windows begin and end, and which uses count."""
        if self.window != CALENDAR:
            return form_of_length(self.window, self.length_ms)
        kept_ms = EACH_UNUSED_DAYS * DAY_MS if is_forgotten_unused(self) else 0
        return CalendarWindow(self.interval, self.time_zone, self.anchor_day, kept_ms)

    def carry_of(self, owner: str) -> Carry | None:
        """Return what an owner's account carries over; the shared account carries nothing."""
        return None if owner == OTHERS or self.window != CALENDAR or self.interval == TOTAL else self.carry

    def limit_at(self, at_ms: int) -> int:
        """Return the limit at a time (Unix ms): `raised_to` while the budget is raised, else `amount`."""
        return self.raised_to if at_ms < self.raised_until_ms else self.amount

    def limit_of(self, owner: str, at_ms: int, groups: Iterable[int] = ()) -> Limit:
        """Return the limit of one owner's account at a time (Unix ms): its raise, an override, or the budget's.

        The owner's own override goes before those of its `groups`; the smallest of these counts. A raise is
        never below the budget's, unless it is of an override. `owner` is a result of `owner_in`; empty for
        the account of all, and the shared one.
        """
        usual, own_raise = self.limit_at(at_ms), self.raises.get(owner)
        in_force = [own for own in self.overrides_of(owner, groups) if own[1].is_in_force(at_ms)]
        if own_raise is not None and at_ms < own_raise.until_ms and (in_force or own_raise.amount > usual):
            return Limit(own_raise.amount, BY_RAISE)
        if not in_force:
            return Limit(usual, BY_BUDGET)
        name, override = min(in_force, key=lambda own: (own[0] != owner, _size(own[1].amount)))
        if name == owner:
            return Limit(override.amount, BY_OVERRIDE)
        return Limit(override.amount, BY_GROUP, int(name[len(OF_GROUP) :]))

    def overrides_of(self, owner: str, groups: Iterable[int]) -> list[tuple[str, PersonalOverride]]:
        """Return the overrides of an owner and of its groups by their names, in force or over; the shared account has none."""
        if not self.overrides or owner == OTHERS:
            return []
        names = (owner, *(f"{OF_GROUP}{group}" for group in groups))
        return [(name, self.overrides[name]) for name in names if name in self.overrides]

    @property
    def has_groups(self) -> bool:
        """Whether it depends on the groups of a call: it is of one, or groups have overrides."""
        return self.group_id != 0 or bool(self.overridden_groups)

    @property
    def overridden_groups(self) -> tuple[int, ...]:
        """The ids of the groups that have overrides."""
        return tuple([int(owner[len(OF_GROUP) :]) for owner in self.overrides if owner.startswith(OF_GROUP)])

    @property
    def has_own(self) -> bool:
        """Whether single owners have limits of their own."""
        return bool(self.raises or self.overrides)

    @property
    def needs_newest_layout(self) -> bool:
        """Whether only the newest layout counts it: money of more than one number, windows not of the calendar, carry."""
        own = [own.amount or 0 for owners in (self.raises, self.overrides) for own in owners.values()]
        return self.window != CALENDAR or self.carry is not None or (
            self.unit == MONEY and max(self.amount, self.raised_to, *own) > INTEGER_MAX
        )  # fmt: skip

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
            and (not self.tags or set(self.tags) <= set(asked.tags))
            and (not self.group_id or self.group_id in asked.groups)
        )

    def value_of(self, asked: CallAttributes) -> str:
        """Return the value of `each` that a call names, which has an account of its own in this budget.

        Empty if all calls share one account, or if the call names none.
        """
        if self.each == USER:
            return asked.user
        if self.each == KEY:
            return str(asked.api_key_id)
        if self.each == TENANT:
            return str(asked.tenant_id)
        if self.each == PROJECT:
            return "" if asked.project_id is None else str(asked.project_id)
        if self.each == SESSION:
            return asked.session
        return dict(asked.tags).get(tag_in(self.each), "")


def _size(amount: int | None) -> float:
    return math.inf if amount is None else amount


# The owner of the account that is shared beyond the maximum of accounts of `each`; see lua/lib/budgets.lua.
OTHERS = "other"
ALL_OTHERS = "all others"  # its name for people
# How the stored owner of an account begins whose user's data was deleted: no account in Redis has it.
DELETED = "deleted-"


class CallAttributes(NamedTuple):
    """Attributes of a call that select its budgets. `models` are all models that may answer the call.

    `tool` and its `server` are set for calls of a tool. `tags` are those that budgets depend on, and `groups`
    ids of the groups that the call is in.
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
    tags: Tags = ()
    groups: tuple[int, ...] = ()


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
    """Return the owner's part of an account's name: a hash of the user, key, project, session or tenant."""
    return _digest(value)[:24]


def owner_in(account: str) -> str:
    """Return the owner's part of an account's name; empty for an account of all."""
    return account.partition(":")[2]


def override_owner(who: str) -> str:
    """Return the name by which a budget has the override of a value of `each`, or of `group:ID`."""
    return who if who.startswith(OF_GROUP) else owner_of(who)


def have_own(budgets: Iterable[Budget], owner: str, groups: Collection[int] = ()) -> bool:
    """Return whether a budget has a raise or an override of this owner or one of its groups, in force or over."""
    return any(owner in budget.raises or budget.overrides_of(owner, groups) for budget in budgets)


def define_windows(
    budgets: Iterable[Budget], at_ms: int, owner: str = "", groups: Collection[int] = ()
) -> bytes:
    """Return the current windows of one account's budgets at `at_ms` (Unix ms), packed for Lua scripts.

    The limits are those of `owner`, a result of `owner_in`, in these `groups`. A window without a limit enforces nothing.
    """
    packed = list[bytes]()
    for budget in sorted(budgets, key=lambda budget: budget.id):
        amount, flags = budget.limit_of(owner, at_ms, groups).amount, flags_of(budget)
        limit, flags = (INTEGER_MAX, flags & ~FLAG_ENFORCE) if amount is None else packed_limit(amount, flags)
        form = budget.form
        times = form.times(at_ms)
        packed.append(DEFINED_WINDOW.pack(budget.id, limit, *times, flags | form.flag))
        if (carry := budget.carry_of(owner)) is not None and isinstance(form, CalendarWindow):
            at_end = budget.limit_of(owner, times.next - 1, groups).amount
            end = EndLimit(at_end, form.place(budget.changed_ms))
            packed.append(pack_carry(budget.unit, carry, form.number(times.start), end))
    return b"".join(packed)


def pack_carry(unit: str, carry: Carry, number: int, end: EndLimit) -> bytes:
    """Return what a window carries, packed for scripts; `number` is that of its interval."""
    most, flags = packed_limit(carry.max, _FLAG_OF[unit])
    limit, rest = INTEGER_MAX if end.amount is None else end.amount, 0
    if unit == MONEY and end.amount is not None:
        limit, rest = divmod(end.amount, NANO)
    flags |= FLAG_CARRIES | (CARRY_DEBT if carry.debt else 0)
    return DEFINED_WINDOW.pack(end.changed, most, number, limit, rest, flags)


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


class WindowEnds(NamedTuple):
    """When the windows of an account end: whether one never does, and the latest end of the others (Unix ms).

    `ends_unused`: one without an end is forgotten once it is unused. `counts_ms` is the longest time that a use
    counts in a window whose times only scripts know.
    """

    never: bool
    last_ms: int
    ends_unused: bool
    counts_ms: int


@lru_cache(4096)
def ends_of(windows: bytes) -> WindowEnds:
    """Return when an account's packed windows end."""
    last = counts = 0
    never = ends_unused = False
    for _, _, _, next_, after, flags in DEFINED_WINDOW.struct.iter_unpack(windows):
        if flags >= FLAG_CARRIES:
            never = True
        elif flags >= FLAG_ROLLING:
            counts = max(counts, int(after) + int(after) // WHOLE_PARTS)
        elif next_:
            last = max(last, int(next_))
        elif after > 0:
            ends_unused = True
        else:
            never = True
    return WindowEnds(never, last, ends_unused, counts)


def is_forgotten_unused(budget: Budget) -> bool:
    """Return whether Redis forgets the amount of a budget once unused: a total amount for each session."""
    return budget.each == SESSION and budget.interval == TOTAL


def windows_valid_until(
    budgets: Iterable[Budget], at_ms: int, owner: str = "", groups: Collection[int] = ()
) -> int:
    """Return the Unix ms at which the result of `define_windows` next changes; 0 is never.

    It changes when a window ends, or when a limit that was raised or overridden for a time falls back.
    """
    ends = [0]
    for budget in budgets:
        ends += [budget.form.valid_until(at_ms), budget.raised_until_ms]
        ends += [budget.raises[owner].until_ms] if owner in budget.raises else []
        ends += [override.until_ms for _, override in budget.overrides_of(owner, groups)]
    return min((end for end in ends if end > at_ms), default=0)


def flags_of(budget: Budget) -> int:
    """Return the bit flags (`FLAG_…`) of a budget: its unit, whether it is enforced, and cuts calls."""
    return _FLAG_OF[budget.unit] | FLAG_ENFORCE * budget.enforce | FLAG_CUT * budget.cut


def accounts_of(budgets: Sequence[Budget]) -> list[list[Budget]]:
    """Return the budgets in groups that share an account, because their selectors are equal; ids ascend."""
    groups: dict[object, list[Budget]] = {}
    for budget in sorted(budgets, key=lambda budget: budget.id):
        groups.setdefault(budget.selector, []).append(budget)
    return list(groups.values())


@lru_cache(4096)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
