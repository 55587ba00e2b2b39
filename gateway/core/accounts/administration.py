"""The nouns of administration: what the Admin API asks of the store, and what it gets back.

Values are plain Python: integers, strings, booleans, `Decimal`, aware `datetime`, dicts and
lists of those. Nothing here knows HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

Row = Mapping[str, object]

# Where in a list a row stands: its order key.
Place = tuple[int | str, ...]

# Longer than any request of the Admin API lives that does not say otherwise.
REQUEST_S_MAX = 35.0

# How long two keys are good where one was made in the place of the other: most deploys take less than a day,
# what is changed by hand may take a month.
OVERLAP_S = 86_400
OVERLAP_S_MAX = 30 * 86_400

# What a row names its organization by.
OWNER = "organization_id"


@dataclass(frozen=True, slots=True)
class KnownPerson:
    """Whom a provider of identities has named: `identity` is who that is there for good, `name` what people
    call them.

    Two providers may name two people alike, and so may one of them: neither word is anybody without the
    `issuer`.
    """

    issuer: str
    identity: str
    name: str

    def is_who(self, other: KnownPerson | None) -> bool:
        """Whether it is the same person, whatever they are called meanwhile."""
        return other is not None and (self.issuer, self.identity) == (other.issuer, other.identity)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: `scope` is unique to the token ("builtin:admin", "token:7").

    Of one organization alone it sees and changes nothing of any other; None is of all. One that `is_ours`
    was given by staff to staff. Who came by a provider of identities is a `person`, whoever else the same
    token stands for.
    """

    scope: str
    role: str
    token_id: int | None = None
    user_id: int | None = None
    organization_id: int | None = None
    person: KnownPerson | None = None
    is_ours: bool = False

    @property
    def claims_as(self) -> str:
        """Whose an `Idempotency-Key` is: the token's, or that of one of the people it stands for."""
        if self.person is None:
            return self.scope
        return f"{self.scope}\t{self.person.issuer}\t{self.person.identity}"  # neither has a tab


# What the clock writes is the keeper's.
KEEPER = Actor("keeper", "admin")


@dataclass(frozen=True, slots=True)
class Claim:
    """An `Idempotency-Key` as one caller sent it, and what was asked (`body_digest` is hex SHA-256).

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
class Committed:
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
    """Who is signed in to the console: the digest of the token that was shown at the door, or of what stands
    for the person whom a provider named.

    `renewal` is what the provider is asked with whether they still may come in, sealed; `is_due` whether it
    is time to. `id_token` is what it is told when they sign out, sealed too.
    """

    id: int
    token_digest: str
    person: KnownPerson | None = None
    renewal: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    is_due: bool = False
