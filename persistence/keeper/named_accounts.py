"""What the accounts that control writes name are defined as: a few queries a kind, however many are named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT, PRICES_ACCOUNT, Definition
from persistence.keeper import definitions

Named = Sequence[tuple[str, Definition]]


async def of_accounts(
    connection: AsyncConnection, accounts: Collection[str]
) -> Mapping[str, tuple[Definition, ...]]:
    """The definitions that account names stand for; none where there is none any more."""
    named: dict[str, list[str]] = defaultdict(list)
    for account in accounts:
        kind, _, name = account.partition(":")
        named[kind].append(name)
    found: dict[str, tuple[Definition, ...]] = {}
    for kind, names in named.items():
        if kind == CATALOGUE_ACCOUNT:
            found[kind] = (await definitions.catalogue(connection),)
        elif kind == PRICES_ACCOUNT:
            found[kind] = (await definitions.prices(connection),)
        else:
            found |= {f"{kind}:{name}": (each,) for name, each in await _NAMED[kind](connection, names)}
    return found


async def _named_organizations(connection: AsyncConnection, names: Sequence[str]) -> Named:
    found = await definitions.organizations(connection, "id = ANY(:ids)", _ids(names))
    return [(str(each.definition.organization_id), each.definition) for each in found]


async def _named_tenants(connection: AsyncConnection, names: Sequence[str]) -> Named:
    found = await definitions.tenants(connection, "t.id = ANY(:ids)", _ids(names))
    return [(str(each.definition.tenant_id), each.definition) for each in found]


async def _named_keys(connection: AsyncConnection, names: Sequence[str]) -> Named:
    found = await definitions.keys(connection, "k.id = ANY(:ids)", _ids(names))
    return [(str(each.key_id), each) for each in found]


async def _named_users(connection: AsyncConnection, names: Sequence[str]) -> Named:
    """Users in their tenants; a name is the tenant's id, and what its callers name the user."""
    parts = [name.partition(":") for name in names]
    values = {"tenants": [int(one) for one, _, _ in parts], "externals": [user for _, _, user in parts]}
    where = """(t.id, u.external_id) IN
       (SELECT * FROM unnest(cast(:tenants AS bigint[]), cast(:externals AS text[])))"""
    found = await definitions.users(connection, where, values)
    return [(f"{each.tenant_id}:{each.user}", each) for each in found]


_NAMED: Mapping[str, Callable[[AsyncConnection, Sequence[str]], Awaitable[Named]]] = {
    "organization": _named_organizations,
    "tenant": _named_tenants,
    "key": _named_keys,
    "user": _named_users,
}


def _ids(names: Sequence[str]) -> Mapping[str, list[int]]:
    return {"ids": [int(name) for name in names]}
