"""What a resource is: its fields, its filters and what may be done with it.

One row of this table makes its routes, its checks, its answers and its part of the OpenAPI
document. Models under `create`, `patch` and `body` say what may be sent; `out` what is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.admin.resources.values import In, Out
from gateway.core.accounts.administration import Row
from gateway.core.accounts.roles import Access
from gateway.core.model import INTEGER_MAX

# What an id refers to; a resource says so where its own refers to something else.
REFERS = {
    "organization_id": "organizations",
    "tenant_id": "tenants",
    "plan_id": "token-plans",
    "token_plan_id": "token-plans",
    "next_plan_id": "subscription-plans",
    "service_id": "services",
    "feature_id": "services",
    "business_model_id": "business-models",
    "user_id": "users",
    "added_by_id": "users",
    "api_key_id": "api-keys",
    "webhook_id": "webhooks",
    "corrects_id": "invoices",
    "invoice_id": "invoices",
}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a filter's value must be: `kind` is id, count, text, uuid or flag.

    `choices` narrow a text, `most` a number.
    """

    kind: str = "id"
    choices: tuple[str, ...] = ()
    most: int = INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number that a report is asked with."""

    hint: str
    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Action:
    """`POST …/{id}/<name>`: answers with the resource, or with the tenant's quota where `quota`.

    Where `settles`, the organization's accounts are closed first: all that happened is stored. One that
    `mints` makes a row with the resource's secret, and answers with it.
    """

    name: str
    summary: str
    body: type[In] | None = None
    quota: bool = False
    settles: bool = False
    mints: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """`GET /<resource>/<name>`: an answer of its own to what the query asks."""

    name: str
    summary: str
    asked: type[In]
    out: type[Out]


@dataclass(frozen=True, slots=True)
class Part:
    """`GET …/{id}/<name>`: a list of what a row has of a kind; a table shows `columns` of it."""

    name: str
    summary: str
    out: type[Out]
    order: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """`POST /<resource>`: one of `body` or a list of them; some may be refused. `name` is its command."""

    name: str
    summary: str
    body: type[In]
    out: type[Out]
    media: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential made on create, answered once in `field`, kept as its digest.

    `kept` keeps it as it is: what signs cannot be a digest. Where the fields of `instead` are set they stand
    in its place, and none is made.
    """

    field: str
    prefix: str
    kept: bool = False
    instead: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What to know of an answer that has it."""
        return f"The {self.field} is not shown again: keep it now."

    def is_made(self, values: Row) -> bool:
        """Whether a row of these values has one."""
        return not self.instead or any(values.get(name) is None for name in self.instead)


@dataclass(frozen=True, slots=True)
class Document:
    """`GET …/{id}<suffix>`: a file made of a row; `formats` are those that `?format=` may ask for.

    One that is `public` needs no token.
    """

    suffix: str
    media: str
    summary: str
    formats: tuple[str, ...] = ()
    public: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """How files of configuration say a row; a resource without it is not configuration.

    `by` are the fields that name a row, the one that people know it by last; they are compared without
    regard to case where `folded`. `needs` must be said although the Admin API takes a row without. `after`
    are resources that have to be there first, besides those whose ids it holds. Rows that `is_gone` says it
    of are not there; those that `is_kept` denies are not exported.

    A row that is never changed has `since`: of those with one name the one with the latest counts, and a
    new one takes its place. Of two of one moment the later row does where `repeats`, else there is one.
    `begins` are fields of a new row alone. A field in `actions` is changed by that action, which may know it
    by another of `words`, and takes the day in the field that `dated` names; where another field says what it
    will be, `becomes` names it.

    Where `known_by_id` several may have one name, which an organization's own people give: what files made is
    known by its id, and what others named so is left to them. `followed_by` names the row that stands in its
    place. Where names are `unique` nonetheless, what others gave one to keeps it until they rename it. What
    others have of what a row `claims`, fields that no two rows have the same of, is theirs until it is gone.
    """

    by: tuple[str, ...] = ("name",)
    folded: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_gone: Callable[[Row], bool] = lambda _: False
    is_kept: Callable[[Row], bool] = lambda _: True
    since: str = ""
    repeats: bool = False
    begins: tuple[str, ...] = ()
    actions: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    dated: Mapping[str, str] = field(default_factory=dict)
    becomes: Mapping[str, str] = field(default_factory=dict)
    known_by_id: bool = False
    followed_by: str = ""
    unique: bool = False
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Answered:
    """What is answered under a name, and to whom.

    `refers` says what its ids refer to where `REFERS` does not say it.
    """

    name: str
    access: Access
    description: str
    out: type[Out]
    refers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What one of its answers is called in the OpenAPI document."""
        return self.out.__name__

    def target(self, name: str) -> str:
        """The resource whose id a field of this one holds; empty if it holds none."""
        return self.refers.get(name) or REFERS.get(name, "")

    def render(self, row: Row) -> Row:
        """Write a row as JSON."""
        return self.out.model_validate(row).model_dump(mode="json")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Report(Answered):
    """One answer about everything: `GET /<name>`, with `numbers` or `asked` as its query; `POST` does `run`.

    `documents` are files of the same answer. Where it is `by_hand` its command is written by hand. What
    `run` answers is `ran`, if it is not the report.
    """

    summary: str
    numbers: Mapping[str, Whole] = field(default_factory=dict)
    asked: type[In] | None = None
    documents: tuple[Document, ...] = ()
    by_hand: bool = False
    run: Action | None = None
    ran: type[Out] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Resource(Answered):
    """One collection of the Admin API; None for a model means it cannot be done.

    `named_by` is the field people know a row by. `live` names what the counters know better (`quota` of a
    tenant, `credits` of an organization, `budgets`). `fixed` says why a field stays as it is. `patch_verb` is
    what `PATCH` does. `settle_first` names the action that must be in force before a row may be deleted.
    """

    named_by: str = "name"
    create: type[In] | None = None
    patch: type[In] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    deletable: bool = False
    live: str = ""
    patch_verb: str = "change"
    filters: Mapping[str, Filter] = field(default_factory=dict)
    order: str = "by id ascending"
    actions: tuple[Action, ...] = ()
    documents: tuple[Document, ...] = ()
    questions: tuple[Question, ...] = ()
    parts: tuple[Part, ...] = ()
    batch: Batch | None = None
    secret: Secret | None = None
    settle_first: str | None = None
    declared: Declared | None = None

    @property
    def known(self) -> Mapping[str, str]:
        """Every field of the resource, sent or answered, and what is said where it cannot be set."""
        return {name: self.fixed.get(name, "cannot be set here") for name in self.out.model_fields}
