"""Roles of the Admin API: which may read and which may write, said once by each resource as its `Access`.

A token has a role, for all organizations or for one. What is asked is judged here alone; nothing here
knows HTTP, rows or SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from gateway.core.accounts.administration import Actor

ADMIN = "admin"
BILLING = "billing"
OPERATOR = "operator"
# Of an organization's own people, who look after its keys: of one organization always.
MEMBER = "member"
READONLY = "readonly"
ROLES = (ADMIN, BILLING, OPERATOR, MEMBER, READONLY)

CREATE, CHANGE, DELETE = "create", "change", "delete"


class Reach(Enum):
    """Whose rows are: an organization's each; nobody's, which all use; or about all organizations at once."""

    OWNED = "owned"
    SHARED = "shared"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what with a resource. What a role is not named for is refused.

    `verbs` are writes that other roles than `write` may do. Of `fields` a role with an entry sets those
    alone. `of_all` are verbs that take a token of all organizations although rows are `OWNED`, and
    `fields_of_all` fields that do.
    """

    read: frozenset[str]
    write: frozenset[str]
    reach: Reach = Reach.OWNED
    verbs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    of_all: frozenset[str] = frozenset()
    fields_of_all: frozenset[str] = frozenset()

    def writers(self, verb: str) -> frozenset[str]:
        """The roles that may do a verb."""
        return self.verbs.get(verb, self.write)


def access(
    *write: str,
    read: Collection[str] = ROLES,
    reach: Reach = Reach.OWNED,
    verbs: Mapping[str, Collection[str]] | None = None,
    fields: Mapping[str, Collection[str]] | None = None,
    of_all: Collection[str] = (),
    fields_of_all: Collection[str] = (),
) -> Access:
    """State who may write besides an admin, who always may; everybody reads, unless it is said otherwise."""
    return Access(
        frozenset({ADMIN, *read}),
        frozenset({ADMIN, *write}),
        reach,
        {verb: frozenset({ADMIN, *roles}) for verb, roles in (verbs or {}).items()},
        {role: frozenset(names) for role, names in (fields or {}).items()},
        frozenset(of_all),
        frozenset(fields_of_all),
    )


def refused_read(actor: Actor, name: str, to: Access) -> str | None:
    """Why a caller may not read something; None where that is allowed."""
    if actor.role not in to.read:
        return f"The role of this token, {actor.role}, may not read {name}: that takes {_any_of(to.read)}."
    if actor.organization_id is not None and to.reach is Reach.WHOLE:
        return f"{_alone(actor)}: {name} is about all of them, and takes a token of all."
    return None


def refused_write(actor: Actor, name: str, to: Access, verb: str, sent: Collection[str] = ()) -> str | None:
    """Why a caller may not do a verb with these fields; None where that is allowed."""
    writers = to.writers(verb)
    if actor.role not in writers:
        what = f"change {name}" if verb in {CREATE, CHANGE} else f"{verb} {name}"
        return f"The role of this token, {actor.role}, may not {what}: that takes {_any_of(writers)}."
    if actor.organization_id is not None and (to.reach is not Reach.OWNED or verb in to.of_all):
        why = "that takes a token of all organizations"
        return f"{_alone(actor)}: it may not {verb} {name}, {why}."
    return _refused_field(actor, name, to, writers, sent) if verb in {CREATE, CHANGE} else None


def settable(actor: Actor, to: Access, verb: str, names: Collection[str]) -> list[str]:
    """Which of these fields a caller may set."""
    if verb not in {CREATE, CHANGE}:
        return list(names)
    may, never = to.fields.get(actor.role), _fields_of_others(actor, to)
    return [name for name in names if name not in never and (may is None or name in may)]


def _refused_field(
    actor: Actor, name: str, to: Access, writers: Collection[str], sent: Collection[str]
) -> str | None:
    theirs = next((each for each in sent if each in _fields_of_others(actor, to)), None)
    if theirs is not None:
        why = "that takes a token of all organizations"
        return f"{_alone(actor)}: it may not set {theirs} of {name}, {why}."
    may = to.fields.get(actor.role)
    if may is None or may.issuperset(sent):
        return None
    wrong = next(each for each in sent if each not in may)
    others = [role for role in writers if wrong in to.fields.get(role, {wrong})]
    return (
        f"The role of this token, {actor.role}, may not set {wrong} of {name}: that takes {_any_of(others)}."
    )


def _fields_of_others(actor: Actor, to: Access) -> frozenset[str]:
    return frozenset() if actor.organization_id is None else to.fields_of_all


def _alone(actor: Actor) -> str:
    return f"This token is of organization {actor.organization_id} alone"


def _any_of(roles: Collection[str]) -> str:
    return " or ".join(role for role in ROLES if role in roles)
