"""The objects of one organization that an import of another gateway's budgets makes, policy by policy.

Each policy is translated whole, into objects that `tollkeeper apply` accepts, or is reported with the reason. A part
of a policy could limit less than the policy does. Keys that a reported policy may limit are not made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gateway.admin.configuration.objects import OBJECTS_MAX, read
from gateway.admin.configuration.words import KINDS
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.imports import (
    EVERYBODY,
    LIMIT,
    PLAN,
    Pages,
    Translated,
    deliver,
    free_name,
    is_empty,
    leaves,
    read_rows,
)
from gateway.core.accounts.budget_amounts import wrong_amount, wrong_window
from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.groups import GROUPS_MAX
from gateway.errors import Unprocessable

T = TypeVar("T")
# Most characters of a source's name in a name of ours, which has 200.
NAME_CHARS_MAX = 150

# Fields of rows of lists that may end the use of a key or workspace.
_ENDS = (".disabled", ".expires_at", ".status")
# Fields that name an object, where these are not its name alone.
_IDENTITY = {"users": ("external_id",), "api-keys": ("name", "tenant")}

Org = Annotated[str, typer.Option(help="The organization that the budgets belong to.")]
Names = Annotated[
    Pages,
    typer.Option(help="Lists of workspaces, members or keys, as JSON files: names in place of their ids."),
]


class NotTranslated(Exception):
    """A part of a source has no counterpart: the `field` that decides it, and why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why


class NoLimit(NotTranslated):
    """A row has no counterpart, and limits no key."""


class Organization:
    """The objects of an organization by kind and name, and what no object stands for. Amounts are US dollars."""

    def __init__(self, name: str, names: Pages, barred: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Begin with no objects. `barred` are the names of keys that must not be made, with the place and the reason."""
        self.barred = barred or {}
        # Places and reasons of lost limits, and what returns the names of the keys that each may limit.
        self.lost: list[tuple[str, str, Callable[[], Collection[str]]]] = []
        self.name, self._made, self._taken = name, Translated(), defaultdict[str, set[str]](set)
        self._rows: dict[str, dict[str, Json]] = {}
        # Names by ids, the tenants that keys were named with, and the ids of members who made keys, by the keys' names.
        self._names, self._tenants = dict[str, str](), defaultdict[str, list[str]](list)
        self.makers: dict[str, str] = {}
        for place, row in read_rows(names, is_whole=False):
            ids = [str(row[field]) for field in ("id", "slug", "hash") if row.get(field)]
            shown = row.get("email") or row.get("name")
            name_of_row = next((self._names[of] for of in ids if of in self._names), "")
            if not name_of_row:
                name_of_row = self.take_name("names", str(shown)) if shown else "".join(ids[:1])
            self._names |= dict.fromkeys(ids, name_of_row)
            if maker := row.get("creator_user_id"):
                self.makers[name_of_row] = str(maker)
            for field, value in leaves(row, place):
                own = field.removeprefix(place)
                is_end = own in _ENDS and value != "active"
                if value is not False and (is_end or LIMIT.search(own)):
                    why = "it may end its use" if is_end else "it may be a limit"
                    self.lost.append((field, why, partial(self.keys_of, [name_of_row])))
        try:
            self.add(
                organizations=[self.make_organization(currency="USD")], **{"token-plans": [{"name": PLAN}]}
            )
        except NotTranslated as fault:
            raise CommandFailed(f"--org {fault.why}") from fault

    @contextmanager
    def translating(
        self, place: str, row: Json, known: Collection[str], harmless: Collection[str],
        keys_of: Callable[[], Collection[str]],
    ) -> Iterator[None]:  # fmt: skip
        """Report in which field a row cannot be translated, or which of its `harmless` fields are left out.

        Fields that are not `known` either may be limits: their row is not translated, and what it added is removed.
        `keys_of` returns the names of the keys that the row may limit, once all rows are read.
        """
        before, fault = self._rows, None
        try:
            yield
        except NotTranslated as raised:
            fault = raised
        fields = [field for field, value in row.items() if not is_empty(value)]
        unknown = [field for field in fields if field not in {*known, *harmless}]
        if unknown and (fault is None or isinstance(fault, NoLimit)):
            fault = NotTranslated(unknown[0], "it has no counterpart")
        named = [(field, "it has no counterpart") for field in fields if field in harmless]
        named = named if fault is None else [(fault.field, fault.why)]
        of = [(f"{place}.{field}" if field else place, f"{title_of(row)}: {why}") for field, why in named]
        if fault is None or isinstance(fault, NoLimit):
            self._made.left += of
            return
        self._made.shut += of
        self.lost.append((of[0][0], fault.why, keys_of))
        self._rows = before

    def keys_of(self, names: Collection[str] = ()) -> list[str]:
        """Return the names of all keys made so far: if `names` are given, of those that are one, or in one of these tenants."""
        keys = [row["name"] for row in self._rows.get("api-keys", {}).values()]
        return [key for key in keys if not names or {*names} & {key, *self._tenants[key]}]

    def note(self, text: str) -> None:
        if text not in self._made.notes:
            self._made.notes.append(text)

    def name_of(self, row_id: object, shown: object = None) -> str:
        """Return the name of the workspace, member or key with this id: if no list has it, as `shown`, or the id.

        Without an id it is `EVERYBODY`.
        """
        if shown and row_id and str(row_id) not in self._names:
            self._names[str(row_id)] = self.take_name("names", str(shown))
        return self._names.get(str(row_id), str(row_id)) if row_id else EVERYBODY

    def take_name(self, kind: str, name: str) -> str:
        """Return a name that no other object of a kind has."""
        name = free_name(name[:NAME_CHARS_MAX], self._taken[kind])
        self._taken[kind].add(name)
        return name

    def make_organization(self, **fields: Any) -> Json:
        return {"name": self.name, **fields}

    def make_tenant(self, name: str, **fields: Any) -> Json:
        return {"name": name, "organization": self.name, "plan": PLAN, **fields}

    def make_key(self, name: str, tenant: str, **fields: Any) -> Json:
        """Return an API key, of its first tenant if it was named before; raise `NotTranslated` for a barred one."""
        self._tenants[name].append(tenant)
        if name in self.barred:
            raise NotTranslated("", f"a limit of the key {name} cannot be said ({self.barred[name][0]})")
        return {"name": name, "tenant": {"organization": self.name, "name": self._tenants[name][0]}, **fields}

    def make_group(self, name: str, kind: str, members: Sequence[str]) -> Json:
        name, members = self.take_name("groups", name), [*dict.fromkeys(members)]
        return {"name": name, "organization": self.name, "kind": kind, "members": members}

    def make_budget(self, name: str, **fields: Any) -> Json:
        return {"name": self.take_name("budgets", name), "organization": self.name, **fields}

    def add(self, **objects: Sequence[Json]) -> None:
        """Add objects by kind; raise `NotTranslated`, and add none, if `tollkeeper apply` refuses one."""
        rows: dict[str, dict[str, Json]] = {}
        for kind, wanted in objects.items():
            for row in wanted:
                which = str([row.get(field) for field in _IDENTITY.get(kind, ("name",))])
                of_kind = rows.setdefault(kind, {})
                known = of_kind.get(which) or self._rows.get(kind, {}).get(which)
                of_kind[which] = _merge(known, row) if known else row
        try:
            accepted = read({kind: [*named.values()] for kind, named in rows.items()}, datetime.now(UTC))
        except Unprocessable as refused:
            raise NotTranslated("", ": ".join(refused.errors[0])) from refused
        for budget in accepted.by_kind.get("budgets", ()):
            for field, why in _faults(budget.full()):
                raise NotTranslated("", f"budgets.{field}: {why}")
        everything = {kind: self._rows.get(kind, {}) | rows.get(kind, {}) for kind in {**self._rows, **rows}}
        if sum(map(len, everything.values())) > OBJECTS_MAX or len(everything.get("groups", ())) > GROUPS_MAX:
            raise NotTranslated("", f"there may be {OBJECTS_MAX} objects, {GROUPS_MAX} of them groups")
        self._rows = everything

    def deliver(self, to: Path, *, as_json: bool) -> None:
        """Write the files of the translation to a new directory, and print what it left out."""
        self.note("Use so far is not taken over: each budget begins at 0.")
        deliver(self.finish(), to, as_json=as_json)

    def finish(self) -> Translated:
        """Return the translation, with its objects in the order in which rows can be made."""
        self._made.objects = {kind: [*self._rows[kind].values()] for kind in KINDS if kind in self._rows}
        return self._made


def translate_all(name: str, names: Pages, translate: Callable[[Organization], None]) -> Organization:
    """Return an organization with all that `translate` adds to it, but no keys that a row which is lost may limit.

    Other rows that need such a key are lost, too, which may bar more keys.
    """
    barred: dict[str, tuple[str, str]] = {}
    while True:
        translate(made := Organization(name, names, barred))
        lost = {key: (place, why) for place, why, keys_of in reversed(made.lost) for key in keys_of()}
        if lost.keys() <= barred.keys():
            break
        barred = lost | barred
    shut = [(place, f"{key}: no key is made ({why})") for key, (place, why) in barred.items()]
    made.finish().shut.extend(shut)
    return made


def title_of(row: Json) -> str:
    return str(row.get("name") or row.get("id") or "without a name")


def read_amount(value: object, unit: str, field: str) -> Any:
    """Return a number of the source as a budget's amount; raise `NotTranslated` if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotTranslated(field, "must be a number")
    amount = Decimal(str(value))
    if not amount.is_finite() or (unit != MONEY and amount != amount.to_integral_value()):
        raise NotTranslated(field, f"{value}: must be a {'' if unit == MONEY else 'whole '}number")
    return f"{amount.normalize():f}" if unit == MONEY else int(amount)


def choose(row: Json, field: str, choices: Mapping[Any, T]) -> T:
    """Return what the value of a field stands for; raise `NotTranslated` with all values if it is none of them."""
    value = row.get(field)
    if not isinstance(value, str | None) or value not in choices:
        names = ", ".join("null" if name is None else name for name in choices)
        raise NotTranslated(field, f"must be one of {names}")
    return choices[value]


def _faults(values: Any) -> Iterator[tuple[str, str]]:
    """Yield (field, fault) for each error of a budget and its overrides."""
    yield from wrong_window(values)
    for own in values["overrides"]:
        yield from wrong_amount(values["unit"], own["amount"], "overrides", least=0)


def _merge(known: Json, row: Json) -> Json:
    """Return an object with the fields of two: of limits the smaller, of models the common ones."""
    made = known | row
    for field in known.keys() & row.keys():
        first, second = known[field], row[field]
        if field in ("limits", "user_limits"):
            made[field] = first | {name: min(most, first.get(name, most)) for name, most in second.items()}
        elif field == "models":
            made[field] = [model for model in first if model in second]
        elif isinstance(first, list):
            made[field] = [*first, *(part for part in second if part not in first)]
    return made
