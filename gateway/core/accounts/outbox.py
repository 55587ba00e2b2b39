"""Outbox entries: movements of accounts, written by Lua scripts and decoded for the rows of the ledger.

Every movement of an account is one entry of the partition's stream, packed by `lua/lib/entry.lua` and
unpacked here; the layout is fixed and versioned. One entry may carry a token movement, a credit movement and
a unit of use at once: a settled call is one entry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from gateway.core.accounts.call_facts import CallFacts, read_facts, told_of
from gateway.core.accounts.windows import EndLimit
from gateway.core.billing.money import NANO, TIER_BYTES, are_money
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX

VERSION = 3


class EventKind(IntEnum):
    """The reason for a movement of an account."""

    CONSUME = 1
    RESET = 2
    RECHARGE = 3
    ADJUST = 4
    BLOCK = 5
    UNBLOCK = 6
    CREDIT = 7
    BUDGET = 8
    RUN = 9  # was opened or ended; it moves nothing
    CARRY = 10  # a window of a budget was used first in its interval: what it carries, which is no movement


# Kinds of entries of budgets alone.
_OF_BUDGETS = (EventKind.BUDGET, EventKind.CARRY)


class EventFlag(IntFlag):
    """The parts that an entry carries, and the account's state after it."""

    TOKENS = 1
    CREDITS = 2
    USAGE = 4
    UNLIMITED = 8
    IN = 16
    BLOCKED = 32
    MANUAL_BLOCK = 64
    ACTIVATES = 128


# Time and owner, then the accounts of tokens, credits and spend, and movements of budget windows. Each text
# follows its length; the last one lists the windows (`BUDGETED`). At the end is the pricing of units, if any.
ENTRY = Layout(
    "ENTRY",
    f"u8 version={VERSION} kind flags note,"
    " f64 at_ms epoch organization_id tenant_id key_id service_id"
    " seq cycle amount remaining used next_reset_ms"
    " credit_seq=0 credits=0 balance=0 spend_seq=0 units=0 spend=0 spent=0 money=0 raw_tokens=0 requests=0,"
    " text8 source, text16 user attribution metadata budgets",
)
# One window of a budget: its budget, its start (ms), and the value of `each`.
BUDGETED = Layout("BUDGETED", "f64 budget_id start, s24 value")
PRICED = Layout("PRICED", "f64 before")
# The end of an entry of credits if parts of a credit are carried over: nano-credits paid ahead afterwards,
# and their change. Without it both are 0.
CARRIED = Layout("CARRIED", "f64 ahead carried")
HEAD = ENTRY.struct
# The owner of an entry that a newer version wrote: it may belong to any organization.
ANYBODYS = -1
# How many numbers precede those of budgets, after the first four bytes.
_SHARED = ENTRY.index("spent") + 1 - 4
# Cached lists of windows in one process: 1 KB each with four windows, 60 KB with the maximum of 256. It helps
# accounts with many calls. With a hundred thousand callers nothing is found, which costs 3 µs of 8 an entry.
WINDOWS_KNOWN_MAX = 1_024
# The beginning that the layouts of all versions share: up to the organization.
_OWNER, _OWNER_AT = ENTRY.part("organization_id", "organization_id"), ENTRY.offset("organization_id")
LENGTH_1 = struct.Struct("<B")
LENGTH_2 = struct.Struct("<H")


class WindowKey(NamedTuple):
    """A budget window that an entry moves: budget, start, value of `each`; empty if all calls share it."""

    budget_id: int
    start_ms: int
    value: str = ""


@dataclass(slots=True)
class OutboxEntry:
    """One decoded outbox entry. Amounts are integers; absent parts are zero.

    `source` is the request id of a use or the control-write id of a grant (36 characters), empty for a lazy
    reset. `remaining` has no meaning under `EventFlag.UNLIMITED`. `attribution` is `content_id TAB project_id
    TAB feature_version` or empty. `metadata` is a JSON object or empty; it is made from `facts` if the entry
    has them. `priced`, in the usage part, says how units were priced: the month's units before these, then
    the tiers (`gateway/core/billing/money.py`); empty if absent. `ahead` are the nano-credits paid ahead
    after this entry. `carried` is how many of them it added or used: its cost differs from its `credits` by
    that. Each window of `budgets` moves by `money` (nano-units), `budget_tokens` or `requests`, according to its
    unit.
    """

    kind: int
    flags: int
    at_ms: int
    epoch: int
    organization_id: int
    tenant_id: int
    key_id: int
    service_id: int
    seq: int
    cycle: int
    amount: int
    remaining: int
    used: int
    next_reset_ms: int
    credit_seq: int
    credits: int
    balance: int
    spend_seq: int
    units: int
    spend: int
    spent: int
    source: str
    user: str
    attribution: str
    metadata: bytes
    note: int = 0
    priced: bytes = b""
    facts: CallFacts | None = None
    ahead: int = 0
    carried: int = 0
    money: int = 0
    raw_tokens: int = 0
    requests: int = 0
    budgets: tuple[WindowKey, ...] = ()


def sign_of(event: OutboxEntry) -> int:
    """Return the direction in which an entry moves budget windows: -1 for a reset of a budget, else 1.

    What a window carries is below 0 if it is taken off.
    """
    is_owed = event.kind == EventKind.CARRY and not event.flags & EventFlag.IN
    return -1 if event.kind == EventKind.BUDGET or is_owed else 1


def money_moved(event: OutboxEntry) -> int:
    """Return the nano-units by which an entry moves windows of money, or that they carry; amounts are whole units."""
    return event.money + (event.amount * NANO if event.kind in _OF_BUDGETS else 0)


class _EndLimit(msgspec.Struct):
    limit: int
    rest: int
    changed: float


_end_limits = msgspec.json.Decoder(_EndLimit)


def end_limit_of(event: OutboxEntry, *, is_money: bool) -> EndLimit | None:
    """Return the limit at an interval's end in an entry of the kind `CARRY`, None without one."""
    try:
        end = _end_limits.decode(event.metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if end.limit == INTEGER_MAX:
        return EndLimit(None, end.changed)
    return EndLimit(end.limit * NANO + end.rest if is_money else end.limit, end.changed)


def in_money(event: OutboxEntry) -> bool:
    """Return whether the units that an entry counts are billionths of a currency, and not uses."""
    return are_money(event.priced[PRICED.size :])


def attributed(attribution: str) -> tuple[str, str, str]:
    """Split an attribution into content id, project id and feature version, each empty if not named."""
    content, project, version = attribution.split("\t") if attribution else ("", "", "")
    return content, project, version


class EventNote(IntEnum):
    """Why a use was charged by something else than its own settlement in time."""

    LATE = 1
    RECLAIMED = 2


class MalformedEvent(ValueError):
    """Raised if an outbox entry does not follow the layout."""


def is_newer(packed: bytes) -> bool:
    """Return whether a newer version of this program wrote the outbox entry `packed`.

    False for bytes that do not begin as all versions begin an entry.
    """
    if len(packed) < _OWNER_AT + _OWNER.size or packed[0] <= VERSION:
        return False
    (owner,) = _OWNER.unpack_from(packed, _OWNER_AT)
    return bool(0 < owner <= INTEGER_MAX and owner == int(owner))


def read_owner(packed: bytes) -> int:
    """Return the organization id of an entry; `ANYBODYS` if a newer version wrote it, 0 if it is unreadable."""
    if is_newer(packed):
        return ANYBODYS
    if len(packed) < HEAD.size or packed[0] != VERSION:
        return 0
    (owner,) = _OWNER.unpack_from(packed, _OWNER_AT)
    return int(owner) if isfinite(owner) else 0


def decode(packed: bytes) -> OutboxEntry:
    """Return an unpacked outbox entry. Raise `MalformedEvent` if it does not follow the layout."""
    try:
        version, kind, flags, note, *said = HEAD.unpack_from(packed)
        if version != VERSION:
            raise MalformedEvent(f"layout version {version}, expected {VERSION}")
        source, at = _text(packed, HEAD.size, LENGTH_1)
        user, at = _text(packed, at, LENGTH_2)
        attribution, at = _text(packed, at, LENGTH_2)
        metadata, at = _text(packed, at, LENGTH_2)
        windows, end = _text(packed, at, LENGTH_2)
        last, carried = packed[end:], (0, 0)
        if last and flags & EventFlag.CREDITS and len(last) == CARRIED.size:
            last, carried = b"", CARRIED.struct.unpack(last)
        elif last and not _is_priced(flags, len(last)):
            raise MalformedEvent(f"{len(packed)} bytes, expected {end}")
        texts = (source.decode(), user.decode(), attribution.decode())
        facts = read_facts(metadata)
        if facts is not None:
            metadata = told_of(facts)
        numbers = [*map(int, said)]
        rest = (metadata, note, last, facts, *map(int, carried), *numbers[_SHARED:], _windows(windows))
        fields: list[Any] = [kind, flags, *numbers[:_SHARED], *texts, *rest]
        return OutboxEntry(*fields)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
        if isinstance(error, MalformedEvent):
            raise
        raise MalformedEvent(str(error)) from error


@dataclass(frozen=True, slots=True)
class AccountPosition:
    """An account's state just before an entry moved it. `balance` is None if it was unlimited."""

    account: str
    seq: int
    balance: int | None
    at_ms: int
    epoch: int
    cycle: int = 0


@dataclass(frozen=True, slots=True)
class AccountMovement:
    """An entry's movement of one account: by `delta`, to `balance` (None if unlimited).

    `amount` is the value in the movement's ledger row.
    """

    account: str
    owner_id: int
    seq: int
    amount: int
    delta: int
    balance: int | None

    @property
    def place(self) -> tuple[int, int]:
        """The sort key of this movement's row among rows of the same account type: (owner id, seq)."""
        return self.owner_id, self.seq


def moved(event: OutboxEntry) -> dict[int, AccountMovement]:
    """Return an entry's account movements by flag: a tenant's tokens, an organization's credits and spend."""
    found = {}
    owner_id, inward = event.organization_id, bool(event.flags & EventFlag.IN)
    if event.flags & EventFlag.TOKENS:
        at = (f"tenant:{event.tenant_id}", event.tenant_id, event.seq)
        delta = event.amount if inward else -event.amount
        balance = None if event.flags & EventFlag.UNLIMITED else event.remaining
        found[int(EventFlag.TOKENS)] = AccountMovement(*at, event.amount, delta, balance)
    if event.flags & EventFlag.CREDITS:
        at = (f"credits:{owner_id}", owner_id, event.credit_seq)
        delta = event.credits if event.kind == EventKind.CREDIT and inward else -event.credits
        found[int(EventFlag.CREDITS)] = AccountMovement(*at, event.credits, delta, event.balance)
    if event.flags & EventFlag.USAGE:
        at = (f"spend:{owner_id}", owner_id, event.spend_seq)
        found[int(EventFlag.USAGE)] = AccountMovement(*at, event.units, event.spend, event.spent)
    return found


def places_before(event: OutboxEntry) -> list[AccountPosition]:
    """Return the position (number and balance) of each account just before an entry moved it.

    If a month or plan begins with the entry, the earlier balance is unknown: the result is then the
    entry's balance minus its movement.
    """
    cycle = max(0, event.cycle - (event.kind == EventKind.RESET))
    return [
        AccountPosition(
            amount.account, amount.seq - 1, None if amount.balance is None else amount.balance - amount.delta,
            event.at_ms, event.epoch, cycle if part == EventFlag.TOKENS else 0,
        )
        for part, amount in moved(event).items()
    ]  # fmt: skip


@lru_cache(WINDOWS_KNOWN_MAX)
def _windows(packed: bytes) -> tuple[WindowKey, ...]:
    """Unpack the budget windows that an entry moves. Raise `MalformedEvent` if the size is wrong."""
    if len(packed) % BUDGETED.size:
        raise MalformedEvent(f"{len(packed)} bytes of budgets, {BUDGETED.size} each expected")
    return tuple(
        WindowKey(int(budget_id), int(start), value.rstrip(b"\0").decode())
        for budget_id, start, value in BUDGETED.struct.iter_unpack(packed)
    )


def _is_priced(flags: int, length: int) -> bool:
    return bool(flags & EventFlag.USAGE) and length >= PRICED.size and not (length - PRICED.size) % TIER_BYTES


def _text(packed: bytes, at: int, of_length: struct.Struct) -> tuple[bytes, int]:
    begin = at + of_length.size
    end = begin + of_length.unpack_from(packed, at)[0]
    if end > len(packed):
        raise MalformedEvent(f"a text of {end - begin} bytes runs past the end")
    return packed[begin:end], end
