"""The objects of one organization that an import of another gateway's budgets makes, policy by policy.

Each policy is translated whole, into objects that `tollkeeper apply` accepts, or is reported with the reason. A part
of a policy could limit less than the policy does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gateway.admin.configuration.objects import OBJECTS_MAX, read
from gateway.admin.configuration.words import KINDS
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.imports import EVERYBODY, PLAN, Translated, deliver, free_name, read_answer
from gateway.core.accounts.budget_amounts import wrong_amount, wrong_window
from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.groups import GROUPS_MAX
from gateway.errors import Unprocessable

T = TypeVar("T")
# Most characters of a source's name in a name of ours, which has 200.
NAME_CHARS_MAX = 150

# Fields that name an object, where these are not its name alone.
_IDENTITY = {"users": ("external_id",), "api-keys": ("name", "tenant")}

Org = Annotated[str, typer.Option(help="The organization that the budgets belong to.")]
# Files with the pages of a list.
Pages = list[Path] | None
Names = Annotated[
    Pages,
    typer.Option(help="Lists of workspaces, members or keys, as JSON files: names in place of their ids."),
]


class NotTranslated(Exception):
    """A part of a source has no counterpart: the `field` that decides it, and why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why


class NothingAllowed(NotTranslated):
    """An amount of 0 or less: no budget has it, so no key may be made for its calls."""

    def __init__(self, field: str, value: object) -> None:
        super().__init__(field, f"{value}: an amount is above 0. Make no key for these calls")


class Organization:
    """The objects of an organization by kind and name, and what no object stands for. Amounts are US dollars."""

    def __init__(self, name: str, names: Pages, barred: Mapping[str, str] | None = None) -> None:
        """Begin with no objects. `barred` are the names of keys that must not be made, with the place of the reason."""
        self._barred = barred or {}
        # Rows that were not translated.
        self.lost: list[tuple[str, Json]] = []
        self.name, self._made, self._taken = name, Translated(), defaultdict[str, set[str]](set)
        self._rows: dict[str, dict[str, Json]] = {}
        self._names, self._tenants = dict[str, str](), dict[str, str]()
        for _, row in self.read_rows(names):
            if shown := row.get("email") or row.get("name"):
                name_of_row = self.take_name("names", str(shown))
                self._names |= {str(row[field]): name_of_row for field in ("id", "slug") if field in row}
        try:
            self.add(
                organizations=[self.make_organization(currency="USD")], **{"token-plans": [{"name": PLAN}]}
            )
        except NotTranslated as fault:
            raise CommandFailed(f"--org {fault.why}") from fault

    def read_rows(self, pages: Pages, total: str = "") -> list[tuple[str, Json]]:
        """Return the rows of a list with the place of each; the field `total` of its pages has their number.

        Raise `CommandFailed` if a file is no page of a list, if a page is missing, or if two rows of such pages share
        an id and differ.
        """
        rows, most = dict[str, tuple[str, Json]](), 0
        for path in pages or ():
            answer = read_answer(path)
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
                raise CommandFailed(f"{path}: data must be a list of objects, as the API answers it.")
            count = answer.get(total)
            most = max(most, count if isinstance(count, int) else 0)
            for number, row in enumerate(data):
                place = f"{path.name}: data[{number}]"
                first, known = rows.setdefault(str(row.get("id") or place), (place, row))
                if total and known != row:
                    raise CommandFailed(
                        f"{place}.id: {first} has the same id and other fields. Save all pages at one time."
                    )
        if len(rows) < most:
            fault = f"{total} is {most}, and there are {len(rows)} here"
            raise CommandFailed(f"{path}: {fault}. Save the other pages too, and name all files.")
        return list(rows.values())

    @contextmanager
    def translating(self, place: str, row: Json, *known: str) -> Iterator[None]:
        """Report in which field a row cannot be translated, else its fields that are not `known`."""
        try:
            yield
        except NotTranslated as fault:
            of = self._made.shut if isinstance(fault, NothingAllowed) else self._made.left
            of.append((f"{place}.{fault.field}" if fault.field else place, f"{title_of(row)}: {fault.why}"))
            self.lost.append((place, row))
            return
        for field, value in row.items():
            if field not in known and value not in (None, "", [], {}):
                self.leave(f"{place}.{field}", f"{title_of(row)}: it has no counterpart")

    def leave(self, place: str, why: str) -> None:
        self._made.left.append((place, why))

    def shut(self, place: str, key: str) -> None:
        self._made.shut.append((place, f"{key}: no key is made, since a limit of it cannot be said"))

    def note(self, text: str) -> None:
        if text not in self._made.notes:
            self._made.notes.append(text)

    def name_of(self, row_id: object) -> str:
        """Return the name of the workspace, member or key with this id: the id if no list names it, or `EVERYBODY`."""
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
        if name in self._barred:
            raise NotTranslated("", f"a limit of the key {name} cannot be said ({self._barred[name]})")
        owner = {"organization": self.name, "name": self._tenants.setdefault(name, tenant)}
        return {"name": name, "tenant": owner, **fields}

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
