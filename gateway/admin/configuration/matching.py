"""Which rows are meant: objects and what they refer to, by name, among what is there and what will be."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from gateway.admin.configuration.objects import ERRORS_MAX, Errors, Objects, Reference, Wanted
from gateway.admin.configuration.threads import in_thread
from gateway.admin.configuration.words import declared, references, word
from gateway.admin.ports import Applying
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import OWNER, Row
from gateway.core.accounts.declaration import Mark, New
from gateway.core.billing.price_book import folded
from gateway.errors import Unprocessable

# So many names are looked through for one that was meant.
NAMES_SUGGESTED_MAX = 1_000
# So many rows of a kind may have the names that are said; so many may be known to be of files of one name.
ROWS_MAX = 100_000

Identity = tuple[object, ...]
# An object, and the rows that have its name, oldest first: one where it is known which is meant.
Pair = tuple[Wanted, Sequence[Row]]
Which = tuple[str, object]


class Matching:
    """Finds rows kind by kind, in the order in which they can be made.

    `own` is the organization the caller is of: what says none of its own is of that one. `marks` say which
    rows were meant before: those stay the ones meant, whatever others name theirs.
    """

    def __init__(
        self, session: Applying, objects: Objects, own: int | None, errors: Errors,
        marks: Mapping[Which, Mark], *, rows_max: int = ROWS_MAX,
    ) -> None:  # fmt: skip
        # Rows that were named by less than their whole name: another may have that name tomorrow.
        self.referred: dict[Which, None] = {}
        self._marks = marks
        self._said: dict[str, set[object]] = defaultdict(set)
        # What a name of a kind stands for: thousands of rows may have it, and thousands of objects say it.
        self._known: dict[tuple[str, object], Sequence[object]] = {}
        self._session = session
        self._objects = objects
        self._own = own
        self._errors = errors
        self._rows_max = rows_max
        # What is there or will be of a kind, by the last part of names and by whole ones.
        self._named: dict[str, dict[object, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._whole: dict[str, dict[Identity, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._asked: dict[str, set[object]] = defaultdict(set)
        for wanted in (each for some in objects.by_kind.values() for each in some):
            self._ask(wanted.names.values())

    async def match(self, resource: Resource) -> list[Pair]:
        """Find the rows that the objects of a kind name."""
        objects = self._objects.by_kind.get(resource.name, ())
        if not objects and resource.name not in self._asked:
            return []
        refused = len(self._errors)
        whole = await in_thread(lambda: [wanted for wanted in objects if self._resolve(wanted)])
        rows = await self._rows(resource, whole)
        found = await in_thread(self._paired, resource, whole, rows)
        return found if len(self._errors) == refused else []

    def _paired(self, resource: Resource, whole: Sequence[Wanted], rows: Sequence[Row]) -> list[Pair]:
        """The objects with the rows of their names, all of which may be referred to from now on."""
        by_name: dict[Identity, list[Row]] = defaultdict(list)
        for row in rows:
            by_name[identity_of(resource, row)].append(row)
            self._know(resource, row, row["id"])
        found: list[Pair] = []
        self._refuse_twice(resource, whole)
        if not declared(resource).since:
            by_name = {name: [*meant(resource.name, some, self._marks)] for name, some in by_name.items()}
        said: set[Identity] = set()
        for wanted in whole:
            name = identity_of(resource, values_of(wanted))
            there: Sequence[Row] = by_name.get(name, ())
            if not there:
                self._know(resource, values_of(wanted), New(wanted.number))
            if name not in said or not there:
                self._said[resource.name].update([row["id"] for row in there] or [New(wanted.number)])
            said.add(name)
            found.append((wanted, there))
        return found

    def _ask(self, names: Iterable[object]) -> None:
        for each in names:
            if isinstance(each, Reference):
                self._asked[each.target.name].add(each.name)
                self._ask(each.says.values())

    async def _rows(self, resource: Resource, objects: Sequence[Wanted]) -> list[Row]:
        """Rows that may be meant, by the part of their names that tells most."""
        how = declared(resource)
        last, ids = how.by[-1], references(resource)
        key = how.by[0] if last in ids else last
        asked = self._asked.get(resource.name, set())
        values = [values_of(each) for each in objects]
        if how.folded:
            names: set[object] = {folded(str(each)) for each in asked.union(each[key] for each in values)}
            return await self._read(resource, [{key: names}])
        # What others refer to may be of anybody; what objects say themselves is of those they name.
        parents = [name for name in how.by if name != key and name in ids]
        said = {name: _there(each[name] for each in values) for name in (key, *parents)}
        said[key] -= asked
        return await self._read(resource, [{key: asked}, said])

    async def _read(self, resource: Resource, searches: Sequence[Mapping[str, set[object]]]) -> list[Row]:
        """The rows that any of the searches finds and that are not gone; `Unprocessable` for too many."""
        how, found = declared(resource), list[Row]()
        for wanted in searches:
            if all(wanted.values()):
                left = self._rows_max - len(found)
                found += await self._session.find(resource.name, wanted, left, folded=how.folded)
            if len(found) > self._rows_max:
                message = f"more than {self._rows_max} rows have these names: apply fewer objects at once"
                raise Unprocessable(errors=((resource.name, message),))
        return [row for row in found if not how.is_gone(row)]

    def _know(self, resource: Resource, by: Row, row_id: object) -> None:
        how = declared(resource)
        self._named[resource.name][by[how.by[-1]]].append(row_id)
        self._whole[resource.name][tuple(by[name] for name in how.by)].append(row_id)

    def _resolve(self, wanted: Wanted) -> bool:
        """Find what an object refers to; False where something is not there, or enough is wrong already."""
        if len(self._errors) >= ERRORS_MAX:
            return False
        ids = references(wanted.resource)
        if self._own is not None and OWNER in ids and wanted.names.get(OWNER) is None:
            wanted.ids[OWNER] = self._own
        for name in ids:
            reference = wanted.names.get(name)
            if reference is None:
                if name in wanted.names:
                    wanted.ids.setdefault(name, None)
                continue
            try:
                wanted.ids[name] = self._find(reference, wanted.ids | dict(wanted.values))
            except LookupError as error:
                self._errors.append((f"{wanted.at}.{word(wanted.resource, name)}", str(error.args[0])))
                return False
        return True

    def _find(self, reference: Reference, scope: Mapping[str, object]) -> object:
        """The id of a row that is named; of what both have, it has the same."""
        how, target = declared(reference.target), reference.target
        said = {
            name: self._find(each, scope) if isinstance(each, Reference) else each
            for name, each in reference.says.items()
        }
        shared = {name: scope[name] for name in how.by[:-1] if scope.get(name) is not None}
        wanted = {**shared, **said}
        named: Sequence[object] = self._named[target.name].get(reference.name, ())
        name, found = reference.name, named
        if wanted.keys() >= {*how.by}:
            name = tuple(wanted[name] for name in how.by)
            found = self._whole[target.name].get(name, ())
        one = target.name.removesuffix("s")
        found = self._decided(target.name, name, found)
        if len(found) == 1:
            if len(how.by) > len(wanted) and not isinstance(found[0], New):
                self.referred[target.name, found[0]] = None
            return found[0]
        if found:
            fields = ", ".join(word(target, name) for name in how.by)
            more = f"say {{{fields}}}" if len(how.by) > len(wanted) else "give all but one another name"
            raise LookupError(f"there are {len(found)} {target.name} named {reference.name!r}: {more}")
        if named:
            raise LookupError(f"there is {one} {reference.name!r}, but of another {word(target, how.by[0])}")
        others = [str(known) for known in islice(self._named[target.name], NAMES_SUGGESTED_MAX) if known]
        meant = difflib.get_close_matches(str(reference.name), others, 1)
        suggestion = f"did you mean {meant[0]!r}?" if meant else "no object here makes one"
        raise LookupError(f"there is no {one} named {reference.name!r}; {suggestion}")

    def _decided(self, kind: str, name: object, found: Sequence[object]) -> Sequence[object]:
        """Of rows of one name the one that these objects are about, else the one that was meant before."""
        if len(found) < 2:
            return found
        known = self._known.get((kind, name))
        if known is None:
            known = [each for each in found if each in self._said[kind]]
            known = known or [row["id"] for row in meant(kind, [{"id": each} for each in found], self._marks)]
            self._known[kind, name] = known
        return known

    def _refuse_twice(self, resource: Resource, objects: Sequence[Wanted]) -> None:
        how = declared(resource)
        first: dict[Identity, Wanted] = {}
        for wanted in objects:
            at = wanted.values.get(how.since) if how.since else None
            other = first.setdefault((*identity_of(resource, values_of(wanted)), at), wanted)
            if other is not wanted:
                name = word(resource, how.by[-1])
                self._errors.append((f"{wanted.at}.{name}", f"names the same as {other.at}"))


def meant(kind: str, rows: Sequence[Row], marks: Mapping[Which, Mark]) -> Sequence[Row]:
    """Of rows of one name the one that applying made, or took for its own: all of them where none is."""
    if len(rows) < 2:
        return rows
    noted = [(row, marks[kind, row["id"]]) for row in rows if (kind, row["id"]) in marks]
    made = [row for row, mark in noted if mark.made]
    for known in (made, [row for row, _ in noted]):
        if len(known) == 1:
            return known
    return rows


def _there(values: Iterable[object]) -> set[object]:
    """Those that can be in a row by now."""
    return {each for each in values if not isinstance(each, New)}


def values_of(wanted: Wanted) -> Row:
    """What an object says, or means where it says nothing, with the ids of others."""
    defaults = {name: getattr(wanted.row, name) for name in declared(wanted.resource).by}
    for name in references(wanted.resource):
        if name in defaults:
            defaults[name] = None
    return {**defaults, **wanted.values, **wanted.ids}


def identity_of(resource: Resource, values: Row) -> Identity:
    """All that a row is named by."""
    how = declared(resource)
    found = (values[name] for name in how.by)
    return tuple(folded(str(each or "")) for each in found) if how.folded else tuple(found)
