"""What counters and PostgreSQL are compared by: where an account stands, and all that PostgreSQL knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    KeyDefinition,
    OrganizationAccount,
    PricesDefinition,
    TenantAccount,
)


@dataclass(frozen=True, slots=True)
class AccountHead:
    """`balance` is None where the account is unlimited."""

    seq: int
    balance: int | None


@dataclass(frozen=True, slots=True)
class Truth:
    """What PostgreSQL knows: the accounts and open control writes by partition, the definitions.

    `applied` are the ids of control writes the counters had and no row shows yet. `identities` are the keys
    whose credentials stand in these partitions, whoever's they are.
    """

    organizations: Mapping[int, Sequence[OrganizationAccount]]
    tenants: Mapping[int, Sequence[TenantAccount]]
    definitions: Sequence[AccountDefinition]
    identities: Sequence[KeyDefinition]
    applied: Mapping[int, Sequence[str]]
    catalogue: CatalogueDefinition
    prices: PricesDefinition
    version: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying one partition did."""

    partition: int
    epoch: int
    rebuilt: int
    repushed: int
    let_go: int = 0


def summary(done: Sequence[Verified]) -> dict[str, int]:
    """What verifying some partitions did, in numbers for a log line."""
    return {
        "partitions": len(done),
        "accounts_rebuilt": sum(each.rebuilt for each in done),
        "control_writes_repushed": sum(each.repushed for each in done),
        "holds_let_go": sum(each.let_go for each in done),
    }
