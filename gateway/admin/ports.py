"""The dependencies of the Admin API, which the composition root supplies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from gateway.admin.http.answers import Answers
from gateway.admin.http.work_slots import ConcurrencyLimits
from gateway.core.accounts.administration import Actor, Row
from gateway.core.accounts.hourly_budget import HOURLY, HourlyBudget
from gateway.core.credentials import Peppers
from gateway.core.failures import Failures
from gateway.core.processes import Found
from gateway.errors import Overloaded

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.background.timed.invoicing import AccountCloser
    from gateway.background.timed.pusher import Pusher
    from gateway.background.verifying.reconciler import Reconciler
    from gateway.background.verifying.unreadable import UnreadableAccounts
    from gateway.counters.keeper.activity import Activity
    from gateway.counters.keeper.verification import KeeperCounters
    from gateway.issuers.sign_in import SignIns
    from persistence.resources.console_queries import ConsoleQueries
    from persistence.store import Store

BODY_BYTES_MAX = 256 * 1024
REQUEST_TIMEOUT_S = 30.0
PUSH_TIMEOUT_S = 3.0
PEEK_TIMEOUT_S = 1.0
INLINE_PUSHES_MAX = 64

# Maxima for all requests. One takes a second of CPU at worst; further ones of the organization wait.
ROOM = ConcurrencyLimits(staff_max=32, own_max=2, others_max=128, waiting_max=64)

# A caller that is not identified: without a role it has no rights.
NOBODY = Actor("nobody", "")

Health = Callable[[], Awaitable[tuple[bool, Found]]]
Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]
Mount = Callable[["web.Application", "AdminPorts", str], None]
# Authenticates a caller and returns the ports with its rights; mounts files for the Admin API or the console,
# which authenticate differently.
Admit = Callable[["AdminPorts", "web.Request"], Awaitable["AdminPorts"]]
MountFiles = Callable[["web.Application", "AdminPorts", str, Admit], None]


class Checkout(Protocol):
    """A page where customers pay for credits; `least` and `most` limit a purchase's amount before tax."""

    most: Decimal

    def least(self, currency: str) -> Decimal: ...

    async def page(self, bought: Mapping[str, Any], customer: str | None) -> str:
        """Create the payment page of a purchase, once; return its URL."""


async def no_replay(_: Row, __: int | None) -> Row:
    raise Overloaded("Nothing here can replay budgets.")


@dataclass(slots=True)
class BuiltIn:
    """The admin tokens of the settings, None if not set. Reloading may change them."""

    admin: str | None = field(default=None, repr=False)
    readonly: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AdminPorts:
    """The dependencies of the Admin API.

    Credentials are hashed with `peppers`. `live` and `ready` return whether all is well, and the dependencies
    by name; `metrics` takes an Accept header and returns bytes and their content type, `snapshot` the same
    numbers as data. `failures` counts wrong credentials. `programs` returns the running programs.
    `gateway_url` is the address for calls, or "". `built_in` tokens that are None do not exist. `routes` are
    those of features: each adds its own to the application, under the root of the Admin API or elsewhere.
    `replay` runs a checked replay of budgets in a process of its own, for an organization's people, or staff (None).
    `off` are the console's lists of features that are switched off. `checkout` is None if customers cannot
    buy credits.

    Reads and writes for a request use `of` with its caller only.
    """

    store: Store
    pusher: Pusher
    counters: KeeperCounters
    account_closing: AccountCloser
    reconciler: Reconciler
    unreadable: UnreadableAccounts
    activity: Activity
    programs: Callable[[], Awaitable[Row]]
    peppers: Peppers
    live: Health
    ready: Health
    metrics: Metrics
    snapshot: Callable[[], Awaitable[Mapping[str, Any]]]
    figures: ConsoleQueries
    failures: Failures
    answers: Answers = field(default_factory=Answers)
    built_in: BuiltIn = field(default_factory=BuiltIn)
    sign_ins: SignIns | None = None
    routes: Sequence[Mount] = ()
    files: Sequence[MountFiles] = ()
    off: frozenset[str] = frozenset()
    checkout: Checkout | None = None
    replay: Callable[[Row, int | None], Awaitable[Row]] = no_replay
    actor: Actor = NOBODY
    version: str = "0"
    gateway_url: str = ""
    body_bytes_max: int = BODY_BYTES_MAX
    request_timeout_s: float = REQUEST_TIMEOUT_S
    push_timeout_s: float = PUSH_TIMEOUT_S
    room: ConcurrencyLimits = ROOM
    budget: HourlyBudget = HOURLY

    def of(self, actor: Actor) -> AdminPorts:
        """Return these ports limited to the caller's organization or tenant."""
        realm = actor.realm
        return replace(self, actor=actor, store=self.store.within(realm), figures=self.figures.within(realm))
