"""The nouns of administration: what the Admin API asks of the store, and what it gets back.

Values are plain Python: integers, strings, booleans, `Decimal`, aware `datetime`, dicts and
lists of those. Nothing here knows HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from math import ceil

from gateway.core.http_limits import HOUR_CPU_S, HOUR_ROWS, HOUR_WORK_S
from gateway.core.issuers import PersonIdentity
from gateway.errors import HourSpent

Row = Mapping[str, object]

# Where in a list a row stands: its order key.
Place = tuple[int | str, ...]

# Longer than any request of the Admin API lives that does not say otherwise.
REQUEST_S_MAX = 35.0
# A request that decides on letters takes no new one after so long: the next request goes on.
LETTERS_S_MAX = 60.0
# The set of files that configuration is applied as, where none is named.
DEFAULT_NAME = "default"

# How long two keys are good where one was made in the place of the other: most deploys take less than a day,
# what is changed by hand may take a month.
OVERLAP_S = 86_400
OVERLAP_S_MAX = 30 * 86_400

# What a row names its organization by.
OWNER = "organization_id"
# And what it names the tenant by.
TENANT = "tenant_id"


@dataclass(frozen=True, slots=True)
class Realm:
    """All that a caller sees: what is of one organization, of one tenant of it, or of one API key."""

    organization_id: int
    tenant_id: int | None = None
    api_key_id: int | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: `scope` is unique to the token ("builtin:admin", "token:7").

    Of one organization alone it sees and changes nothing of any other; None is of all. `tenant_id` narrows
    it to one tenant of that organization, and `api_key_id` to one key of that. One that `is_ours` was given
    by staff to staff. A person of a provider of identities is a `person`, even if the same token stands for
    others.
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
        """What it sees; None is everything."""
        if self.organization_id is None:
            return None
        return Realm(self.organization_id, self.tenant_id, self.api_key_id)

    @property
    def claims_as(self) -> str:
        """Whose an `Idempotency-Key` is: the token's, or that of one of the people it stands for."""
        if self.person is None:
            return self.scope
        return f"{self.scope}\t{self.person.issuer}\t{self.person.identity}"  # both without tabs


# What the clock writes is the keeper's.
KEEPER = Actor("keeper", "admin")


@dataclass(frozen=True, slots=True)
class Claim:
    """An `Idempotency-Key` as one caller sent it, and its request (`body_digest` is hex SHA-256).

    For `running_s_max` seconds a first request without an answer is taken to be running still.
    """

    scope: str
    key: str
    method: str
    path: str
    body_digest: str
    running_s_max: float = REQUEST_S_MAX


@dataclass(frozen=True, slots=True)
class Command:
    """One write: `verb` on a resource, or on the row `id` of it, with validated values.

    `render` turns the row into the answer's body, which is kept with the claim.
    """

    resource: str
    verb: str
    actor: Actor
    request_id: str
    render: Callable[[Row], Row]
    id: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A control write that now waits: its id (UUID text) and its account."""

    id: str
    account: str


@dataclass(frozen=True, slots=True)
class CommittedWrite:
    """A committed write: the row as it stands and the control writes it left behind."""

    row: Row
    intents: tuple[Intent, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """The answer first given under this idempotency key.

    `status` is None where the first request died between its commit and its answer.
    """

    status: int | None
    body: Row


@dataclass(frozen=True, slots=True)
class Query:
    """A page of a resource: `after` is the order key of the row before it."""

    filters: Mapping[str, object]
    since: datetime | None
    until: datetime | None
    after: Place | None
    limit: int
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order and, if there are more, the order key of the last one."""

    rows: tuple[Row, ...]
    next_after: Place | None


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A person signed in to the console: the digest of the token shown at the door, or of the sign-in that
    stands
    for the person whom a provider named.

    `renewal` is what the provider is asked with whether they still may come in, sealed; `is_due` whether it
    is time to. `id_token` is what it is told when they sign out, sealed too.
    """

    id: int
    token_digest: str
    person: PersonIdentity | None = None
    renewal: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    is_due: bool = False


# Roles of the Admin API: which may read and which may write, said once by each resource as its `Access`.
#
# A token has a role, for all organizations or for one. Requests are judged here alone; nothing here
# knows HTTP, rows or SQL.

ADMIN = "admin"
BILLING = "billing"
OPERATOR = "operator"
# Of an organization's own people, who look after its keys: of one organization always.
MEMBER = "member"
READONLY = "readonly"
ROLES = (ADMIN, BILLING, OPERATOR, MEMBER, READONLY)
# Of who signed in to the console with an API key: no resource names it, so the page of the key is all it has.
KEY_HOLDER = "key"
# Those a token of one tenant may have: of its lead, of an engineer, of who looks on.
TEAM_ROLES = (OPERATOR, MEMBER, READONLY)

READ, CREATE, CHANGE, DELETE = "read", "create", "change", "delete"

# The roles of one tenant's tokens that may do a verb, and which fields each may send with it; None is all.
Team = Collection[str] | Mapping[str, Collection[str] | None]


class RowScope(Enum):
    """Whose rows are: an organization's each; nobody's, which all use; or about all organizations at once."""

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
    """Who may do what with a resource. What a role is not named for is refused.

    `verbs` are writes that other roles than `write` may do. Of `fields` a role with an entry sets those
    alone. Every verb of `OWNED` rows is in one class. `theirs` are an organization's own. `ours` decide what
    it owes or whether it is shut out: a token of one organization does them only where staff marked it.
    `of_all` take a token of all organizations. Fields are named too where they are of another class than
    the verbs that set them.

    `teams` says what tokens of one tenant may: to read, or a verb. All else is refused to them.
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
        """Return the authority that decides on `verb`; staff (`OURS`) decides on verbs of no class."""
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
    """Build an `Access`: an admin may always write, and so may roles in `write`; by default all may read."""
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
    """Return why a caller may not read something; None where that is allowed."""
    if actor.role not in to.read:
        return f"The role of this token, {actor.role}, may not read {name}: that takes {_any_of(to.read)}."
    if actor.organization_id is not None and to.reach is RowScope.WHOLE:
        return f"{_alone(actor)}: {name} is about all of them, and takes a token of all."
    return _refused_team(actor, name, to, READ)


def refused_write(actor: Actor, name: str, to: Access, verb: str, sent: Collection[str] = ()) -> str | None:
    """Return why a caller may not do a verb with these fields; None where that is allowed."""
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
    """Return which of these fields a caller may set."""
    if verb not in {CREATE, CHANGE}:
        return list(names)
    if actor.tenant_id is not None:
        return [name for name in names if _refused_team(actor, "", to, verb, [name]) is None]
    may = to.fields.get(actor.role)
    return [
        name for name in names if _decides(actor, _whose_field(to, name)) and (may is None or name in may)
    ]


def _refused_team(actor: Actor, name: str, to: Access, verb: str, sent: Collection[str] = ()) -> str | None:
    """Return why a token of one tenant may not do something; None of any other token."""
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


# Work for the people of one organization within an hour: CPU, rows, and time. Pure.
#
# It is counted for what costs much by what is asked: reports, files, documents, plans of configuration. An
# hour begins with the first of them. Staff are counted nowhere.

HOUR_S = 3600.0
# Organizations whose hours are known; of more, those that began first are forgotten.
KNOWN_MAX = 10_000


@dataclass(frozen=True, slots=True)
class HourlyBudget:
    """How much of each one organization has."""

    cpu_s: float = HOUR_CPU_S
    rows: int = HOUR_ROWS
    work_s: float = HOUR_WORK_S


HOURLY = HourlyBudget()


@dataclass(slots=True)
class HourlyUse:
    """The use since it began, Unix time."""

    began: float
    cpu_s: float = 0.0
    rows: int = 0
    work_s: float = 0.0


@dataclass(slots=True)
class WorkMeter:
    """The count of the work of one request: none, until its owner is known."""

    hour: HourlyUse | None = field(default=None)


# Of the request that is being answered. What runs for it, tasks and threads too, finds it.
METER: ContextVar[WorkMeter | None] = ContextVar("meter", default=None)


class Hours:
    """The hours of all organizations; `clock` is Unix time."""

    def __init__(self, budget: HourlyBudget, clock: Callable[[], float], known_max: int = KNOWN_MAX) -> None:
        self._budget, self._clock, self._known_max = budget, clock, known_max
        self._known: dict[int, HourlyUse] = {}

    def of(self, organization_id: int) -> HourlyUse:
        """Return an organization's hour; `HourSpent` names the share that it has used up, and the end."""
        now, hour = self._clock(), self._known.get(organization_id)
        if hour is None or not 0 <= now - hour.began < HOUR_S:
            self._known.pop(organization_id, None)
            hour = self._known[organization_id] = HourlyUse(now)
            while len(self._known) > self._known_max:
                del self._known[next(iter(self._known))]
        if spent := self._spent(hour):
            left_s = hour.began + HOUR_S - now
            until = datetime.fromtimestamp(hour.began + HOUR_S, UTC)
            raise HourSpent(
                f"This organization has used up its {spent} an hour for reports, files, documents and plans"
                f" of configuration: there is more from {until:%Y-%m-%dT%H:%M:%SZ} on.",
                ceil(left_s),
            )
        return hour

    def _spent(self, hour: HourlyUse) -> str:
        budget = self._budget
        if hour.cpu_s >= budget.cpu_s:
            return f"{budget.cpu_s:g} s of CPU"
        if hour.rows >= budget.rows:
            return f"{budget.rows:,} rows"
        return f"{budget.work_s:g} s of work" if hour.work_s >= budget.work_s else ""


def count_rows(number: int) -> None:
    """Count rows that were read for the request that is being answered."""
    if (meter := METER.get()) is not None and meter.hour is not None and number > 0:
        meter.hour.rows += number


# The nouns of configuration that is applied: the rows to be written, in one transaction, and the outcome.
#
# Values are plain Python, as in `administration`. Nothing here knows files, HTTP or SQL.
@dataclass(frozen=True, slots=True)
class NewRowId:
    """The id of a row that is made by the step of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What applying noted of a row: the fields that files said of it, and whether it made the row itself."""

    resource: str
    row_id: int | NewRowId
    fields: tuple[str, ...]
    made: bool
    # What files called it, part by part, with the ids of others; None where that was not noted.
    said: tuple[object, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One write; the command's values may hold ids that are `NewRowId`.

    `number` is what `NewRowId` names its row by. `before` are fields as they were read: where they are others
    by now nothing is written. What `may_stay` is left where the store refuses it.
    """

    number: int
    command: Command
    before: Mapping[str, object] = field(default_factory=dict)
    may_stay: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of a step: the row's id, and why it was left where it was."""

    row_id: int
    stays: str = ""


def settled(values: Row, made: Mapping[int, int]) -> Row:
    """Replace each `NewRowId` in `values` by the id that its step made."""
    return {name: made[each.number] if isinstance(each, NewRowId) else each for name, each in values.items()}
