"""What the Admin API needs of the rest: declared here, wired in the composition root."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Protocol, TypeVar

from gateway.admin.http.concurrency import Room
from gateway.admin.http.server import Answers
from gateway.core.accounts.administration import (
    HOURLY,
    Actor,
    Claim,
    Command,
    Committed,
    ConsoleSession,
    HourlyBudget,
    Intent,
    Mark,
    Page,
    Query,
    Ran,
    Replay,
    Row,
    Step,
)
from gateway.core.accounts.budgets import LiveWindow
from gateway.core.accounts.plans import LiveQuota
from gateway.core.accounts.usage import UsageQuery
from gateway.core.billing.finance import Asked, LegPlace
from gateway.core.billing.handover import Collected, Returned
from gateway.core.credentials import Failures, Peppers
from gateway.core.issuers import Arrival
from gateway.core.processes import Found

# What the console asks of providers of identities, and of the store about who is signed in.


class SignIns(Protocol):
    """People who sign in elsewhere. Every method may raise `IssuerUnavailable`, or `NotFound` of a name."""

    @property
    def console_url(self) -> str:
        """Where browsers find the console."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What people read of each provider, by its name."""

    async def address(self, name: str, *, state: str, nonce: str, challenge: str) -> str:
        """Where a person signs in at a provider; `challenge` is PKCE's, by S256."""

    async def redeem(
        self, name: str, *, code: str, issuer: str | None, verifier: str, nonce: str, address: str
    ) -> Arrival:
        """Who came back with a code, from an address; `SignInRefused` where that is nobody to believe."""

    async def renew(self, issuer: str, sealed: str, cookie: str) -> Arrival:
        """Ask whether a person still may come in; `SignInRefused` where they may not."""

    def name_of(self, issuer: str) -> str:
        """What the provider that is this issuer is called here; empty where none of ours is."""

    async def sign_out_address(self, name: str, sealed: str, cookie: str, *, state: str) -> str:
        """Where who is signed out here signs out at a provider too; empty where nowhere, or it is away."""

    def seal(self, renewal: str, cookie: str) -> str:
        """What may be stored of a renewal: the session's cookie alone opens it."""

    def seal_id_token(self, id_token: str, cookie: str) -> str:
        """The same of an ID token."""


class KeptSessions(Protocol):
    """Sessions of the console, as PostgreSQL has them."""

    async def use_sign_in(self, state: str) -> bool:
        """Note that somebody came back from a sign-in, by its state; False where somebody did before."""

    async def console_session(self, digest: str) -> ConsoleSession | None:
        """Find a session of the console that is not over."""

    async def mail_consent(self, digest: str) -> Row | None:
        """What a link of a mail asks: `organization`, `address`, `given_at`; None where it is not good."""

    async def consent_to_mail(self, digest: str, *, given: bool) -> bool:
        """Let mail be sent to the address of a link, or no more; False where the link is not good."""

    async def ask_of_session(self, session_id: int) -> bool:
        """Take it upon the caller to ask whether its person still may come in; False where another does."""

    async def keep_renewal(self, session_id: int, renewal: str, *, vouched: bool) -> None:
        """Keep what is asked with next; the session goes on where its person was `vouched` for."""


# What the Admin API needs of whoever compares counters and ledger.


class Reconciler(Protocol):
    """Compares the counters with the ledger."""

    async def last(self) -> Row | None:
        """The last kept result."""

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Have the only run of all keepers at a time; `Overloaded` while there is another."""

    async def run_now(self, *, repair: bool = False, whole: bool = False, within_s: float) -> Row:
        """Compare everything, keep and answer the result; make drifts good, read all rows only if asked."""


T = TypeVar("T")

BODY_BYTES_MAX = 256 * 1024
REQUEST_TIMEOUT_S = 30.0
PUSH_TIMEOUT_S = 3.0
PEEK_TIMEOUT_S = 1.0
INLINE_PUSHES_MAX = 64

# Of all requests, whatever they ask. One takes a second of CPU at worst; the rest of an organization's wait.
ROOM = Room(staff_max=32, own_max=2, others_max=128, waiting_max=64)

# Whoever was not identified: no role is allowed anything.
NOBODY = Actor("nobody", "")

Health = Callable[[], Awaitable[tuple[bool, Found]]]
Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]


class Applying(Protocol):
    """One transaction, in which configuration is compared with what is there and written."""

    async def hold(self) -> None:
        """Let nobody else of the caller's organization, or of staff, apply until the transaction ends."""

    async def hold_touched(self, touched: Sequence[tuple[str, int | None, Row]]) -> bool:
        """Let nobody of the organizations that staff's writes touch apply either; whether that had to wait.

        A write is the kind of its row, its id where there is one, and ids of others by the names of fields.
        """

    async def claim(self, claim: Claim) -> Replay | None:
        """Take an idempotency key, or answer what was answered first."""

    async def keep(self, claim: Claim, body: Row) -> None:
        """Keep what would be answered under a claim if nothing more came."""

    async def find(
        self, resource: str, wanted: Mapping[str, Collection[object]], rows_max: int, *, folded: bool = False
    ) -> Sequence[Row]:
        """Read the rows whose fields each are one of these, by id, one more than `rows_max` at most.

        A-Z and a-z are the same in texts where `folded`.
        """

    async def every(self, resource: str, rows_max: int) -> Sequence[Row]:
        """Read all rows, one more than `rows_max` at most."""

    async def marks(self, owner: int, name: str, rows_max: int) -> Sequence[Mark]:
        """Read what was noted of rows by those who applied under a name, one more than `rows_max` at most."""

    async def run(self, steps: Sequence[Step]) -> Mapping[int, Ran]:
        """Do them, in order; `StepRefused` tells which one the store refuses."""

    async def note(self, owner: int, name: str, marks: Sequence[Mark], forgotten: Sequence[Mark]) -> None:
        """Keep marks, and drop others."""

    @property
    def intents(self) -> Sequence[Intent]:
        """The control writes that the steps have left behind."""


class Store(KeptSessions, Protocol):
    """PostgreSQL, as the Admin API sees it. Every method may raise `AdminRefusal`."""

    async def applying(self, work: Callable[[Applying], Awaitable[T]], *, keep: bool) -> T:
        """Do the work in one transaction; what it wrote is undone unless it is to `keep`."""

    def within(self, organization_id: int | None) -> Store:
        """The same for whom there is nothing but an organization's own, and what is everybody's."""

    async def get(self, resource: str, row_id: int) -> Row:
        """Read one row; `NotFound` if there is none."""

    async def page(self, resource: str, query: Query) -> Page:
        """Read rows in the resource's stable order."""

    async def count(self, resource: str, query: Query, most: int, within_ms: int) -> int | None:
        """Count rows, one more than `most` at most; None where that takes longer than `within_ms`."""

    async def write(self, command: Command) -> Committed | Replay:
        """Do one write in one transaction; `Conflict` for a claim that runs or asked something else."""

    async def refuse_other(self, claim: Claim) -> None:
        """Raise `Conflict` where the claim's key stands for another request."""

    async def finish(self, claim: Claim, status: int, body: Row) -> None:
        """Keep the answer that was given under a claim."""

    async def document(self, invoice_id: int, kind: str, status: str, made: bytes = b"") -> bytes | None:
        """Read a document as it was made the first time; what is `made` is kept where nobody was first."""

    async def refusal(self, intents: Sequence[str]) -> str | None:
        """Say why the counters refused one of these control writes; None if they did not."""

    async def prices_of(self, model: str, currency: str, at: datetime) -> Sequence[Row]:
        """Read the prices a model may have had at a time."""

    async def used(self, asked: UsageQuery) -> Sequence[Row]:
        """Add up calls; at most `rows_max` rows."""

    async def unbilled(self, organization_id: int) -> Sequence[Row]:
        """Read what an organization owes and no invoice has, by kind."""

    async def report(self, name: str, asked: Asked, after: int, rows_max: int) -> Sequence[Row]:
        """Read some rows of a report for finance that is no ledger, in its order, behind so many."""

    async def ledger(self, asked: Asked, after: LegPlace, rows_max: int) -> Sequence[Row]:
        """Read some legs of the entries of a time, in their order, behind a place."""

    def entries(self, asked: Asked) -> AsyncIterator[Sequence[Row]]:
        """Read the legs of all entries of a time, in batches."""

    def usage(self, invoice_id: int) -> AsyncIterator[bytes]:
        """Write what an invoice is made of as CSV, in pieces: charges, and every use behind them."""

    async def collected(self, told: Collected) -> bool:
        """Take what was told of an invoice that was handed over, once; False where it is none."""

    async def staff_token(self, digest: str) -> Actor | None:
        """Find a named admin token that is neither expired nor revoked."""

    async def has_ended_token(self, digest: str) -> bool:
        """Whether there is a named admin token that is expired or revoked."""


class Pusher(Protocol):
    """Brings control writes into the counters."""

    async def push(self, accounts: Sequence[str]) -> Sequence[str]:
        """Apply what waits for accounts, each one's in order; answers with those that are left."""


class Counters(Protocol):
    """The counters, read only. What they have and nobody can read is in no answer."""

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Read the quotas of (partition, tenant id) pairs; None for a tenant that is not loaded."""

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        """Read the credits of (partition, organization id) pairs; None for one that is not loaded."""

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> Mapping[str, Mapping[int, LiveWindow] | None]:
        """Read windows, by budget, of (partition, account name) pairs; None for one that is not there."""


class AccountClosing(Protocol):
    """The accounts of an organization, brought to a close before an invoice is final."""

    async def close(self, organization_id: int) -> None:
        """Wait until its accounts are swept, stored and agree; `Conflict` says what does not."""


class InvoiceRenderer(Protocol):
    """Makes documents that are sent to customers."""

    @property
    def seller(self) -> str:
        """The name of who sends invoices; empty where it is not set."""

    def pdf(self, invoice: Row, xml: bytes = b"") -> bytes:
        """Set an invoice, as the API answers it, on paper; it carries the XML where there is one."""

    def xml(self, invoice: Row, syntax: str) -> bytes:
        """Write an invoice as an electronic one; `Unprocessable` names what is missing to that."""


class Activity(Protocol):
    """What tenants did within the last minute, over all gateways."""

    async def read(self, window_s: int) -> tuple[list[tuple[tuple[int, str], int]], float]:
        """Counts by tenant id and kind, and of how many seconds; `CountersUnavailable` if nobody knows."""


class Figures(Protocol):
    """PostgreSQL, as the console's pages read it beyond the resources; `named` are what has names."""

    named: frozenset[str]

    def within(self, organization_id: int | None) -> Figures:
        """The same for whom there is nothing but an organization's own, and what is everybody's."""

    async def names(self, resource: str, ids: Collection[int]) -> Mapping[int, str]:
        """The names of rows; an id without a row is left out."""

    async def quotas(self, tenant_ids: Collection[int]) -> Sequence[Row]:
        """Quotas of tenants as last flushed, each with its partition."""

    async def tenants_of(self, organization_id: int, most: int) -> int:
        """How many tenants an organization has, `most` where there are more."""

    async def organization_days(self, organization_id: int, since: date, rows_max: int) -> Sequence[Row]:
        """An organization's use by day and service, oldest first."""

    async def invoice_lines(self, invoice_id: int, after: int, rows_max: int) -> Sequence[Row]:
        """An invoice's lines after a position, in order."""

    async def budget_accounts(self, budget_id: int, start: datetime, rows_max: int) -> Sequence[Row]:
        """Accounts of a budget in the window that began then, those that used most first."""

    async def busiest(self, day: date, rows_max: int) -> Sequence[Row]:
        """The tenants that used most tokens on a UTC day, most first, each with the sums of all (`all_…`)."""


@dataclass(slots=True)
class BuiltIn:
    """The tokens that settings name, None where they name none. They may change while it runs."""

    admin: str | None = field(default=None, repr=False)
    readonly: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AdminPorts:
    """Everything the Admin API is made of.

    `peppers` are what credentials are digested under. `live` and `ready`
    answer (well?, dependencies by name); `metrics` takes an Accept header and answers bytes
    and their content type, `snapshot` the same numbers as plain data. `failures`
    counts wrong credentials. `programs` says who runs. A token that is None does not exist. `read_collected`
    reads what Stripe sends, and how it is signed; None where nobody hands over. `look_up_returned` finds what
    money that went back is about; None where Stripe is never asked.

    What a request is answered with is read and written through `of` its caller alone.
    """

    store: Store
    pusher: Pusher
    counters: Counters
    account_closing: AccountClosing
    invoice_renderer: InvoiceRenderer
    reconciler: Reconciler
    activity: Activity
    programs: Callable[[], Awaitable[Row]]
    peppers: Peppers
    live: Health
    ready: Health
    metrics: Metrics
    snapshot: Callable[[], Awaitable[Mapping[str, Any]]]
    figures: Figures
    failures: Failures
    answers: Answers = field(default_factory=Answers)
    built_in: BuiltIn = field(default_factory=BuiltIn)
    sign_ins: SignIns | None = None
    read_collected: Callable[[bytes, str], Collected | Returned | None] | None = None
    look_up_returned: Callable[[Returned], Awaitable[Sequence[Collected]]] | None = None
    actor: Actor = NOBODY
    version: str = "0"
    body_bytes_max: int = BODY_BYTES_MAX
    request_timeout_s: float = REQUEST_TIMEOUT_S
    push_timeout_s: float = PUSH_TIMEOUT_S
    room: Room = ROOM
    budget: HourlyBudget = HOURLY

    def of(self, actor: Actor) -> AdminPorts:
        """The same as a caller has them: of one organization's nothing of any other is there."""
        within = actor.organization_id
        return replace(
            self, actor=actor, store=self.store.within(within), figures=self.figures.within(within)
        )
