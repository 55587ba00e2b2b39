"""Who has sent again what Redis may have forgotten: what workers report, and which of them are waited for.

Pure. A worker is known by its number, which its successor takes over together with what it left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    KeyDefinition,
    OrganizationAccount,
    PricesDefinition,
    TenantAccount,
    UserDefinition,
)
from gateway.core.accounts.outbox import MalformedEvent, control_id, decode, places_before

# A worker reports twice in it at least.
SILENT_S_MAX = 15.0
# How long one that fell silent may still come back with what its disk keeps.
RETURN_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one worker says: the run of Redis it speaks to, a number that is another one each time, and
    for each partition the epoch that all earlier settlements have been sent again for.
    """

    run_id: bytes
    beat: int
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Markers:
    """The partitions as their markers stand: (partition, marker, epoch) of those not verified under this
    run id, and the epochs of those that are; the `closed` ones of these admit nobody yet. `others` are
    another version's, whose keepers look after them. `before` are the run ids that the unverified ones name.
    """

    run_id: bytes
    unverified: list[tuple[int, bytes, int]]
    verified: dict[int, int]
    closed: dict[int, int]
    others: list[int] = field(default_factory=list)
    before: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _LastReport:
    beat: int
    at: float
    present: bool


class Roster:
    """The workers one keeper knows to be alive. Moments are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._heard: dict[str, _LastReport] = {}
        self._silent_at: dict[str, float] = {}

    @property
    def worker_slots(self) -> frozenset[str]:
        """Who is waited for after a loss."""
        return frozenset(self._heard)

    def absent(self, now: float) -> frozenset[str]:
        """Return slots that fell silent not long ago: nobody waits for them, but they may come back."""
        return frozenset(one for one, at in self._silent_at.items() if now - at < RETURN_S_MAX)

    def expect(self, worker_slots: Iterable[str], now: float) -> None:
        """Add slots that existed before; a lack of reports does not mean yet that they left."""
        for worker_slot in worker_slots:
            beat = self._heard[worker_slot].beat if worker_slot in self._heard else -1
            self._heard[worker_slot] = _LastReport(beat, now, present=False)

    def hear(self, reports: Mapping[str, WorkerReport], now: float) -> list[str]:
        """Record reports while nothing is lost; return slots that fell silent and did not leave."""
        for worker_slot, report in reports.items():
            known = self._heard.get(worker_slot)
            if known is None or known.beat != report.beat:
                self._heard[worker_slot] = _LastReport(report.beat, now, present=True)
        silent = {slot for slot, one in self._heard.items() if now - one.at > SILENT_S_MAX}
        left = {slot for slot, one in self._heard.items() if one.present and slot not in reports}
        for worker_slot in silent | left:
            del self._heard[worker_slot]
        absent = self.absent(now) - self._heard.keys()
        self._silent_at = {slot: self._silent_at[slot] for slot in absent} | dict.fromkeys(silent, now)
        return sorted(silent & reports.keys())

    def missing(
        self, reports: Mapping[str, WorkerReport], run_id: bytes, partition: int, epoch: int
    ) -> Collection[str]:
        """Return slots that have not sent again what a partition may have forgotten before an epoch.

        A slot that reports is waited for too: it may be new, and have found what another one left.
        """
        here = {worker_slot for worker_slot, report in reports.items() if report.run_id == run_id}
        return [
            worker_slot
            for worker_slot in self.worker_slots | here
            if worker_slot not in here or reports[worker_slot].epochs[partition] < epoch
        ]


# Entries of the outbox that do not continue PostgreSQL's rows.
#
# Data that is exchanged for older data under a running process is written to until that is noticed: its
# accounts go on from where they stood once, over movements that were stored since. The same holds for a
# server that was cut off, or left, while another one went on: its entries may be older than that one's rows.
# So whatever waits in a stream that never had the newest entry stored is no continuation, or is stored
# already. But for accounts that are stopped: what came before waits still, and what went on follows that.
@dataclass(slots=True)
class OrphanEntries:
    """Waiting entries of one partition whose stream never had entry `after`: `entries`, the `ids` by which
    they
    are remembered, and whose they are. Those of `stopped` accounts are none.
    """

    partition: int
    after: bytes
    stopped: Collection[str] = ()
    entries: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    tenants: set[int] = field(default_factory=set)
    organizations: set[int] = field(default_factory=set)

    def add(self, entry_id: bytes, packed: bytes) -> None:
        """Add an entry; an unreadable one belongs to nobody."""
        try:
            event = decode(packed)
        except MalformedEvent:
            self.entries.append(entry_id)
            return
        accounts = [place.account for place in places_before(event)] or [f"tenant:{event.tenant_id}"]
        if all(account in self.stopped for account in accounts):
            return
        self.entries.append(entry_id)
        self.tenants.add(event.tenant_id)
        self.organizations.add(event.organization_id)
        if known := control_id(event):
            self.ids.append(known.encode())


# What counters and PostgreSQL are compared by: where an account stands, and all that PostgreSQL knows.
@dataclass(frozen=True, slots=True)
class AccountHead:
    """`balance` is None where the account is unlimited."""

    seq: int
    balance: int | None


@dataclass(frozen=True, slots=True)
class GlobalDefinitions:
    """Definitions of no partition, as of one version.

    No change that was under way then has a lower `position`.
    """

    catalogue: CatalogueDefinition
    prices: PricesDefinition
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class ComparisonPoint:
    """As what a partition was compared last: then its data had all that was defined up to a position."""

    run_id: bytes
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class PartitionContents:
    """What PostgreSQL has of some partitions, by ids alone: their organizations, and the keys of others whose
    credentials stand there.
    """

    organizations: Mapping[int, Sequence[int]]
    credentials: Sequence[int]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What PostgreSQL knows of one partition, as of a version: its accounts, its definitions besides those of
    its accounts, and the ids of control writes that the counters had and no row shows yet.
    """

    organizations: list[OrganizationAccount]
    tenants: list[TenantAccount]
    keys: list[KeyDefinition]
    users: list[UserDefinition]
    applied: list[str]
    version: int


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What verifying one partition did."""

    partition: int
    epoch: int
    rebuilt: int
    repushed: int
    let_go: int = 0
    refused: int = 0


def summary(done: Sequence[VerificationResult]) -> dict[str, int]:
    """Return the results of verifying some partitions, in numbers for a log line."""
    return {
        "partitions": len(done),
        "accounts_rebuilt": sum(each.rebuilt for each in done),
        "control_writes_repushed": sum(each.repushed for each in done),
        "holds_let_go": sum(each.let_go for each in done),
    }
