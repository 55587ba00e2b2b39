"""Writes of a caller of one organization: what it names is its own, what it makes is too.

Checked here for every write, before a verb of a resource sees it and after it: whose a row is says
`persistence.ownership`.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.core.accounts.administration import OWNER, Row
from gateway.core.accounts.roles import CREATE
from gateway.errors import NotFound, Unprocessable
from persistence.most_of_own import refuse_more
from persistence.subject import Change, require
from persistence.tables import organization


def done(change: Change) -> Row:
    """Do a write within its bounds."""
    enter(change)
    refuse_more(change)
    row = change.subject.verbs[change.command.verb](change)
    leave(change, row)
    return row


def enter(change: Change) -> None:
    """Refuse what is another's as what is not there; what is made without an owner is the caller's."""
    if change.within is None:
        return
    if change.command.id is not None:
        change.fetch()
    _own(change, change.within)
    require(change)


def leave(change: Change, row: Row) -> None:
    """Refuse what came out as another's: nothing of it is kept."""
    if change.within is not None and row.get(OWNER, change.within) != change.within:
        raise NotFound


def _own(change: Change, within: int) -> None:
    command = change.command
    if OWNER in command.values:
        named = command.values[OWNER]
        if named is None:
            raise Unprocessable(
                errors=((OWNER, f"must be {within}: this token is of that organization alone"),)
            )
        if named != within:
            # As `require` says it of one that is not there.
            raise Unprocessable(errors=((OWNER, f"there is no {organization.name} {named}"),))
    elif command.verb == CREATE and OWNER in change.subject.table.c:
        change.command = replace(command, values={**command.values, OWNER: within})
