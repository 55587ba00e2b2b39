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


class Whose(Enum):
    """Who decides a write: an organization's own people, staff for it, or staff for all organizations."""

    THEIRS = "theirs"
    OURS = "ours"
    OF_ALL = "of all"


_TAKES = {
    Whose.OURS: "that takes a token of all organizations, or one that staff marked `ours`",
    Whose.OF_ALL: "that takes a token of all organizations",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what with a resource. What a role is not named for is refused.

    `verbs` are writes that other roles than `write` may do. Of `fields` a role with an entry sets those
    alone. Every verb of `OWNED` rows is in one class. `theirs` are an organization's own. `ours` decide what
    it owes or whether it is shut out: a token of one organization does them only where staff marked it.
    `of_all` take a token of all organizations. Fields are named too where they are of another class than
    the verbs that set them.
    """

    read: frozenset[str]
    write: frozenset[str]
    reach: Reach = Reach.OWNED
    verbs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    theirs: frozenset[str] = frozenset()
    of_all: frozenset[str] = frozenset()

    def whose(self, verb: str) -> Whose:
        """Who decides a verb. One without a class is staff's."""
        if self.reach is not Reach.OWNED or verb in self.of_all:
            return Whose.OF_ALL
        return Whose.THEIRS if verb in self.theirs else Whose.OURS

    def writers(self, verb: str) -> frozenset[str]:
        """The roles that may do a verb."""
        return self.verbs.get(verb, self.write)


def access(
    *write: str,
    read: Collection[str] = ROLES,
    reach: Reach = Reach.OWNED,
    verbs: Mapping[str, Collection[str]] | None = None,
    fields: Mapping[str, Collection[str]] | None = None,
    ours: Collection[str] = (),
    theirs: Collection[str] = (),
    of_all: Collection[str] = (),
) -> Access:
    """State who may write besides an admin, who always may; everybody reads, unless it is said otherwise."""
    return Access(
        frozenset({ADMIN, *read}),
        frozenset({ADMIN, *write}),
        reach,
        {verb: frozenset({ADMIN, *roles}) for verb, roles in (verbs or {}).items()},
        {role: frozenset(names) for role, names in (fields or {}).items()},
        frozenset(ours),
        frozenset(theirs),
        frozenset(of_all),
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
    whose = to.whose(verb)
    if not _decides(actor, whose):
        return f"{_alone(actor)}: it may not {verb} {name}, {_TAKES[whose]}."
    return _refused_field(actor, name, to, writers, sent) if verb in {CREATE, CHANGE} else None


def settable(actor: Actor, to: Access, verb: str, names: Collection[str]) -> list[str]:
    """Which of these fields a caller may set."""
    if verb not in {CREATE, CHANGE}:
        return list(names)
    may = to.fields.get(actor.role)
    return [
        name for name in names if _decides(actor, _whose_field(to, name)) and (may is None or name in may)
    ]


def _refused_field(
    actor: Actor, name: str, to: Access, writers: Collection[str], sent: Collection[str]
) -> str | None:
    for each in sent:
        whose = _whose_field(to, each)
        if not _decides(actor, whose):
            return f"{_alone(actor)}: it may not set {each} of {name}, {_TAKES[whose]}."
    may = to.fields.get(actor.role)
    if may is None or may.issuperset(sent):
        return None
    wrong = next(each for each in sent if each not in may)
    others = [role for role in writers if wrong in to.fields.get(role, {wrong})]
    return (
        f"The role of this token, {actor.role}, may not set {wrong} of {name}: that takes {_any_of(others)}."
    )


def _decides(actor: Actor, whose: Whose) -> bool:
    return actor.organization_id is None or whose is Whose.THEIRS or (actor.is_ours and whose is Whose.OURS)


def _whose_field(to: Access, name: str) -> Whose:
    if name in to.of_all:
        return Whose.OF_ALL
    return Whose.OURS if name in to.ours else Whose.THEIRS


def _alone(actor: Actor) -> str:
    return f"This token is of organization {actor.organization_id} alone"


def _any_of(roles: Collection[str]) -> str:
    return " or ".join(role for role in ROLES if role in roles)
