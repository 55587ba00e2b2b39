"""Types for the comparison of Redis and PostgreSQL after a loss: positions of accounts, and the state of both. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    KeyDefinition,
    OrganizationAccount,
    PricesDefinition,
    TenantAccount,
    UserDefinition,
)
from gateway.core.accounts.flush_batch import control_id
from gateway.core.accounts.outbox import MalformedEvent, decode, places_before


@dataclass(frozen=True, slots=True)
class NewestWrite:
    """The newest control write when Redis was told of some, and the highest id that rows known to it had."""

    position: int
    id: str
    highest_id: int


@dataclass(frozen=True, slots=True)
class Markers:
    """The partitions by their markers in Redis under one run id.

    `unverified` are (partition, marker, epoch). `verified` are epochs by partition; calls of the `closed`
    ones are not admitted yet. `others` belong to keepers of another version. `before` are the run ids in
    markers of unverified partitions.
    """

    run_id: bytes
    unverified: list[tuple[int, bytes, int]]
    verified: dict[int, int]
    closed: dict[int, int]
    others: list[int] = field(default_factory=list)
    before: dict[int, bytes] = field(default_factory=dict)


# Entries of the outbox that do not continue PostgreSQL's rows.
#
# If Redis is restored from older data while it runs, it is written to until that is noticed: its accounts
# continue from an old state, past movements that were stored since. The same happens on a server that was
# cut off while another one took over: its entries may be older than rows of the other. So entries that wait
# in a stream which never had the newest stored entry are no continuation, or are stored already. Stopped
# accounts are an exception: their earlier entries still wait, and later ones continue those.
@dataclass(slots=True)
class OrphanEntries:
    """Waiting entries of one partition whose stream never had the entry `after`, with their owners.

    `ids` are the ids by which Redis remembers them. Entries of `stopped` accounts are not included.
    """

    partition: int
    after: bytes
    stopped: Collection[str] = ()
    entries: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    tenants: set[int] = field(default_factory=set)
    organizations: set[int] = field(default_factory=set)

    def add(self, entry_id: bytes, packed: bytes) -> None:
        """Add an entry of the stream, unless the keeper has stopped all of its accounts because of a fault.

        An unreadable entry is added without owner.
        """
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


# Types for the comparison of Redis and PostgreSQL: positions of accounts, and the state of PostgreSQL.
@dataclass(frozen=True, slots=True)
class AccountHead:
    """The position of an account: its seq and balance. `balance` is None if it is unlimited."""

    seq: int
    balance: int | None


@dataclass(frozen=True, slots=True)
class GlobalDefinitions:
    """Definitions that belong to no partition, as of one version.

    Changes in progress at that time have a `position` of at least this one.
    """

    catalogue: CatalogueDefinition
    prices: PricesDefinition
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class ComparisonPoint:
    """The state of a partition at its last comparison: it had all definitions up to `position`."""

    run_id: bytes
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class PartitionContents:
    """The ids of organizations and API keys that PostgreSQL has for some partitions.

    `organizations` are by partition. `credentials` are keys whose credential is looked up in these
    partitions, while their organization is in another.
    """

    organizations: Mapping[int, Sequence[int]]
    credentials: Sequence[int]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """All that PostgreSQL knows of one partition, as of a version.

    It has accounts, definitions of keys and users, and in `applied` the ids of control writes that Redis had
    applied and no row shows yet.
    """

    organizations: list[OrganizationAccount]
    tenants: list[TenantAccount]
    keys: list[KeyDefinition]
    users: list[UserDefinition]
    applied: list[str]
    version: int


@dataclass(frozen=True, slots=True)
class KnownOtherwise:
    """What Redis knows otherwise than an organization's rows, of a PostgreSQL that was set back.

    `keys` are the ends of keys (Unix ms, 0: revoked) by id, `overrides` those in force by budget and owner: amount
    and end, or None for none.
    """

    keys: dict[int, int] = field(default_factory=dict)
    overrides: dict[int, dict[str, list[object] | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The result of verifying one partition: its epoch, and numbers of changed accounts, writes and holds."""

    partition: int
    epoch: int
    rebuilt: int
    repushed: int
    let_go: int = 0
    refused: int = 0


def summary(done: Sequence[VerificationResult]) -> dict[str, int]:
    """Return the sums over verified partitions, such as rebuilt accounts, for a log line."""
    return {
        "partitions": len(done),
        "accounts_rebuilt": sum(each.rebuilt for each in done),
        "control_writes_repushed": sum(each.repushed for each in done),
        "holds_let_go": sum(each.let_go for each in done),
    }
