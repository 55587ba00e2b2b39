"""Which rows are meant: objects and what they refer to, by name, among what is there and what will be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.admin.configuration.identity import Identity, Which, identity_of, stored, values_of
from gateway.admin.configuration.objects import Errors, Objects, Reference, Wanted
from gateway.admin.configuration.referring import Names, meant
from gateway.admin.configuration.remembered import Remembered, remember
from gateway.admin.configuration.sameness import same
from gateway.admin.configuration.words import declared, references, word
from gateway.admin.http.metered import in_thread
from gateway.admin.ports import Applying
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import Row
from gateway.core.accounts.declaration import Mark, New
from gateway.core.billing.price_book import folded
from gateway.errors import Unprocessable

# So many rows of a kind may have the names that are said; so many may be known to be of files of one name.
ROWS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Pair:
    """An object, and the rows that it may be about, oldest first: one where it is known which is meant.

    `mark` is what was noted of the row before, `passed` are rows in whose place it stands.
    """

    wanted: Wanted
    rows: Sequence[Row]
    mark: Mark | None = None
    passed: Sequence[int] = ()


class Matching:
    """Finds rows kind by kind, in the order in which they can be made.

    `own` is the organization the caller is of: what says none of its own is of that one. `marks` say which
    rows were meant before: those stay the ones meant, whatever others name theirs.
    """

    def __init__(
        self, session: Applying, objects: Objects, own: int | None, errors: Errors,
        marks: Mapping[Which, Mark], *, rows_max: int = ROWS_MAX,
    ) -> None:  # fmt: skip
        self.names = Names(own, errors, marks)
        # Rows that files meant, and whose names are those of other rows now.
        self.replaced: set[Which] = set()
        self._marks = marks
        self._marks_of: dict[str, list[Mark]] = defaultdict(list)
        for mark in marks.values():
            self._marks_of[mark.resource].append(mark)
        self._session = session
        self._objects = objects
        self._errors = errors
        self._rows_max = rows_max
        self._asked: dict[str, set[object]] = defaultdict(set)
        for wanted in (each for some in objects.by_kind.values() for each in some):
            self._ask(wanted.names.values())

    async def match(self, resource: Resource) -> list[Pair]:
        """Find the rows that the objects of a kind name."""
        objects = self._objects.by_kind.get(resource.name, ())
        if not objects and resource.name not in self._asked:
            return []
        refused = len(self._errors)
        whole = await in_thread(lambda: [wanted for wanted in objects if self.names.resolve(wanted)])
        before = await self._before(resource, whole)
        rows = await self._rows(resource, whole)
        claimed = await self._claimed(resource, whole)
        found = await in_thread(self._paired, resource, whole, rows, before, claimed)
        return found if len(self._errors) == refused else []

    async def _before(self, resource: Resource, objects: Sequence[Wanted]) -> Remembered:
        """What these objects, and what is referred to, were before."""
        if not declared(resource).known_by_id:
            return Remembered()
        names = {identity_of(resource, values_of(wanted)) for wanted in objects}
        asked = self._asked.get(resource.name, set())
        found = await remember(self._session, resource, self._marks_of[resource.name], names, asked)
        self.names.lost[resource.name].update(name[-1] for name in found.lost)
        return found

    def _paired(
        self,
        resource: Resource,
        whole: Sequence[Wanted],
        rows: Sequence[Row],
        before: Remembered,
        claimed: Mapping[Identity, Row],
    ) -> list[Pair]:
        """The objects with the rows they are about, all of which may be referred to from now on."""
        kind, how, by_name = resource.name, declared(resource), defaultdict[Identity, list[Row]](list)
        names = [identity_of(resource, values_of(wanted)) for wanted in whole]
        mine = {before.rows[name]["id"] for name in names if name in before.rows}
        for row in rows:
            if row["id"] not in mine:
                by_name[identity_of(resource, row)].append(row)
                self.names.know(resource, row, row["id"])
        for name, row in before.rows.items():
            self.names.know(resource, dict(zip(how.by, name, strict=True)), row["id"], called=True)
        self._refuse_twice(resource, whole)
        if not how.since:
            for name, some in by_name.items():
                by_name[name] = [*meant(kind, some, self._marks)]
        found: list[Pair] = []
        said: set[Identity] = set()
        holders = {identity_of(resource, row): row for row in rows} if how.unique else {}
        for wanted, name in zip(whole, names, strict=True):
            if self._waits(wanted, holders.get(name), before.rows.get(name)):
                continue
            pair = self._pair(wanted, name, by_name.get(name, ()), before)
            if self._waits_for_claimed(pair, claimed):
                continue
            if not pair.rows:
                self.names.know(resource, values_of(wanted), New(wanted.number))
            if name not in said or not pair.rows:
                self.names.said[kind].update([row["id"] for row in pair.rows] or [New(wanted.number)])
            said.add(name)
            found.append(pair)
        return found

    def _waits(self, wanted: Wanted, holder: Row | None, own: Row | None) -> bool:
        """Leave an object whose name another row has: there cannot be two of it."""
        kind = wanted.resource.name
        if holder is None or (own is not None and own["id"] == holder["id"]):
            return False
        never = never_becomes(wanted, holder)
        if own is None and (not never or (kind, holder["id"]) in self._marks):
            return False
        what = f", whose {word(wanted.resource, never[0])} never changes" if never else ""
        why = f"{kind} {holder['id']} has its name{what}: rename or delete that one"
        self.names.left.append((wanted, why))
        return True

    def _waits_for_claimed(self, pair: Pair, claimed: Mapping[Identity, Row]) -> bool:
        """Leave an object without a row, of whose claim another row has; who names it waits as well."""
        wanted, kind, claims = pair.wanted, pair.wanted.resource.name, declared(pair.wanted.resource).claims
        holder = claimed.get(tuple(wanted.values.get(name) for name in claims))
        if holder is None or pair.rows:
            return False
        what = " and ".join(word(wanted.resource, name) for name in claims)
        self.names.left.append((wanted, f"{kind} {holder['id']} has its {what}: revoke that one"))
        self.names.lost[kind].add(values_of(wanted)[declared(wanted.resource).by[-1]])
        return True

    def _pair(self, wanted: Wanted, name: Identity, there: Sequence[Row], before: Remembered) -> Pair:
        """The row that is an object's own; else those of its name, but for what others named so."""
        kind = wanted.resource.name
        passed = before.passed.get(name, ())
        self.replaced.update((kind, row_id) for row_id in (*passed, *before.gone.get(name, ())))
        if name in before.rows:
            return Pair(wanted, [before.rows[name]], before.marks[name], passed)
        known = self._marks.get((kind, there[0]["id"])) if len(there) == 1 else None
        how = declared(wanted.resource)
        if how.known_by_id and known is None:
            is_others = (name in before.lost and not how.unique) or len(there) > 1
            if is_others or any(never_becomes(wanted, row) for row in there):
                return Pair(wanted, ())
        return Pair(wanted, there, known)

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

    async def _claimed(self, resource: Resource, objects: Sequence[Wanted]) -> dict[Identity, Row]:
        """The rows that have what objects claim, by what it is."""
        claims = declared(resource).claims
        some = [each for each in objects if all(each.values.get(name) is not None for name in claims)]
        said = {name: {each.values[name] for each in some} for name in claims}
        rows = await self._read(resource, [said]) if claims else ()
        return {tuple(row[name] for name in claims): row for row in rows}

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

    def _refuse_twice(self, resource: Resource, objects: Sequence[Wanted]) -> None:
        how = declared(resource)
        first: dict[Identity, Wanted] = {}
        for wanted in objects:
            at = wanted.values.get(how.since) if how.since else None
            other = first.setdefault((*identity_of(resource, values_of(wanted)), at), wanted)
            if other is not wanted:
                name = word(resource, how.by[-1])
                self._errors.append((f"{wanted.at}.{name}", f"names the same as {other.at}"))


def never_becomes(wanted: Wanted, row: Row) -> list[str]:
    """The fields that an object says, and that a row never gets."""
    resource, how = wanted.resource, declared(wanted.resource)
    patch = resource.patch.model_fields if resource.patch is not None else {}
    said = values_of(wanted)
    return [
        name
        for name in wanted.fields
        if name not in patch and name not in how.actions and name not in how.begins
        and not same(said[name], stored(resource, row, name))
    ]  # fmt: skip


def _there(values: Iterable[object]) -> set[object]:
    """Those that can be in a row by now."""
    return {each for each in values if not isinstance(each, New)}
