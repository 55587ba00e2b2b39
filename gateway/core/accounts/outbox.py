"""Outbox entries: movements of accounts, written by Lua scripts and decoded for the rows of the ledger.

Every movement of an account is one entry of the partition's stream, packed by `lua/lib/entry.lua` and
unpacked here; the layout is fixed and versioned. One entry may carry a token movement, a credit movement and
a unit of use at once: a settled call is one entry.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import asdict, replace

from gateway.core.accounts.windows import EndLimit
from gateway.core.billing.money import NANO, TIER_BYTES, are_money
from gateway.core.billing.price_book import KINDS, NO_COUNTS
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX
from gateway.core.times import moment_of, rfc3339

# The facts of one call as one text: gateways write it, scripts pass it on, the flusher makes rows of it.
#
# An entry's metadata is either a JSON object (control writes) or the facts of a call: a JSON array. New facts
# come last, each with a default, so that older and newer readers use those that they know.

# Positions in `counts`.
INPUT, CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, OUTPUT, REASONING = range(6)
NONE = msgspec.Raw(b"null")
# An entry has two bytes for the length of its metadata, and a correction adds some bytes.
FACTS_BYTES_MAX = 60_000
TEXT_CHARACTERS_MAX = 256
UNKNOWN_BYTES_MAX = 4096
SEPARATOR = ", "
# The key in a ledger row's metadata for tokens of other models within a call, which have separate prices.
OTHER_MODELS = "other_models"
# Keys in a ledger row's metadata besides the caller's. Each call has `CALL_NAMES`. Views and roll-ups depend
# on the markers, which callers cannot write. A key of `NAMES_BESIDE_MARKERS` is ours only with its marker.
CALL_NAMES = (
    "model", "streamed", "status", "duration_ms", "input", "output", "cached", "reasoning", "estimated",
)  # fmt: skip
ROW_MARKERS = (
    "corrects", "forgiven", "forgives", OTHER_MODELS, "reclaimed", "supplied_on", "told_on", "unreadable",
)  # fmt: skip
NAMES_BESIDE_MARKERS = {"reason": "corrects", "used_at": "supplied_on"}


class CallFacts(msgspec.Struct, array_like=True):
    """The facts of one settled call. `counts` are tokens by `KINDS`, `total` is how many tokens are charged.

    `tools` counts uses of the provider's tools by name. `cost` is in nano-units of `currency`, None if no
    price applies. `first_token_ms` is None without output. `metadata` is the caller's, `unknown` are fields
    of the provider's report that this program does not know: JSON objects, unchanged. `corrects` is the id of
    a request that was charged by its observed use and is corrected here. `reason` is why a call failed or is
    corrected. `used_ms` is the time of use that was reported afterwards; 0 is the time of the charge.
    `unpriced` names tools without a price, which `cost` does not include. `exchange_rate` is the rate that
    converted the price, empty for none. `beside` are tokens of other models within the call, with separate
    prices: (model, price id, tokens by `KINDS`). If a price changes by the hour, `hour` is the time by which it was
    charged (Unix ms), and the factor of the model's price then. `tags` are those that its organization declares,
    `groups` ids of those that its caller was in. Where a step of a budget sent the call as `model`, `step` is the
    model that its caller named, the budget's id and name, and what the answer would have cost more as that model
    (in nano-units of `currency`, below 0 if less; None if unknown).
    """

    model: str = ""
    response_model: str = ""
    streamed: bool = False
    status: int = 0
    duration_ms: int = 0
    first_token_ms: int | None = None
    counts: tuple[int, ...] = NO_COUNTS
    total: int = 0
    units: int = 0
    estimated: bool = False
    tools: dict[str, int] = {}
    service_tier: str = ""
    cost: int | None = None
    currency: str = ""
    price_id: int = 0
    route: str = ""
    session: str = ""
    upstream_request_id: str = ""
    metadata: msgspec.Raw = NONE
    unknown: msgspec.Raw = NONE
    corrects: str = ""
    reason: str = ""
    used_ms: int = 0
    unpriced: str = ""
    exchange_rate: str = ""
    beside: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    hour: tuple[int, str] | None = None
    tags: dict[str, str] = {}
    groups: tuple[int, ...] = ()
    step: tuple[str, int, str, int | None] | None = None

    @property
    def priced_ms(self) -> int:
        return 0 if self.hour is None else self.hour[0]

    @property
    def hour_factor(self) -> str:
        return "" if self.hour is None else self.hour[1]


def named_unpriced(names: Iterable[str]) -> str:
    """Join the names of tools without a price as text for `CallFacts.unpriced`, cut to its maximum length."""
    return SEPARATOR.join(names)[:TEXT_CHARACTERS_MAX]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallFacts).decode
_objects = msgspec.json.Decoder(dict[str, Any]).decode


def write_facts(facts: CallFacts | tuple[Any, ...]) -> bytes:
    """Return the encoded facts of a call; a tuple has their values in the order of fields.

    Facts above `FACTS_BYTES_MAX` lose the parts that no charge depends on (see `briefly`).
    """
    written = _encode(facts)
    return written if len(written) <= FACTS_BYTES_MAX else _encode(briefly(facts))


def briefly(facts: CallFacts | tuple[Any, ...]) -> CallFacts:
    """Return the facts of a call without tools, metadata and unknown fields, and with texts shortened."""
    whole = facts if isinstance(facts, CallFacts) else CallFacts(*facts)
    said = asdict(whole).items()
    texts = {name: value[:TEXT_CHARACTERS_MAX] for name, value in said if isinstance(value, str)}
    return replace(whole, **texts, tools={}, metadata=NONE, unknown=NONE)


def read_facts(metadata: bytes) -> CallFacts | None:
    """Return the facts of a call from the metadata of an outbox entry; None if it has no such facts."""
    if metadata[:1] != b"[":
        return None
    try:
        facts = _decode(metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(facts.counts) != len(KINDS):  # a newer version wrote more kinds
        facts.counts = (facts.counts + NO_COUNTS)[: len(KINDS)]
    return facts


def facts_in(metadata: bytes) -> CallFacts:
    """Return a call's facts from a JSON object of metadata, as versions before `CallFacts` wrote it."""
    said = _said(metadata)
    read, cached = _whole(said.get("input")), _whole(said.get("cached"))
    counts = [0] * len(KINDS)
    counts[INPUT], counts[CACHE_READ] = max(0, read - cached), min(cached, read)
    counts[OUTPUT], counts[REASONING] = _whole(said.get("output")), _whole(said.get("reasoning"))
    model = said.get("model")
    return CallFacts(
        model=model if isinstance(model, str) else "",
        streamed=said.get("streamed") is True,
        status=_whole(said.get("status")),
        duration_ms=_whole(said.get("duration_ms")),
        counts=tuple(counts),
        total=read + counts[OUTPUT],
        units=1,
        estimated=said.get("estimated") is True,
    )


def reclaimed_in(metadata: bytes) -> tuple[int | None, int]:
    """Return the tokens and the units that a reclaimed call is charged, from the metadata of its entry.

    Tokens are None if the plan does not weigh them. Units are 1 if an older version wrote the entry
    without units.
    """
    said = _said(metadata)
    tokens, units = said.get("tokens"), said.get("units")
    return None if tokens is None else _whole(tokens), 1 if units is None else _whole(units)


def mark_as_correction(metadata: bytes, request_id: str, reason: str) -> bytes:
    """Return a settlement's metadata with the id of the request that it corrects, and the reason."""
    facts = read_facts(metadata)
    if facts is None:
        own = _objects(metadata) if metadata else {}
        return _encode({**own, "corrects": request_id, "reason": reason})
    facts.corrects, facts.reason = request_id, reason
    return _encode(facts)


def told_of(facts: CallFacts) -> bytes:
    """Return the metadata for a ledger row as JSON: that of the caller, with the call's public facts."""
    counts = facts.counts
    read = counts[INPUT] + counts[CACHE_READ] + counts[CACHE_WRITE] + counts[CACHE_WRITE_1H]
    of_call = (
        facts.model, facts.streamed, facts.status, facts.duration_ms, read, counts[OUTPUT],
        counts[CACHE_READ], counts[REASONING], facts.estimated,
    )  # fmt: skip
    ours: dict[str, object] = dict(zip(CALL_NAMES, of_call, strict=True))
    if facts.corrects:
        ours |= {"corrects": facts.corrects, "reason": facts.reason}
    if facts.beside:
        ours[OTHER_MODELS] = [
            {"model": model, "price_id": price_id}
            | {kind: count for kind, count in zip(KINDS, counts, strict=False) if count}
            for model, price_id, counts in facts.beside
        ]
    if facts.used_ms:
        used_at = rfc3339(moment_of(facts.used_ms))
        ours |= {"used_at": used_at, "supplied_on": used_at[:10]}
    theirs = bytes(facts.metadata)
    if theirs == b"null":
        return _encode(ours)
    # Read and written with the same library as in the gateway, so all that it accepted is stored.
    try:
        said = json.loads(theirs)
        for marker in ROW_MARKERS:
            said.pop(marker, None)
        return json.dumps(said | ours, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):  # no gateway wrote it
        return _encode({**ours, "unreadable": True})


def read_other_models(said: object) -> list[tuple[str, int, tuple[int, ...]]]:
    """Return (model, price id, tokens by `KINDS`) for each other model in a row's metadata.

    Empty if the value has another form than `told_of` writes.
    """
    try:
        parts = msgspec.convert(said or [], list[dict[str, int | str]])
        return [
            (str(one["model"]), int(one["price_id"]), tuple([int(one.get(kind, 0)) for kind in KINDS]))
            for one in parts
        ]
    except (msgspec.ValidationError, KeyError, ValueError):
        return []


def _said(metadata: bytes) -> dict[str, Any]:
    try:
        return _objects(metadata) if metadata else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


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
            one.account, one.seq - 1, None if one.balance is None else one.balance - one.delta,
            event.at_ms, event.epoch, cycle if part == EventFlag.TOKENS else 0,
        )
        for part, one in moved(event).items()
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


# From the outbox to the ledger and back: batches and reports.
#
# An entry is a tuple, not an object: tens of thousands a second pass through here.

# Stream entry id, packed value, and decoded entry; None if it does not follow the layout.
Entry = tuple[bytes, bytes, OutboxEntry | None]
# Entries by partition, in stream order.
Batch = dict[int, list[Entry]]
# An entry's position in its stream, comparable: the milliseconds and number of its id.
StreamPlace = tuple[int, int]
# The state that decides which entries of a partition wait: its epoch, accounts quarantined and released.
Judged = tuple[int, int, int]
# Partition, organization, tenant.
Waiter = tuple[int, int, int]
# Partition and organization of parked entries.
Owner = tuple[int, int]


@dataclass(frozen=True, slots=True)
class History:
    """The state of the counters when a batch was read: the Redis run id, and each partition's known epoch.

    `judged` has partitions with older waiting entries, and the state when those were checked.
    """

    run_id: bytes
    epochs: Mapping[int, int]
    judged: Mapping[int, Judged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartitionAssignment:
    """The partitions of a keeper: its `own`, those it is `leaving`, and those it is `lacking`.

    It leaves a partition once none of its entries is in progress. Partitions that it lacks still belong to
    other keepers.
    """

    own: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()


@dataclass(slots=True)
class FlushReport:
    """The result of one transaction of the flusher, for the log and the metrics.

    `rows` counts by table. `acknowledged` has the entries that may be deleted by partition, `control_ids` the
    control writes (and late posts) whose movement is now stored. `held` counts entries that wait for
    `quarantined` accounts (new ones are named), `waiting` counts them by owner, `parked` has their ids, and
    `judged` the state of their partitions at the check. `left_over` are partitions that were not flushed:
    another flusher has them, their waiting entries must be checked first, or they are `outdated`, that is
    verified again since they were read, so that entries may be obsolete. The `locked` ones are locked by
    another flusher.
    """

    rows: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[int, list[bytes]] = field(default_factory=dict)
    control_ids: dict[int, list[str]] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    dead_letters: int = 0
    repeated: int = 0
    held: int = 0
    waiting: dict[Waiter, int] = field(default_factory=dict)
    parked: dict[Owner, list[bytes]] = field(default_factory=dict)
    judged: dict[int, Judged] = field(default_factory=dict)
    left_over: frozenset[int] = frozenset()
    outdated: frozenset[int] = frozenset()
    locked: frozenset[int] = frozenset()

    def entries(self) -> int:
        """Return the number of stream entries that PostgreSQL has stored, and Redis may delete."""
        return sum(map(len, self.acknowledged.values()))


def fan_out(streams: Mapping[int, Sequence[tuple[bytes, bytes]]]) -> Batch:
    """Return the decoded entries of each partition's stream, in their order, with ids and packed bytes."""
    return {
        partition: [(entry_id, packed, _event(packed)) for entry_id, packed in entries]
        for partition, entries in streams.items()
        if entries
    }


def stream_place(entry_id: bytes) -> StreamPlace:
    """Return an entry id as (milliseconds, number) for comparison; b"" is before all others."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms or 0), int(number or 0)


def control_id(event: OutboxEntry) -> str:
    """Return the id by which Redis remembers an entry until PostgreSQL has it; empty for a normal use."""
    if event.kind == EventKind.CONSUME and event.note != EventNote.LATE:
        return ""
    return event.source


def _event(packed: bytes) -> OutboxEntry | None:
    try:
        return decode(packed)
    except MalformedEvent:
        return None
