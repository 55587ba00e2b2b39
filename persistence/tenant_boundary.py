"""Writes of a caller of one organization: what it names is its own, what it makes is too.

Checked here for every write, before a verb of a resource sees it and after it: whose a row is says
`persistence.entity`.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Table

from gateway.core.accounts.administration import CREATE, OWNER, TENANT, Realm, Row
from gateway.core.capabilities import used_by
from gateway.errors import CapabilityNeeded, Forbidden, NotFound, Unprocessable
from persistence.entity import EntityWrite, fetch, require
from persistence.row_maxima import refuse_more
from persistence.tables import organization, tenant

# A connection's option: names of the capabilities that all running programs know.
CAPABLE_OF = "capable_of"


def confined(change: EntityWrite) -> Row:
    enter(change)
    refuse_more(change)
    row = change.subject.verbs[change.command.verb](change)
    leave(change, row)
    require_known(change, row)
    return row


def require_known(change: EntityWrite, row: Row) -> None:
    """Raise `CapabilityNeeded` for a capability that the write uses and that this transaction may not."""
    command = change.command
    for name in used_by(command.resource, command.verb, command.values, row):
        if name not in change.connection.get_execution_options().get(CAPABLE_OF, ()):
            raise CapabilityNeeded(name)


def enter(change: EntityWrite) -> None:
    """Restrict a write to the organization or tenant that the caller may write in.

    Raise `NotFound` for a row of somebody else; a new row gets the caller's organization or tenant.
    """
    if (realm := change.realm) is None:
        return
    if change.command.id is not None:
        _require_own(change, realm)
    _own(change, OWNER, organization, realm.organization_id)
    if realm.tenant_id is not None:
        _own(change, TENANT, tenant, realm.tenant_id)
    require(change)


def leave(change: EntityWrite, row: Row) -> None:
    """Raise `NotFound`, if the written `row` belongs to another organization or tenant than the caller's."""
    if (realm := change.realm) is None:
        return
    for name, within in ((OWNER, realm.organization_id), (TENANT, realm.tenant_id)):
        if within is not None and row.get(name, within) != within:
            raise NotFound


def _require_own(change: EntityWrite, realm: Realm) -> None:
    """Raise `NotFound` for a row of somebody else, or `Forbidden` for another one of a tenant's organization."""
    try:
        change.fetch()
    except NotFound:
        if realm.tenant_id is not None and change.command.verb in change.subject.of_owner:
            whole = change.subject.within(Realm(realm.organization_id))
            fetch(change.connection, whole, change.row_id)
            raise Forbidden(
                f"This {change.subject.table.name} is not of this token's tenant alone."
            ) from None
        raise


def _own(change: EntityWrite, name: str, owner: Table, within: int) -> None:
    """Set the organization or tenant `within` in a new row; raise Unprocessable if it names another."""
    command = change.command
    if name in command.values:
        named = command.values[name]
        if named is None:
            raise Unprocessable(
                errors=((name, f"must be {within}: this token is of that {owner.name} alone"),)
            )
        if named != within:
            # As `require` says it of one that is not there.
            raise Unprocessable(errors=((name, f"there is no {owner.name} {named}"),))
    elif command.verb == CREATE and name in change.subject.table.c:
        change.command = replace(command, values={**command.values, name: within})
