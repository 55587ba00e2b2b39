"""The outbox entry: what a script says happened, decoded into facts the writer turns into rows.

Every movement of an account is one entry of the partition's stream, packed by
`lua/lib/event.lua` and unpacked here; the layout is fixed and versioned. One entry may carry
a token movement, a credit movement and a unit of use at once: a settled call is one entry.
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

from gateway.core.billing.money import TIER_BYTES, are_money
from gateway.core.billing.price_book import KINDS, NO_COUNTS
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX
from gateway.core.times import moment_of, rfc3339

# What one call did, in one text: from the gateway, unread by the scripts, to the rows it becomes.
#
# An entry's metadata is either a JSON object, as control writes have it, or the facts of a call: a JSON array
# by place. New facts come last, each with a default, so that older and newer readers take what they know.

# Where in the counts.
INPUT, CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, OUTPUT, REASONING = range(6)
NONE = msgspec.Raw(b"null")
# An entry says the length of its metadata in two bytes, and a correction says a little more.
FACTS_BYTES_MAX = 60_000
TEXT_CHARACTERS_MAX = 256
UNKNOWN_BYTES_MAX = 4096
SEPARATOR = ", "
# The name in a ledger's row of tokens of other models within a call, which have prices of their own.
OTHER_MODELS = "other_models"
# The names in a ledger's row besides those of a caller. Each call has the first ones. Views and roll-ups go
# by the markers, which no caller may write. The last ones are ours where their marker stands beside them.
CALL_NAMES = (
    "model", "streamed", "status", "duration_ms", "input", "output", "cached", "reasoning", "estimated",
)  # fmt: skip
ROW_MARKERS = (
    "corrects", "forgiven", "forgives", OTHER_MODELS, "reclaimed", "supplied_on", "told_on", "unreadable",
)  # fmt: skip
NAMES_BESIDE_MARKERS = {"reason": "corrects", "used_at": "supplied_on"}


class CallFacts(msgspec.Struct, array_like=True):
    """One settled call. `counts` are tokens by `KINDS`, `total` is how many tokens are charged.

    `tools` counts uses of the provider's tools by name. `cost` is in nano-units of `currency`, None where no
    price says what the call costs. `first_token_ms` is None where nothing was produced. `metadata` is the
    caller's, `unknown` what the provider reported and nobody here knows: JSON objects, as they came. What
    `corrects` a request tells what it really used, where it was charged by what was seen of it. `reason`
    says why a call failed, else why it is corrected. `used_ms` is when it was used, where that is told of use
    that did not pass the gateway; 0 is when it is charged. `unpriced` names the tools that no price covers,
    which are not in `cost`. `exchange_rate` is the one that its price was converted by, empty for none.
    `beside` are tokens of other models within the call, which have prices of their own: the model, the id of
    the price, and tokens by `KINDS`.
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


def named_unpriced(names: Iterable[str]) -> str:
    """Return names of tools as a call has them."""
    return SEPARATOR.join(names)[:TEXT_CHARACTERS_MAX]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallFacts).decode
_objects = msgspec.json.Decoder(dict[str, Any]).decode


def write_facts(facts: CallFacts | tuple[Any, ...]) -> bytes:
    """Return the facts, or their values by place, as they travel.

    Without what nothing is charged by where an entry has no room for all.
    """
    written = _encode(facts)
    return written if len(written) <= FACTS_BYTES_MAX else _encode(briefly(facts))


def briefly(facts: CallFacts | tuple[Any, ...]) -> CallFacts:
    """Return the facts, or their values by place, without what is only kept as it came.

    No text is longer than it is stored.
    """
    whole = facts if isinstance(facts, CallFacts) else CallFacts(*facts)
    said = asdict(whole).items()
    texts = {name: value[:TEXT_CHARACTERS_MAX] for name, value in said if isinstance(value, str)}
    return replace(whole, **texts, tools={}, metadata=NONE, unknown=NONE)


def read_facts(metadata: bytes) -> CallFacts | None:
    """Return the facts of a call; None where an entry's metadata is something else."""
    if metadata[:1] != b"[":
        return None
    try:
        facts = _decode(metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(facts.counts) != len(KINDS):  # more are a newer version's
        facts.counts = (facts.counts + NO_COUNTS)[: len(KINDS)]
    return facts


def facts_in(metadata: bytes) -> CallFacts:
    """Read facts from metadata that is an object: entries had no facts when it was written."""
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
    """Return the tokens of a reclaimed call, None where its plan counts them as they are; and its units.

    One unit where the metadata of an older keeper states none.
    """
    said = _said(metadata)
    tokens, units = said.get("tokens"), said.get("units")
    return None if tokens is None else _whole(tokens), 1 if units is None else _whole(units)


def corrected(metadata: bytes, request_id: str, reason: str) -> bytes:
    """Return the metadata of a settlement with the request that it corrects, and the reason."""
    facts = read_facts(metadata)
    if facts is None:
        own = _objects(metadata) if metadata else {}
        return _encode({**own, "corrects": request_id, "reason": reason})
    facts.corrects, facts.reason = request_id, reason
    return _encode(facts)


def told_of(facts: CallFacts) -> bytes:
    """Return the metadata of a ledger's row: what the caller said, and what it may be told of its call."""
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
    # As the gateway reads and writes what callers say: what it took in is stored.
    try:
        said = json.loads(theirs)
        for marker in ROW_MARKERS:
            said.pop(marker, None)
        return json.dumps(said | ours, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):  # no gateway of ours wrote it
        return _encode({**ours, "unreadable": True})


def read_other_models(said: object) -> list[tuple[str, int, tuple[int, ...]]]:
    """Return the tokens of other models within a call, as `told_of` wrote them; none of anything else."""
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
    """Why the account moved."""

    CONSUME = 1
    RESET = 2
    RECHARGE = 3
    ADJUST = 4
    BLOCK = 5
    UNBLOCK = 6
    CREDIT = 7
    BUDGET = 8
    RUN = 9  # was opened or ended; it moves nothing


class EventFlag(IntFlag):
    """Which parts an entry carries and how the account stands after it."""

    TOKENS = 1
    CREDITS = 2
    USAGE = 4
    UNLIMITED = 8
    IN = 16
    BLOCKED = 32
    MANUAL_BLOCK = 64
    ACTIVATES = 128


# When and who, then the accounts of tokens, credits and spend, and by how much windows of budgets moved; each
# text after its length, the last one says which windows (`BUDGETED`). What units were priced by, if any were,
# ends the entry.
ENTRY = Layout(
    "ENTRY",
    f"u8 version={VERSION} kind flags note,"
    " f64 at_ms epoch organization_id tenant_id key_id service_id"
    " seq cycle amount remaining used next_reset_ms"
    " credit_seq=0 credits=0 balance=0 spend_seq=0 units=0 spend=0 spent=0 money=0 raw_tokens=0 requests=0,"
    " text8 source, text16 user attribution metadata budgets",
)
# One window of a budget: which, when it began (ms), and whose it is of an account for each.
BUDGETED = Layout("BUDGETED", "f64 budget_id start, s24 value")
PRICED = Layout("PRICED", "f64 before")
# Ends an entry of credits where parts of one are carried: nano-credits paid ahead after it, and by how much
# it moved them. Without it both are 0.
CARRIED = Layout("CARRIED", "f64 ahead carried")
HEAD = ENTRY.struct
# How many numbers there are in front of those of budgets, behind the first four bytes.
_SHARED = ENTRY.index("spent") + 1 - 4
# Of one process; a kilobyte each with four windows, 60 with all 256 there can be. It is for accounts of many
# calls: those of a hundred thousand callers are never there, which costs their entries 3 µs of 8 to read.
WINDOWS_KNOWN_MAX = 1_024
# How every layout begins, whichever version wrote it: up to whose it is.
_OWNER, _OWNER_AT = ENTRY.part("organization_id", "organization_id"), ENTRY.offset("organization_id")
LENGTH_1 = struct.Struct("<B")
LENGTH_2 = struct.Struct("<H")


class WindowKey(NamedTuple):
    """One window that an entry moves: of a budget, from when on, and whose; empty where it is everybody's."""

    budget_id: int
    start_ms: int
    value: str = ""


@dataclass(slots=True)
class OutboxEntry:
    """One decoded outbox entry. Amounts are integers; absent parts are zero.

    `source` is the request id of a use or the control-write id of a grant (36 characters),
    empty for a lazy reset. `remaining` has no meaning under `EventFlag.UNLIMITED`.
    `attribution` is `content_id TAB project_id TAB feature_version` or empty; `metadata` is
    a JSON object or empty, made of the call's `facts` where the entry has them. `priced`, with the usage
    part, says what units were priced by: the month's units before them, then the tiers
    (`gateway/core/billing/money.py`); empty where it does not. `ahead` are the nano-credits that are paid
    ahead after it, `carried` how many of them by this one: it cost that much less than its `credits`.
    Each window of `budgets` moves by `money` (nano-units), `raw_tokens` or `requests`, as its budget counts.
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
    """Return which way an entry moves windows of budgets: a reset says what it took."""
    return -1 if event.kind == EventKind.BUDGET else 1


def in_money(event: OutboxEntry) -> bool:
    """Return whether the units of a use are money: billionths of the currency that it costs."""
    return are_money(event.priced[PRICED.size :])


def attributed(attribution: str) -> tuple[str, str, str]:
    """Split an attribution into content id, project id and feature version, each empty if not named."""
    content, project, version = attribution.split("\t") if attribution else ("", "", "")
    return content, project, version


class EventNote(IntEnum):
    """How a use came to be charged, where not by its own settlement."""

    LATE = 1
    RECLAIMED = 2


class MalformedEvent(ValueError):
    """The outbox entry does not follow the layout."""


def is_newer(packed: bytes) -> bool:
    """Return whether a newer version has written this entry; False for bytes that do not begin as all entries
    do.
    """
    if len(packed) < _OWNER_AT + _OWNER.size or packed[0] <= VERSION:
        return False
    (owner,) = _OWNER.unpack_from(packed, _OWNER_AT)
    return bool(0 < owner <= INTEGER_MAX and owner == int(owner))


def decode(packed: bytes) -> OutboxEntry:
    """Unpack one outbox entry; `MalformedEvent` if it does not follow the layout."""
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
    """Where an account stood before an entry moved it: `balance` is None where it was unlimited."""

    account: str
    seq: int
    balance: int | None
    at_ms: int
    epoch: int
    cycle: int = 0


@dataclass(frozen=True, slots=True)
class AccountMovement:
    """How an entry moves one account: by `delta`, to `balance` (None where it is unlimited).

    `amount` is what the movement's row has.
    """

    account: str
    owner_id: int
    seq: int
    amount: int
    delta: int
    balance: int | None

    @property
    def place(self) -> tuple[int, int]:
        """Where its row is among those of its part."""
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
    """Return the position of each account just before an entry moved it, as far as the entry says so.

    An account whose month or plan began with the entry has no earlier balance in it: the balance is then the
    entry's less its movement.
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
    """Unpack the budget windows that an entry moves; `MalformedEvent` if the size is wrong."""
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

# Stream entry id, its packed value, and what that says; None where it does not follow the layout.
Entry = tuple[bytes, bytes, OutboxEntry | None]
# Entries by partition, in stream order.
Batch = dict[int, list[Entry]]
# Where an entry stands in its stream, comparable: the milliseconds and the number of its id.
StreamPlace = tuple[int, int]
# What decides which entries of a partition wait: its epoch, how many accounts are in quarantine and went on.
Judged = tuple[int, int, int]
# Partition, organization, tenant.
Waiter = tuple[int, int, int]
# Partition, organization: whose entries are set aside.
Owner = tuple[int, int]


@dataclass(frozen=True, slots=True)
class History:
    """Of which history a batch is: the run of the counters it was read from, and what the ledger
    knew as the epoch of each partition before it was read. `judged` has the partitions with entries
    that wait before these, and the epochs those were checked under.
    """

    run_id: bytes
    epochs: Mapping[int, int]
    judged: Mapping[int, Judged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartitionAssignment:
    """The partitions of a keeper: its `own`, those `leaving` it once nothing of them is in hand, and those
    that are to be its own and are still somebody else's.
    """

    own: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()


@dataclass(slots=True)
class FlushReport:
    """What one transaction did: facts for the log and the metrics.

    `rows` counts by table; `acknowledged` holds by partition the entries that may be deleted,
    `control_ids` the control writes (and late posts) whose movement is now stored. `held` counts entries
    that wait behind `quarantined` accounts (new ones named), `waiting` by whose they are, `parked` has
    their ids, and `judged` says of their partitions under what; `left_over` are partitions another
    flusher has at the moment, whose waiting entries are to be checked again first, or that are
    `outdated`: verified again since they were read, so that the entries may be no history any more. Of
    those that are `locked`, somebody else has the lock.
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
        """Return the number of entries that may be deleted."""
        return sum(map(len, self.acknowledged.values()))


def fan_out(streams: Mapping[int, Sequence[tuple[bytes, bytes]]]) -> Batch:
    """Decode what was read, partition by partition; order is kept."""
    return {
        partition: [(entry_id, packed, _event(packed)) for entry_id, packed in entries]
        for partition, entries in streams.items()
        if entries
    }


def stream_place(entry_id: bytes) -> StreamPlace:
    """Return the place an entry's id names; that of b"" is before all."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms or 0), int(number or 0)


def control_id(event: OutboxEntry) -> str:
    """Return the id this entry is remembered by in the counters until it is stored; empty if by none."""
    if event.kind == EventKind.CONSUME and event.note != EventNote.LATE:
        return ""
    return event.source


def _event(packed: bytes) -> OutboxEntry | None:
    try:
        return decode(packed)
    except MalformedEvent:
        return None
