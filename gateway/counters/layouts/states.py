"""States and holds: classes whose fields are in the order in which they are packed; always read and written
whole.

These classes are the only table of the fields: `lua.py` makes from them what the scripts know. A field has a
default, and the same name in the scripts (`tenant.limit`). A field that a new layout number added names it:
`field(default=0, metadata={"since": 130})`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from struct import Struct
from typing import TypeVar, cast

from gateway.core.accounts import budgets
from gateway.core.accounts.budgets import (
    CARRY_BEGUN,
    CARRY_DEBT,
    CARRY_TOLD,
    DEFINED_WINDOW,
    FLAG_CARRIES,
    FLAG_MONEY,
    FLAGS_OVERFLOWED,
    WIDE_STEPS,
    packed_limit,
    read_limit,
)
from gateway.core.accounts.windows import FLAG_FIRST_USE, FLAG_ROLLING, WHOLE_PARTS, EndLimit
from gateway.core.billing.money import NANO
from gateway.core.layout import KINDS, LAYOUT, NUMBER, Layout, LayoutField
from gateway.core.model import INTEGER_MAX, BlockCause

# An account of budgets, packed: a header, the definitions of its windows, then their meters. Pure.

# The account of one owner counts the calls in flight that take from it, which may exceed their holds: until
# they end it is kept. An open window is its definition together with its meter. After the meters of all
# windows come those of the wide ones, for amounts below a whole unit of the currency, and then the parts of
# those that roll, each in a ring (`lua/lib/rings.lua`). What a window carries is one more window behind it.
BUDGET = Layout("BUDGET", "number, u8 flags, f64 expires calls=0@132 further=0@133")
METER = Layout("METER", "f64 used held")
WINDOW = Layout(
    "WINDOW",
    "f64 budget_id limit start next after, u8 flags,"
    " f64 used held used_rest held_rest place ring ring_rest carry is_over",
)
WINDOW_LAYOUTS = BUDGET, METER, WINDOW
# From so many whole units on, a window's amounts count in two numbers: `measure` of lua/lib/wide.lua.
WHOLE_MAX = INTEGER_MAX // NANO


# Parts of a rolling window, and the numbers stored of them: when the oldest one with a use began comes last.
PARTS, PARTS_STORED = WHOLE_PARTS + 1, WHOLE_PARTS + 2


@dataclass(slots=True)
class CarryState:
    """What a window carries: at most `most`, and debt too if `debt`; `carried` is below 0 if it is taken off.

    `number` is that of the interval, and `end` the limit at its end as its last call knew it. The window has been
    used if it has `begun`; in this interval if what it carries was `told` to the ledger.
    """

    most: int
    number: int
    end: EndLimit
    debt: bool = False
    told: bool = False
    begun: bool = False
    carried: int = 0


@dataclass(slots=True)
class WindowState:
    """One budget of an account: definition, used and held amount (`gateway/core/accounts/budgets.py`).

    Money is in nano-units, of any size. A window that rolls has the use of its `parts` by when they began.
    """

    budget_id: int
    limit: int
    start: int
    next: int
    after: int
    flags: int
    used: int = 0
    held: int = 0
    parts: dict[int, int] = field(default_factory=dict)
    carry: CarryState | None = None

    @property
    def kind(self) -> int:
        """The flag of its kind, 0 for a window by the calendar."""
        return self.flags & FLAG_CARRIES

    @property
    def carried(self) -> int | None:
        """What it carries over, None if it does not, or was not used yet."""
        return self.carry.carried if self.carry is not None and self.carry.begun else None

    @property
    def at_end(self) -> EndLimit | None:
        """The limit at its interval's end as its last call knew it, None if it carries nothing over."""
        return None if self.carry is None else self.carry.end

    @property
    def uses(self) -> dict[int, int]:
        """Its use by the start by which it counts."""
        return self.parts if self.kind == FLAG_ROLLING else {self.start: self.used}

    def put_uses(self, uses: dict[int, int], now_ms: int) -> None:
        """Set its use by the starts by which uses count now; scripts alone know the times of some windows."""
        self.used = sum(uses.values())
        if self.kind == FLAG_ROLLING:
            part_ms = self.after // WHOLE_PARTS
            self.start, self.parts = max(now_ms - now_ms % part_ms, *uses, 0), {}
            oldest = self.start - WHOLE_PARTS * part_ms
            for start, used in uses.items():  # a clock may have been ahead: the oldest part has what is older
                self.parts[max(start, oldest)] = self.parts.get(max(start, oldest), 0) + used
            self.next = self.start + part_ms
        elif self.kind == FLAG_FIRST_USE and uses:
            self.start = max(uses)
            self.next = self.start + self.after
        elif self.next and uses and max(uses) != self.start:  # another edition of the time zones began it
            self.next += max(uses) - self.start
            self.start, self.after = max(uses), 0


def pack_windows(windows: Sequence[WindowState], expires: int = 0, calls: int = 0) -> bytes:
    """Return a budget account's packed state: its windows, expiry (ms) and number of `calls` in flight.

    The account of one owner is deleted when it `expires`, or once it has no use, no hold and no `calls`. If
    `expires` is negative, the account is kept, but then no longer counts towards its budget's maximum of
    accounts.
    """
    defined, meters, rests, rings = list[bytes](), list[bytes](), list[bytes](), list[bytes]()
    for window in windows:
        limit, flags = packed_limit(window.limit, window.flags)
        carried = window.carry.carried if window.carry else 0
        used, held, ring = window.used - carried, window.held, _ring(window)
        most = max(abs(used), held, abs(carried), *map(abs, ring))
        if flags & FLAG_MONEY and flags == window.flags and most >= WHOLE_MAX * NANO:
            flags += FLAGS_OVERFLOWED - FLAG_MONEY
        is_wide = flags != window.flags
        if is_wide:
            (used, below), (held, held_below) = divmod(used, NANO), divmod(held, NANO)
            rests.append(METER.pack(below, held_below))
        oldest = min((start for start, used in window.parts.items() if used > 0), default=0)
        numbers = [(ring, oldest)]
        if is_wide:
            numbers = [([part // NANO for part in ring], oldest), ([part % NANO for part in ring], 0)]
        rings += [_PARTS.pack(*parts, last) for parts, last in numbers if parts]
        defined.append(
            DEFINED_WINDOW.pack(window.budget_id, limit, window.start, window.next, window.after, flags)
        )
        meters.append(METER.pack(used, held))
        if window.carry is not None:
            defined.append(_pack_carry(window, window.carry))
            meters.append(METER.pack(*(divmod(carried, NANO) if is_wide else (carried, 0))))
    behind = b"".join((*rests, *rings))
    return b"".join((
        BUDGET.pack(LAYOUT, 0, expires, calls, len(behind) // METER.size), *defined, *meters, behind,
    ))  # fmt: skip


_PARTS = Struct(f"<{PARTS_STORED}d")


def _ring(window: WindowState) -> list[int]:
    """Return the parts of a window in the order of its ring; empty if it does not roll."""
    if window.kind != FLAG_ROLLING:
        return []
    ring, part_ms = [0] * PARTS, window.after // WHOLE_PARTS
    for start, used in window.parts.items():
        ring[start // part_ms % PARTS] = used
    return ring


def _pack_carry(window: WindowState, carry: CarryState) -> bytes:
    most, flags = packed_limit(carry.most, window.flags & FLAGS_OVERFLOWED)
    at_end, changed = carry.end
    limit, rest = INTEGER_MAX if at_end is None else at_end, 0
    if window.flags & FLAG_MONEY and at_end is not None:
        limit, rest = divmod(at_end, NANO)
    flags |= FLAG_CARRIES | CARRY_TOLD * carry.told | CARRY_DEBT * carry.debt | CARRY_BEGUN * carry.begun
    return DEFINED_WINDOW.pack(changed, most, carry.number, limit, rest, flags)


def unpack_windows(packed: bytes) -> list[WindowState]:
    """Return the stored windows of an account of budgets; ValueError if it is of another form."""
    whole = BUDGET.today(packed)
    further = int(BUDGET.struct.unpack_from(whole)[-1])
    of_windows = len(whole) - BUDGET.size - further * METER.size
    count, rest = divmod(of_windows, DEFINED_WINDOW.size + METER.size)
    if rest or count < 0:
        raise ValueError(f"{of_windows} bytes are no number of windows")
    meters_at = BUDGET.size + count * DEFINED_WINDOW.size
    defined, windows = whole[BUDGET.size : meters_at], defined_windows(whole[BUDGET.size : meters_at])
    meters = list(METER.struct.iter_unpack(whole[meters_at : meters_at + count * METER.size]))
    is_wide = [
        flags & FLAGS_OVERFLOWED in WIDE_STEPS
        for *_, flags in DEFINED_WINDOW.struct.iter_unpack(defined)
        if flags < FLAG_CARRIES
    ]
    rests_at = meters_at + count * METER.size
    rings_at, place = rests_at + sum(is_wide) * METER.size, 0
    for window, wide in zip(windows, is_wide, strict=True):
        used, held = (int(number) for number in meters[place])
        if wide:
            below = METER.struct.unpack_from(whole, rests_at)
            used, held, rests_at = (
                used * NANO + int(below[0]),
                held * NANO + int(below[1]),
                rests_at + METER.size,
            )
        window.used, window.held, place = used, held, place + 1
        if window.carry is not None:
            carried, rest = (int(number) for number in meters[place])
            window.carry.carried = carried * NANO + rest if wide else carried
            window.used, place = window.used + window.carry.carried, place + 1
        if window.kind == FLAG_ROLLING:
            window.parts = _read_parts(window, whole[rings_at:], wide=wide)
            rings_at += _PARTS.size * (1 + wide)
    return windows


def _read_parts(window: WindowState, packed: bytes, *, wide: bool) -> dict[int, int]:
    """Return the use of the parts of a window by when they began."""
    ring = [int(number) for number in _PARTS.unpack_from(packed)]
    if wide:
        rests = _PARTS.unpack_from(packed, _PARTS.size)
        ring = [whole * NANO + int(rest) for whole, rest in zip(ring, rests, strict=True)]
    part_ms = window.after // WHOLE_PARTS
    starts = range(window.start - WHOLE_PARTS * part_ms, window.start + part_ms, part_ms)
    return {start: used for start in starts if (used := ring[start // part_ms % PARTS])}


def defined_windows(defined: bytes) -> list[WindowState]:
    """Return the windows of a definition, with nothing used or held."""
    windows = list[WindowState]()
    for id_, limited, start, next_, after, packed in DEFINED_WINDOW.struct.iter_unpack(defined):
        limit, flags = read_limit(int(limited), packed)
        if packed < FLAG_CARRIES:
            windows.append(WindowState(int(id_), limit, int(start), int(next_), int(after), flags))
            continue
        at_end: int | None = int(next_)
        if windows[-1].flags & FLAG_MONEY:
            at_end = int(next_) * NANO + int(after)
        windows[-1].carry = CarryState(
            limit, int(start), EndLimit(None if next_ == INTEGER_MAX else at_end, id_),
            bool(packed & CARRY_DEBT), bool(packed & CARRY_TOLD), bool(packed & CARRY_BEGUN),
        )  # fmt: skip
    return windows


def earlier_windows(packed: bytes) -> bytes:
    """Return an account as programs read it that know no wide windows: money up to what these count to."""
    *_, expires, calls, further = BUDGET.struct.unpack_from(BUDGET.today(packed))
    most = WHOLE_MAX * NANO - 1
    if further:
        windows = [
            replace(one, **{name: min(getattr(one, name), most) for name in ("limit", "used", "held")})
            for one in unpack_windows(packed)
        ]
        packed = pack_windows(windows, expires, calls)
    return BUDGET.earlier(packed)


# The order of fields in earlier layouts. Pure.
#
# A tenant's limit was stored as the rest of it, and used credits as the balance.

# The layout that moved windows to the beginning.
REORDERED = 132
_HEAD = "layout flags version rpm tpm concurrency requests_used tokens_used at inflight"
ORDERS = {
    "TENANT": f"{_HEAD} total limit held used cycle next_reset anchor last_reset seq ledger_at plan_id"
    " reset_interval overage_policy admission on_exhausted on_store_failure rollover_max total_amount"
    " user_rpm user_tpm user_concurrency tenant_id organization_id",
    "ORGANIZATION": f"{_HEAD} credits_used credits_held credit_limit credit_seq ahead credit_at"
    " cap spent spend_held month spend_seq spend_at organization_id",
}


MANUAL_BLOCK, HAS_PLAN, FORGIVES = 1, 2, 4
# The flags of a blocked tenant have the number of its `BlockCause` from this bit on.
BLOCK_CAUSE = 8
ACTIVE = 2
POLICY_BILL = 2
# How far the clock of the process that set a plan may be ahead of Redis' clock.
PLAN_AHEAD_MS_MAX = 60_000
HOLD_USER, HOLD_ONE_TIME, HOLD_COUNTS, HOLD_RECLAIMED, HOLD_USES, HOLD_PAYS = 1, 2, 4, 8, 16, 32
HOLD_BY_TOKEN = 64
HOLD_LEASE = 128
# Stands for the tokens that a hold took of a scope, if it took nothing there, not even a slot.
UNCOUNTED = -1
# The most accounts of single owners, by kind of account, that have a place at a time, and that are kept
# including those without a place. Further owners share one account.
EACH_ACCOUNTS_MAX, EACH_KEPT_MAX = 100_000, 1_000_000
EACH_UNUSED_DAYS = budgets.EACH_UNUSED_DAYS


@dataclass(slots=True)
class Account:
    """The fields that all four accounts begin with. Limits of 0 are none; levels of use are in 1/60,000.

    All but a user's end with `created`: when its row was created, in µs; 0 if that is unknown.
    """

    flags: int = 0
    version: int = 0
    rpm: int = 0
    tpm: int = 0
    concurrency: int = 0
    requests_used: int = 0
    tokens_used: int = 0
    at: int = 0
    inflight: int = 0


@dataclass(slots=True)
class KeyState(Account):
    """An API key. `flags` 1 means revoked; `expires` 0 means never."""

    expires: int = 0
    key_id: int = 0
    created: int = field(default=0, metadata={"since": 133})


@dataclass(slots=True)
class UserState(Account):
    """A tenant's user. `flags` 1 means that it has limits of its own."""


@dataclass(slots=True)
class TenantState(Account):
    """A tenant: limits and token account. `total` -1 is unlimited; times are in ms, 0 means none.

    `flags` 4: the next reset forgives the use beyond the plan, even if the plan carries it over. Cycles begin
    on the plan's `anchor_day`; with -1 (none), months begin on `anchor`. The local time of its zone is
    `offset` before UTC, and `offset_after` from `turns_at` on. `limit` is what the cycle may use; without a
    total it is what was granted beyond that, for a plan with one. Fields that only resets need come last.
    """

    used: int = 0
    held: int = 0
    limit: int = 0
    total: int = -1
    cycle: int = 0
    next_reset: int = 0
    last_reset: int = 0
    seq: int = 0
    ledger_at: int = 0
    plan_id: int = 0
    overage_policy: int = 0
    admission: int = 0
    on_exhausted: int = 0
    tenant_id: int = 0
    organization_id: int = 0
    reset_interval: int = 0
    anchor: int = 1
    on_store_failure: int = 0
    rollover_max: int = 0
    total_amount: int = -1
    user_rpm: int = 0
    user_tpm: int = 0
    user_concurrency: int = 0
    anchor_day: int = field(default=-1, metadata={"since": 132})
    offset: int = field(default=0, metadata={"since": 132})
    turns_at: int = field(default=0, metadata={"since": 132})
    offset_after: int = field(default=0, metadata={"since": 132})
    created: int = field(default=0, metadata={"since": 133})

    @property
    def remaining(self) -> int:
        """The tokens left, as the ledger has them."""
        return self.limit if self.unlimited else self.limit - self.used

    @property
    def unlimited(self) -> bool:
        """Whether there is no total: use is counted, not limited."""
        return self.total < 0

    @property
    def manual_block(self) -> bool:
        """Whether a control write blocked the tenant."""
        return bool(self.flags & MANUAL_BLOCK)

    @property
    def block_cause(self) -> BlockCause | None:
        """The cause of a control write that blocked the tenant, None if none did."""
        return BlockCause(self.flags // BLOCK_CAUSE) if self.manual_block else None

    @property
    def is_blocked(self) -> bool:
        """Whether the tenant is blocked: by an administrator, or by a used-up plan that refuses calls."""
        exceeded = (
            bool(self.flags & HAS_PLAN)
            and not self.unlimited
            and self.overage_policy != POLICY_BILL
            and self.remaining <= 0
        )
        return self.manual_block or exceeded


@dataclass(slots=True)
class OrganizationState(Account):
    """An organization: limits, its credits, and its spend of the month (`cap` -1: none).

    Used credits are the charged ones less those paid in. `ahead` is the amount charged beyond the calls'
    cost, in nano-credits: less than one credit, unless a larger amount was given back since the last charge.
    """

    credits_used: int = 0
    credits_held: int = 0
    credit_limit: int = 0
    spent: int = 0
    spend_held: int = 0
    cap: int = -1
    ahead: int = field(default=0, metadata={"since": 130})
    credit_seq: int = 0
    credit_at: int = 0
    month: int = 0
    spend_seq: int = 0
    spend_at: int = 0
    organization_id: int = 0
    created: int = field(default=0, metadata={"since": 133})

    @property
    def balance(self) -> int:
        """The credits paid in and not charged yet."""
        return -self.credits_used


@dataclass(slots=True)
class HoldState:
    """One hold: the amounts held, their accounts, and the use observed so far.

    Observed are tokens, and `seen` credits (-1 if tokens do not set the price). The amount of a scope without
    limits is `UNCOUNTED`: nothing is returned to it. `tokens` are those of the quota, which the plan may
    weigh; then `quota_tokens` is the observed use as weighed (-1: equal to `observed`). `credits` are 0 with the
    flag `HOLD_USES`: the held share of the cap is stored with the service. Windows of budgets hold `money` or
    `budget_tokens`, or one request; the use seen so far cost `money_seen`. The last `budgets` bytes name the
    windows.
    """

    flags: int = 0
    tokens: int = 0
    key_tpm: int = 0
    user_tpm: int = 0
    tenant_tpm: int = 0
    organization_tpm: int = 0
    credits: int = 0
    observed: int = 0
    service_id: int = 0
    deadline: int = 0
    organization_id: int = 0
    tenant_id: int = 0
    key_id: int = 0
    units: int = 0
    created: int = 0
    charged: int = 0
    seen: int = -1
    quota_tokens: int = field(default=-1, metadata={"since": 130})
    money: int = field(default=0, metadata={"since": 131})
    budget_tokens: int = field(default=0, metadata={"since": 131})
    money_seen: int = field(default=0, metadata={"since": 131})
    budgets: int = field(default=0, metadata={"since": 131})


@dataclass(slots=True)
class ActivationState:
    """An organization's service: One-Time payment, and Pay-Per-Use units of a month (year × 12 + month).

    `held` units are in flight; `held_price` is their part of the organization's `spend_held`.
    """

    flags: int = 0
    waiting: int = 0
    price: int = 0
    month: int = 0
    quantity: int = 0
    held: int = 0
    held_price: int = 0


State = KeyState | UserState | TenantState | OrganizationState | HoldState | ActivationState
S = TypeVar("S", bound=State)


def _layout(kind: type[Account | HoldState | ActivationState]) -> Layout:
    described = (
        LayoutField(
            one.name, KINDS["f64" if at else "u8"], cast("int", one.default), one.metadata.get("since", 0)
        )
        for at, one in enumerate(fields(kind))
    )
    shared = 1 + len(fields(Account)) if issubclass(kind, Account) else 0
    name = kind.__name__.removesuffix("State").upper()
    return Layout(
        name, (NUMBER, *described), shared, (REORDERED, ORDERS[name]) if name in ORDERS else (0, "")
    )


ACCOUNT = _layout(Account)
_KINDS = KeyState, UserState, TenantState, OrganizationState, HoldState, ActivationState
_LAYOUTS: dict[type[object], Layout] = {kind: _layout(kind) for kind in _KINDS}
# The numbers of a state, in order.
_NUMBERS: dict[type[object], Callable[[object], tuple[float, ...]]] = {
    kind: attrgetter(*(one.name for one in fields(kind))) for kind in _KINDS
}
# The end of a hold: an account, and the ids of its budgets in which the hold has amounts.
HELD, BUDGET_ID = Layout("HELD", "text8 name ids"), Layout("BUDGET_ID", "f64 budget_id")
KEY, USER, TENANT, ORGANIZATION, HOLD, ACTIVATION = (_LAYOUTS[kind] for kind in _KINDS)
LAYOUTS = ACCOUNT, *_LAYOUTS.values(), HELD, BUDGET_ID


def unpack(kind: type[S], packed: bytes) -> S:
    """Return the state in a packed value, also of an earlier layout; an activation may lack last fields."""
    layout = _LAYOUTS[kind]
    whole = layout.today(packed)
    if kind is ActivationState:
        whole = whole.ljust(layout.size, b"\0")
    _, *numbers = layout.struct.unpack(whole)
    state = kind(*map(int, numbers))
    if packed[0] < REORDERED:
        match state:
            case TenantState(unlimited=False):
                state.limit += state.used
            case OrganizationState():
                state.credits_used = -state.credits_used
    return state


def unpack_hold(packed: bytes) -> tuple[HoldState, str, bytes]:
    """Return a hold, its caller's own user id, and the packed price tiers of its admission."""
    whole = HOLD.today(packed)
    hold = unpack(HoldState, whole[: HOLD.size])
    user, _, tiers = whole[HOLD.size : len(whole) - hold.budgets].partition(b"\0")
    return hold, user.decode(), tiers


def held_budgets(packed: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names of the budget accounts that a hold took from, in order, with their budgets' ids."""
    whole = HOLD.today(packed)
    at = len(whole) - unpack(HoldState, whole[: HOLD.size]).budgets
    found = []
    while at < len(whole):
        ids_at = at + 1 + whole[at]
        end = ids_at + 1 + whole[ids_at]
        ids = tuple(int(one) for (one,) in BUDGET_ID.struct.iter_unpack(whole[ids_at + 1 : end]))
        found.append((whole[at + 1 : ids_at].decode(), ids))
        at = end
    return found


def pack(state: State) -> bytes:
    """Return the packed state, as the scripts read it."""
    kind = type(state)
    return _LAYOUTS[kind].pack(LAYOUT, *_NUMBERS[kind](state))
