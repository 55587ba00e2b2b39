"""What counters and PostgreSQL are compared by: where an account stands, and all that PostgreSQL knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    Definition,
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

    `applied` are the ids of control writes the counters had and no row shows yet.
    """

    organizations: Mapping[int, Sequence[OrganizationAccount]]
    tenants: Mapping[int, Sequence[TenantAccount]]
    definitions: Sequence[Definition]
    applied: Mapping[int, Sequence[str]]
    catalogue: CatalogueDefinition
    prices: PricesDefinition
    version: int
