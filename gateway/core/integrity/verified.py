"""What counters and PostgreSQL are compared by: where an account stands, and all that PostgreSQL knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    KeyDefinition,
    OrganizationAccount,
    PricesDefinition,
    TenantAccount,
    UserDefinition,
)


@dataclass(frozen=True, slots=True)
class AccountHead:
    """`balance` is None where the account is unlimited."""

    seq: int
    balance: int | None


@dataclass(frozen=True, slots=True)
class Everybodys:
    """What is of no partition, as of a version of what is defined.

    No change that was under way then has a lower `position`.
    """

    catalogue: CatalogueDefinition
    prices: PricesDefinition
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class Compared:
    """As what a partition was compared last: then its data had all that was defined up to a position."""

    run_id: bytes
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Places:
    """What PostgreSQL has of some partitions, by ids alone: their organizations, and the keys of others whose
    credentials stand there.
    """

    organizations: Mapping[int, Sequence[int]]
    credentials: Sequence[int]


@dataclass(frozen=True, slots=True)
class Truth:
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
class Verified:
    """What verifying one partition did."""

    partition: int
    epoch: int
    rebuilt: int
    repushed: int
    let_go: int = 0
    refused: int = 0


def summary(done: Sequence[Verified]) -> dict[str, int]:
    """What verifying some partitions did, in numbers for a log line."""
    return {
        "partitions": len(done),
        "accounts_rebuilt": sum(each.rebuilt for each in done),
        "control_writes_repushed": sum(each.repushed for each in done),
        "holds_let_go": sum(each.let_go for each in done),
    }
