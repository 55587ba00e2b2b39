"""Types of administration: what the Admin API passes to the store and receives from it.

Values are plain Python: integers, strings, booleans, `Decimal`, aware `datetime`, dicts and lists of those.
Nothing here knows HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gateway.core.issuers import PersonIdentity

Row = Mapping[str, object]

# The order key of a row in a list.
Place = tuple[int | str, ...]

# Longer than any request of the Admin API without another limit.
REQUEST_S_MAX = 35.0
# A request about dead letters starts no new letter after this time: the next request continues.
LETTERS_S_MAX = 60.0
# The name of the applied set of configuration files if none is given.
DEFAULT_NAME = "default"

# How long both keys are valid after one replaced the other: most deploys take less than a day, changes by
# hand may take a month.
OVERLAP_S = 86_400
OVERLAP_S_MAX = 30 * 86_400

# The field of a row with its organization.
OWNER = "organization_id"
# The field of a row with its tenant.
TENANT = "tenant_id"


@dataclass(frozen=True, slots=True)
class Realm:
    """The rows that a caller may see: those of one organization, of one of its tenants, or of one API key."""

    organization_id: int
    tenant_id: int | None = None
    api_key_id: int | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """The caller of the Admin API. `scope` is unique to its token ("builtin:admin", "token:7").

    An `organization_id` limits it to one organization, `tenant_id` to one tenant of that, `api_key_id` to one
    key of that. Without an organization it reaches all. `is_ours` marks a token that staff issued to staff.
    `person` is set for a person whom an identity provider signed in; several people may share one token.
    """

    scope: str
    role: str
    token_id: int | None = None
    user_id: int | None = None
    organization_id: int | None = None
    person: PersonIdentity | None = None
    is_ours: bool = False
    tenant_id: int | None = None
    api_key_id: int | None = None

    @property
    def realm(self) -> Realm | None:
        """The rows that this caller may see; None means all."""
        if self.organization_id is None:
            return None
        return Realm(self.organization_id, self.tenant_id, self.api_key_id)

    @property
    def claims_as(self) -> str:
        """The owner of an `Idempotency-Key` that this caller sends: the token, with the person if known."""
        if self.person is None:
            return self.scope
        return f"{self.scope}\t{self.person.issuer}\t{self.person.identity}"  # both without tabs


# The actor of writes by timed jobs.
KEEPER = Actor("keeper", "admin")


@dataclass(frozen=True, slots=True)
class Claim:
    """An `Idempotency-Key` as one caller sent it, with its request (`body_digest` is hex SHA-256).

    For `running_s_max` seconds a first request without an answer counts as still running.
    """

    scope: str
    key: str
    method: str
    path: str
    body_digest: str
    running_s_max: float = REQUEST_S_MAX


@dataclass(frozen=True, slots=True)
class Command:
    """One write: a `verb` on a resource, or on its row `id`, with validated values.

    `render` makes the body of the answer from the row. It is stored with the claim. `closed` are the
    organizations and tenants without open calls whose organization's movements are all stored.
    """

    resource: str
    verb: str
    actor: Actor
    request_id: str
    render: Callable[[Row], Row]
    id: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    claim: Claim | None = None
    closed: frozenset[Realm] = frozenset()


@dataclass(frozen=True, slots=True)
class Intent:
    """A pending control write: its id (UUID text) and its account."""

    id: str
    account: str


@dataclass(frozen=True, slots=True)
class CommittedWrite:
    """A committed write: the new row, and the pending control writes that it created."""

    row: Row
    intents: tuple[Intent, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The stored answer to the first request with an idempotency key.

    `status` is None if the first request failed between its commit and its answer.
    """

    status: int | None
    body: Row


@dataclass(frozen=True, slots=True)
class Query:
    """A request for one page of a resource: `after` is the order key of the last row of the page before."""

    filters: Mapping[str, object]
    since: datetime | None
    until: datetime | None
    after: Place | None
    limit: int
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order, and the order key of the last row if more follow."""

    rows: tuple[Row, ...]
    next_after: Place | None


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A console session. `token_digest` is of the typed token, or of the token for the signed-in `person`.

    `renewal` (sealed) is the credential for asking the identity provider whether the person still has access;
    `is_due` means that it is time to ask. `id_token` (sealed) is sent to the provider at sign-out.
    """

    id: int
    token_digest: str
    person: PersonIdentity | None = None
    renewal: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    is_due: bool = False


# Roles of the Admin API. Each resource states once, as its `Access`, which may read and which may write.
#
# A token has a role, for all organizations or for one. Only the functions below judge requests, and they
# know neither HTTP, rows nor SQL.

ADMIN = "admin"
BILLING = "billing"
OPERATOR = "operator"
# For an organization's own people, who manage its keys. Always limited to one organization.
MEMBER = "member"
READONLY = "readonly"
ROLES = (ADMIN, BILLING, OPERATOR, MEMBER, READONLY)
# For a person signed in to the console with an API key. No resource names it: only the key's page is shown.
KEY_HOLDER = "key"
# Roles for tokens of one tenant: for a lead, an engineer, a reader.
TEAM_ROLES = (OPERATOR, MEMBER, READONLY)

READ, CREATE, CHANGE, DELETE = "read", "create", "change", "delete"

# Roles of a tenant's tokens that may do a verb, and the fields that each may send; None means all fields.
Team = Collection[str] | Mapping[str, Collection[str] | None]


class RowScope(Enum):
    """Who owns the rows of a resource: one organization each, nobody (all use them), or all together."""

    OWNED = "owned"
    SHARED = "shared"
    WHOLE = "whole"


class WriteAuthority(Enum):
    """Who decides a write: an organization's own people, staff for it, or staff for all organizations."""

    THEIRS = "theirs"
    OURS = "ours"
    OF_ALL = "of all"


_TAKES = {
    WriteAuthority.OURS: "that takes a token of all organizations, or one that staff marked `ours`",
    WriteAuthority.OF_ALL: "that takes a token of all organizations",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Rules about who may do what with a resource. A role that no field names is refused.

    `read` and `write` are roles. `verbs` are writes that other roles than `write` may do. A role with an
    entry in `fields` may set only those fields. Verbs and fields of `OWNED` rows have one of three classes:
    `theirs` are decided by the organization's people. `ours` decide what it owes or whether it is blocked: a
    token of one organization needs the mark of staff for these. `of_all` need a token of all organizations. A
    field without a class has that of the verb.

    `teams` names the roles of one tenant's tokens by verb (`read` too). All other verbs are refused to these
    tokens.
    """

    read: frozenset[str]
    write: frozenset[str]
    reach: RowScope = RowScope.OWNED
    verbs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    theirs: frozenset[str] = frozenset()
    of_all: frozenset[str] = frozenset()
    teams: Mapping[str, Mapping[str, frozenset[str] | None]] = field(default_factory=dict)

    def whose(self, verb: str) -> WriteAuthority:
        """Return who decides on `verb`: people of the organization, staff for it, or staff for all of them.

        If the rules do not say, it is staff for the organization (`OURS`).
        """
        if self.reach is not RowScope.OWNED or verb in self.of_all:
            return WriteAuthority.OF_ALL
        return WriteAuthority.THEIRS if verb in self.theirs else WriteAuthority.OURS

    def writers(self, verb: str) -> frozenset[str]:
        """Return the roles that may do a verb."""
        return self.verbs.get(verb, self.write)


def access(
    *write: str,
    read: Collection[str] = ROLES,
    reach: RowScope = RowScope.OWNED,
    verbs: Mapping[str, Collection[str]] | None = None,
    fields: Mapping[str, Collection[str]] | None = None,
    ours: Collection[str] = (),
    theirs: Collection[str] = (),
    of_all: Collection[str] = (),
    teams: Mapping[str, Team] | None = None,
) -> Access:
    """Build the rules of access to a resource from names of roles; the parameters are fields of `Access`.

    ADMIN is added to the roles in `write`, `read` and `verbs`. By default all roles may read.
    """
    return Access(
        frozenset({ADMIN, *read}),
        frozenset({ADMIN, *write}),
        reach,
        {verb: frozenset({ADMIN, *roles}) for verb, roles in (verbs or {}).items()},
        {role: frozenset(names) for role, names in (fields or {}).items()},
        frozenset(ours),
        frozenset(theirs),
        frozenset(of_all),
        {verb: _of_team(roles) for verb, roles in (teams or {}).items()},
    )


def _of_team(roles: Team) -> Mapping[str, frozenset[str] | None]:
    named = roles if isinstance(roles, Mapping) else dict.fromkeys(roles)
    return {role: None if fields is None else frozenset(fields) for role, fields in named.items()}


def refused_read(actor: Actor, name: str, to: Access) -> str | None:
    """Return the message for a caller who may not read a resource, or None if it may."""
    if actor.role not in to.read:
        return f"The role of this token, {actor.role}, may not read {name}: that takes {_any_of(to.read)}."
    if actor.organization_id is not None and to.reach is RowScope.WHOLE:
        return f"{_alone(actor)}: {name} is about all of them, and takes a token of all."
    return _refused_team(actor, name, to, READ)


def refused_write(actor: Actor, name: str, to: Access, verb: str, sent: Collection[str] = ()) -> str | None:
    """Return the message for a caller who may not do `verb` with the fields `sent`, or None if it may."""
    if actor.tenant_id is not None:
        return _refused_team(actor, name, to, verb, sent)
    writers = to.writers(verb)
    if actor.role not in writers:
        what = f"change {name}" if verb in {CREATE, CHANGE} else f"{verb} {name}"
        return f"The role of this token, {actor.role}, may not {what}: that takes {_any_of(writers)}."
    whose = to.whose(verb)
    if not _decides(actor, whose):
        return f"{_alone(actor)}: it may not {verb} {name}, {_TAKES[whose]}."
    return _refused_field(actor, name, to, writers, sent) if verb in {CREATE, CHANGE} else None


def settable(actor: Actor, to: Access, verb: str, names: Collection[str]) -> list[str]:
    """Return the fields among `names` that a caller may set."""
    if verb not in {CREATE, CHANGE}:
        return list(names)
    if actor.tenant_id is not None:
        return [name for name in names if _refused_team(actor, "", to, verb, [name]) is None]
    may = to.fields.get(actor.role)
    return [
        name for name in names if _decides(actor, _whose_field(to, name)) and (may is None or name in may)
    ]


def _refused_team(actor: Actor, name: str, to: Access, verb: str, sent: Collection[str] = ()) -> str | None:
    """Return why a token of one tenant may not do `verb` with the fields `sent`; None if it may.

    The result is also None for a token that is not limited to one tenant.
    """
    if actor.tenant_id is None:
        return None
    roles = to.teams.get(verb, {})
    if actor.role not in roles or not (verb == READ or _decides(actor, to.whose(verb))):
        may = [role for role in TEAM_ROLES if role in roles]
        takes = f"{_any_of(may)} of it" if may else "a token of its whole organization"
        return f"{_of_one(actor)} may not {verb} {name}, that takes {takes}."
    fields = roles[actor.role]
    for each in sent:
        if (fields is not None and each not in fields) or not _decides(actor, _whose_field(to, each)):
            return f"{_of_one(actor)} may not set {each} of {name}."
    return None


def _of_one(actor: Actor) -> str:
    return f"This token is of tenant {actor.tenant_id} alone: as {actor.role} it"


def _refused_field(
    actor: Actor, name: str, to: Access, writers: Collection[str], sent: Collection[str]
) -> str | None:
    """Return why an actor may not set a field of those in `sent`, or None if all are allowed."""
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


def _decides(actor: Actor, whose: WriteAuthority) -> bool:
    return (
        actor.organization_id is None
        or whose is WriteAuthority.THEIRS
        or (actor.is_ours and whose is WriteAuthority.OURS)
    )


def _whose_field(to: Access, name: str) -> WriteAuthority:
    if name in to.of_all:
        return WriteAuthority.OF_ALL
    return WriteAuthority.OURS if name in to.ours else WriteAuthority.THEIRS


def _alone(actor: Actor) -> str:
    return f"This token is of organization {actor.organization_id} alone"


def _any_of(roles: Collection[str]) -> str:
    return " or ".join(role for role in ROLES if role in roles)


# Types of applied configuration: the rows to be written, in one transaction, and the outcome.
#
# Values are plain Python, as in `administration`. Nothing here knows files, HTTP or SQL.
@dataclass(frozen=True, slots=True)
class NewRowId:
    """The id of a row that the step with this number creates; with `prefix`, as text after that prefix."""

    number: int
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A record of an applied row: the fields that files set, and whether applying created it (`made`)."""

    resource: str
    row_id: int | NewRowId
    fields: tuple[str, ...]
    made: bool
    # The row's name in the files, by parts, with ids of other rows; None if it was not recorded.
    said: tuple[object, ...] | None = None


@dataclass(frozen=True, slots=True)
class ConfigWrite:
    """One write of a configuration. Its command's values may contain `NewRowId` for rows of earlier steps.

    `number` is referred to by `NewRowId`. `before` are the fields as they were read: if they have changed
    since, nothing is written. With `may_stay` the row stays if the store refuses to delete it.
    """

    number: int
    command: Command
    before: Mapping[str, object] = field(default_factory=dict)
    may_stay: bool = False


@dataclass(frozen=True, slots=True)
class ConfigWriteResult:
    """The outcome of a step: the row's id, and in `stays` the reason why the row was not changed."""

    row_id: int
    stays: str = ""


def settled(values: Row, made: Mapping[int, int]) -> Row:
    """Return `values` with each `NewRowId` replaced by the id of the created row, in lists of parts as well."""
    return {name: _resolve_ids(value, made) for name, value in values.items()}


def _resolve_ids(value: object, made: Mapping[int, int]) -> object:
    """Return a value of a row with the ids of new rows in it, by the number of each in `made`."""
    if isinstance(value, NewRowId):
        row_id = made[value.number]
        return row_id if value.prefix is None else f"{value.prefix}{row_id}"
    if isinstance(value, list):
        return [settled(part, made) if isinstance(part, dict) else _resolve_ids(part, made) for part in value]
    return value
