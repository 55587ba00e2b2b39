"""Decides which entries may become rows: each must continue its accounts exactly.

Pure. A sequence number (seq) that is stored must repeat the stored content; the next seq is fresh; a later
one is a gap. An account with a contradiction is stopped: its entries wait, and so do those of every account
that the same entries move. Nothing is dropped or guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gateway.core.accounts.flush_batch import Batch, Entry, Owner, Waiter
from gateway.core.accounts.outbox import EventFlag, EventKind, OutboxEntry
from gateway.core.model import INTEGER_MAX

TOKENS, CREDITS, USAGE = int(EventFlag.TOKENS), int(EventFlag.CREDITS), int(EventFlag.USAGE)
MOVEMENTS = TOKENS | CREDITS | USAGE
UNKNOWN, QUARANTINED = "unknown_account", "quarantined"
# The last millisecond of the year 9999.
TIME_MS_MAX = 253_402_300_799_999
STATUS_KINDS = (EventKind.BLOCK, EventKind.UNBLOCK)

Placed = tuple[int, Entry]


def event_of(placed: Placed) -> OutboxEntry:
    event = placed[1][2]
    assert event is not None
    return event


@dataclass(slots=True)
class Head:
    """The last stored movement of an account. `stopped` is why no movement may follow, or ""."""

    account: str
    organization_id: int
    epoch: int
    seq: int
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class QuarantineReason:
    """Why an account is quarantined; `behind` is another account that it waits for."""

    kind: str
    account: str
    partition: int
    entry_id: bytes
    event: OutboxEntry
    stored_seq: int
    found_seq: int
    reason: str
    behind: str | None = None


@dataclass(slots=True)
class Heads:
    """The accounts that a batch moves, by kind and id of the owner."""

    tenants: dict[int, Head] = field(default_factory=dict)
    credits: dict[int, Head] = field(default_factory=dict)
    spends: dict[int, Head] = field(default_factory=dict)


@dataclass(slots=True)
class SortedBatch:
    """A batch by what happens to its entries.

    `fresh` become rows, `repeats` are stored already (to be compared), `status_changes` only change the state
    of an account, `noted` move no account and report a call or a budget, `dead` become dead letters, `idle`
    report nothing.
    """

    fresh: list[Placed] = field(default_factory=list)
    repeats: list[Placed] = field(default_factory=list)
    status_changes: list[Placed] = field(default_factory=list)
    noted: list[Placed] = field(default_factory=list)
    dead: list[Placed] = field(default_factory=list)
    idle: list[Placed] = field(default_factory=list)
    faults: list[QuarantineReason] = field(default_factory=list)
    held: int = 0
    waiting: Counter[Waiter] = field(default_factory=Counter)
    parked: dict[Owner, list[bytes]] = field(default_factory=dict)


def sort_out(
    batch: Batch,
    heads: Heads,
    poison: Mapping[tuple[int, bytes], str],
    aside: Collection[tuple[int, bytes]] = frozenset(),
) -> SortedBatch:
    """Sort the entries of a batch by how they are stored, and advance the accounts in `heads`.

    Entries in `poison` cannot be stored as rows. Those that are in `aside` too take no sequence number of
    their accounts, and leave no gap.
    """
    out = SortedBatch()
    tenants, fresh = heads.tenants, out.fresh
    for partition, entries in batch.items():
        for entry in entries:
            event = entry[2]
            if event is None:
                out.dead.append((partition, entry))
                continue
            if event.flags & MOVEMENTS == TOKENS and not poison:
                # The common case, without a list: one token movement that follows its account.
                head = tenants[event.tenant_id]
                if (
                    event.seq == head.seq + 1
                    and event.epoch >= head.epoch
                    and event.organization_id == head.organization_id
                    and not head.stopped
                ):
                    head.seq, head.epoch = event.seq, event.epoch
                    fresh.append((partition, entry))
                    continue
            if (partition, entry[0]) in aside:
                out.dead.append((partition, entry))
                continue
            _place(out, heads, (partition, entry), event, poisoned=(partition, entry[0]) in poison)
    return out


def _place(out: SortedBatch, heads: Heads, placed: Placed, event: OutboxEntry, *, poisoned: bool) -> None:
    """Sort an entry by its place in each of its accounts: next, repeated, behind a stop, or a fault."""
    parts = movements(event, heads)
    if not parts:
        _place_unnumbered(out, heads, placed, event, poisoned=poisoned)
        return
    if any(head.stopped for head, _ in parts):
        _hold(out, placed, event, parts)
        return
    for head, seq in parts:
        fault = _fault(head, seq, event, repeated=any(at <= other.seq for other, at in parts))
        if fault is not None:
            _stop(out, head, placed, (fault[0], seq, fault[1]))
            _place(out, heads, placed, event, poisoned=poisoned)
            return
    if parts[0][1] <= parts[0][0].seq:
        out.repeats.append(placed)
        return
    for head, seq in parts:
        head.seq = seq
        if not poisoned:
            head.epoch = event.epoch
    (out.dead if poisoned else out.fresh).append(placed)


def _hold(out: SortedBatch, placed: Placed, event: OutboxEntry, parts: list[tuple[Head, int]]) -> None:
    """Park an entry, which is not stored now; later entries of all accounts that it moves wait too."""
    partition, (entry_id, packed, _) = placed
    if not storable(event):
        out.dead.append((partition, (entry_id, packed, None)))
        return
    out.held += 1
    out.waiting[partition, event.organization_id, event.tenant_id] += 1
    out.parked.setdefault((partition, event.organization_id), []).append(entry_id)
    first = next(head for head, _ in parts if head.stopped)
    for head, seq in parts:
        if head.stopped == UNKNOWN:
            _stop(out, head, placed, (UNKNOWN, seq, "no such account"))
        elif not head.stopped:
            reason = f"moves together with {first.account}, which is in quarantine"
            _stop(out, head, placed, ("behind", seq, reason), behind=first.account)


def _place_unnumbered(
    out: SortedBatch, heads: Heads, placed: Placed, event: OutboxEntry, *, poisoned: bool
) -> None:
    """Sort an entry that moves no account, such as a change of status or a free call."""
    head = heads.tenants[event.tenant_id]
    if event.kind not in STATUS_KINDS:
        told = event.kind in {EventKind.CONSUME, EventKind.RUN}
        tells = told or event.facts is not None or bool(event.budgets)
        if event.kind in {EventKind.BUDGET, EventKind.CARRY}:  # of an organization, and no tenant's
            head = heads.credits[event.organization_id]
        mine = head.stopped != UNKNOWN and head.organization_id == event.organization_id
        if tells and (poisoned or not storable(event)):
            out.dead.append(placed)
        else:
            (out.noted if tells and mine else out.idle).append(placed)
        return
    if head.stopped:
        _hold(out, placed, event, [(head, event.seq)])
    elif event.seq >= head.seq:
        out.status_changes.append(placed)
    else:
        out.idle.append(placed)


def movements(event: OutboxEntry, heads: Heads) -> list[tuple[Head, int]]:
    """Return the accounts that an entry moves, each with the sequence number of its movement."""
    parts = []
    if event.flags & TOKENS:
        parts.append((heads.tenants[event.tenant_id], event.seq))
    if event.flags & CREDITS:
        parts.append((heads.credits[event.organization_id], event.credit_seq))
    if event.flags & USAGE:
        parts.append((heads.spends[event.organization_id], event.spend_seq))
    return parts


def storable(event: OutboxEntry) -> bool:
    """Return whether every number of an entry fits its column; entries of our scripts always do."""
    ids = (event.organization_id, event.tenant_id, event.key_id, event.service_id)
    places = (event.epoch, event.seq, event.cycle, event.credit_seq, event.spend_seq)
    amounts = (event.amount, event.used, event.credits, event.ahead)
    # Only the correction of a reclaimed call refunds units.
    gives_back = event.kind == EventKind.ADJUST
    balances = (event.remaining, event.balance, event.carried, event.spend, event.spent, event.units)
    used = (event.money, event.raw_tokens, event.requests)
    times = (event.at_ms, event.next_reset_ms)
    return (
        all(0 <= number <= INTEGER_MAX for number in (*ids, *places, *amounts))
        and (gives_back or event.units >= 0)
        and all(-INTEGER_MAX <= number <= INTEGER_MAX for number in (*balances, *used))
        and all(0 <= number <= TIME_MS_MAX for number in times)
    )


def _fault(head: Head, seq: int, event: OutboxEntry, *, repeated: bool) -> tuple[str, str] | None:
    """Return kind and reason of the fault if an entry does not follow its account's head."""
    if event.organization_id != head.organization_id:
        return "conflict", f"belongs to organization {head.organization_id}, not {event.organization_id}"
    if seq > head.seq + 1:
        return "gap", f"movement {seq} after {head.seq}"
    if seq == head.seq + 1:
        if repeated:
            return "conflict", f"movement {seq} is new, another of the same entry is stored already"
        if event.epoch < head.epoch:
            return "conflict", f"movement {seq} of epoch {event.epoch} after epoch {head.epoch}"
    return None


def _stop(
    out: SortedBatch, head: Head, placed: Placed, why: tuple[str, int, str], *, behind: str | None = None
) -> None:
    """Stop an account at an entry that does not follow, and note the fault."""
    kind, seq, reason = why
    partition, (entry_id, _, event) = placed
    assert event is not None
    out.faults.append(
        QuarantineReason(kind, head.account, partition, entry_id, event, head.seq, seq, reason, behind)
    )
    head.stopped = QUARANTINED


@dataclass(frozen=True, slots=True)
class Movement:
    """A movement of an account; `balance` is None if unlimited.

    `month` (year × 12 + month) is set for spend only, which starts at zero each month; else 0.
    """

    account: str
    seq: int
    epoch: int
    delta: int
    balance: int | None
    month: int = 0


def misfit(
    movement: Movement, head_seq: int, rows: dict[int, Movement], drifts: dict[int, int], *, listed: bool
) -> str | None:
    """Return why a dead letter's movement cannot be stored at its sequence number; None if it can.

    The number is either the next one of its account, or a listed gap with rows around it. Balances and epochs on
    both sides must agree with the movement: nothing is guessed.

    `head_seq` is the account's last stored movement, `rows` are those next to this one. `drifts` are changes
    of the balance without a movement, by sequence number. `listed` says that the movement is known to be
    missing.
    """
    account, seq = movement.account, movement.seq
    if seq in rows:
        return f"movement {seq} of {account} is stored already, with other content"
    if seq > head_seq + 1:
        return f"{account} is at movement {head_seq}: those up to {seq - 1} are missing"
    if seq <= head_seq and not listed:
        return f"movement {seq} of {account} is missing for another reason"
    before, after = rows.get(seq - 1), rows.get(seq + 1)
    if before is None and seq == 1:
        before = Movement(account, 0, 0, 0, 0, movement.month)
    return _break(before, movement, drifts) or _break(movement, after, drifts)


def _break(movement: Movement | None, following: Movement | None, drifts: dict[int, int]) -> str | None:
    """Return why a movement does not continue the balance or epoch of the one before; None if it does."""
    if movement is None or following is None:
        return None
    if movement.epoch > following.epoch:
        return f"movement {following.seq} of {movement.account} would go back from epoch {movement.epoch}"
    if movement.balance is None and following.balance is None:
        return None
    base = 0 if movement.month < following.month else (movement.balance or 0)
    expected = base + drifts.get(movement.seq, 0) + following.delta
    if expected == (following.balance or 0):
        return None
    return (
        f"movement {movement.seq} of {movement.account} leaves {base} and movement {following.seq} moves by"
        f" {following.delta}: that is {expected}, not {following.balance or 0}"
    )
