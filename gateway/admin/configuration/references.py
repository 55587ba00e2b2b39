"""Finds the rows that objects and their references mean, by name, among stored and planned rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.admin.configuration.comparison import same
from gateway.admin.configuration.objects import (
    ERRORS_MAX,
    ConfigObjects,
    Errors,
    Identity,
    Reference,
    WantedObject,
    Which,
    identity_of,
    shorten_name,
    stored,
    values_of,
)
from gateway.admin.configuration.suggestions import SUGGESTED_MAX, suggestion
from gateway.admin.configuration.words import KINDS, NamedPart, declared, references, with_keys, word
from gateway.admin.http.guard import in_thread
from gateway.admin.resources.resource import Resource
from gateway.core.accounts.administration import OWNER, Mark, NewRowId, Row
from gateway.core.billing.price_book import folded
from gateway.errors import Unprocessable

if TYPE_CHECKING:
    from persistence.apply_transaction import ApplyTransaction


# Resolution of references among stored and planned rows.
class _Unknown(LookupError):
    """A reference to a name that no row has, with its kind."""

    def __init__(self, kind: str, name: object) -> None:
        super().__init__(f"{_there_is_no(kind, name)}; no object here makes one")
        self.which = (kind, name)


class NameIndex:
    """An index of stored and planned rows by kind and name, for resolving references."""

    def __init__(self, own: int | None, errors: Errors, marks: Mapping[Which, Mark]) -> None:
        # Rows whose names other rows may get later, with their full names.
        self.referred: dict[Which, Identity | None] = {}
        # Objects that refer to a row that was lost: only they are deferred.
        self.left: list[tuple[WantedObject, str]] = []
        # Ids of the objects' rows, and names of lost rows, by kind.
        self.said: dict[str, set[object]] = defaultdict(set)
        self.lost: dict[str, set[object]] = defaultdict(set)
        self._own_organization = own
        self._errors = errors
        self._marks = marks
        self._unknown: list[tuple[int, str, object]] = []
        # Rows by the last part of their names and by full names; names given by files; the full name of each
        # row.
        self._named: dict[str, dict[object, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._ids_by_name: dict[str, dict[Identity, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._called: set[tuple[str, object, object]] = set()
        self._whole_of: dict[Which, Identity] = {}
        # A cache of the rows that a name means: thousands of rows may have it, and thousands of objects use
        # it.
        self._known: dict[tuple[str, object], Sequence[object]] = {}

    def know(self, resource: Resource, by: Row, row_id: object, *, called: bool = False) -> None:
        """Register a row under its name, the fields in `by`.

        With `called`, it is the name that files give the row, which may differ from the row's own.
        """
        kind, how = resource.name, declared(resource)
        last, whole = by[how.by[-1]], tuple(by[name] for name in how.by)
        if called:
            self._whole_of[kind, row_id] = whole
            is_known = row_id in self._ids_by_name[kind].get(whole, ())
            self._called |= {(kind, last, row_id), (kind, whole, row_id)}
            if is_known:
                return
        self._whole_of.setdefault((kind, row_id), whole)
        self._named[kind][last].append(row_id)
        self._ids_by_name[kind][whole].append(row_id)

    def suggest(self) -> None:
        """Add a similar known name to the errors of the first unknown names."""
        for at, kind, name in self._unknown[:SUGGESTED_MAX]:
            near = suggestion(name, self._named[kind])
            if near is not None:
                field, _ = self._errors[at]
                self._errors[at] = (field, f"{_there_is_no(kind, name)}; did you mean {near!r}?")

    def resolve(self, wanted: WantedObject) -> bool:
        """Resolve the references of an object; return False if one is missing, or after too many errors."""
        wanted.ids.clear()  # an earlier plan's ids may be outdated
        if len(self._errors) >= ERRORS_MAX:
            return False
        ids = references(wanted.resource)
        if self._own_organization is not None and OWNER in ids and wanted.names.get(OWNER) is None:
            wanted.ids[OWNER] = self._own_organization
        for name in ids:
            reference = wanted.names.get(name)
            if reference is None:
                if name in wanted.names:
                    wanted.ids.setdefault(name, None)
                continue
            try:
                wanted.ids[name] = self._find(reference, wanted.ids | dict(wanted.values))
            except LookupError as error:
                self._miss(wanted, word(wanted.resource, name), reference, error)
                return False
        return self._resolve_parts(wanted)

    def _resolve_parts(self, wanted: WantedObject) -> bool:
        """Set the row ids that the parts of a wanted object name; return False if a name has no row."""
        keys: dict[str, dict[int, object]] = defaultdict(dict)
        scope = wanted.ids | dict(wanted.values)
        for part in wanted.part_names:
            key = declared(wanted.resource).parts[part.field].key
            try:
                row_id = self._find(part.reference, scope)
            except LookupError as error:
                place = ".".join(filter(None, (part.field, str(part.index), key)))
                self._miss(wanted, place, part.reference, error)
                return False
            if key and isinstance(row_id, NewRowId):
                row_id = NewRowId(row_id.number, part.prefix)
            elif key:
                row_id = f"{part.prefix}{row_id}"
            keys[part.field][part.index] = row_id
        wanted.resolve_parts(keys)
        return True

    def _miss(self, wanted: WantedObject, place: str, reference: Reference, error: LookupError) -> None:
        """Add an error for a `reference` to a missing row; if the row was lost, defer the object instead.

        Objects that refer to a deferred object are deferred, too.
        """
        kind = reference.target.name
        if reference.name in self.lost[kind]:
            self.left.append((wanted, f"its {place} is not there any more: {error.args[0]}"))
            self.lost[wanted.resource.name].add(values_of(wanted)[declared(wanted.resource).by[-1]])
            return
        if isinstance(error, _Unknown):
            self._unknown.append((len(self._errors), *error.which))
        self._errors.append((f"{wanted.at}.{place}", str(error.args[0])))

    def _find(self, reference: Reference, scope: Mapping[str, object]) -> object:
        """Return the id of the row that a reference means; `scope` supplies parts of names left out."""
        how, target = declared(reference.target), reference.target
        values = {
            name: self._find(value, scope) if isinstance(value, Reference) else value
            for name, value in reference.says.items()
        }
        shared = {name: scope[name] for name in how.by[:-1] if scope.get(name) is not None}
        wanted = {**shared, **values}
        named: Sequence[object] = self._named[target.name].get(reference.name, ())
        name, found = reference.name, named
        if wanted.keys() >= {*how.by}:
            name = tuple(wanted[name] for name in how.by)
            found = self._ids_by_name[target.name].get(name, ())
        noun = target.name.removesuffix("s")
        found = self._decided(target.name, name, found)
        if len(found) == 1:
            if (how.known_by_id or len(how.by) > len(wanted)) and not isinstance(found[0], NewRowId):
                referred_row = target.name, found[0]
                self.referred[referred_row] = self._whole_of[referred_row] if how.known_by_id else None
            return found[0]
        if found:
            fields = ", ".join(word(target, name) for name in how.by)
            more = f"say {{{fields}}}" if len(how.by) > len(wanted) else "give all but one another name"
            raise LookupError(f"there are {len(found)} {target.name} named {reference.name!r}: {more}")
        if named:
            raise LookupError(f"there is {noun} {reference.name!r}, but of another {word(target, how.by[0])}")
        raise _Unknown(target.name, reference.name)

    def _decided(self, kind: str, name: object, ids: Sequence[object]) -> Sequence[object]:
        """Return the one row in `ids`, rows of one name, that objects or earlier files mean; else all."""
        if len(ids) < 2:
            return ids
        known = self._known.get((kind, name))
        if known is None:
            known = self._known[kind, name] = self._narrow_ids(kind, name, ids)
        return known

    def _narrow_ids(self, kind: str, name: object, ids: Sequence[object]) -> Sequence[object]:
        """Return those of several ids that files mean by a name: named here, else named before, else marked."""
        for chosen in (
            [id_ for id_ in ids if id_ in self.said[kind]],
            [id_ for id_ in ids if (kind, name, id_) in self._called],
        ):
            if chosen:
                return chosen
        return [row["id"] for row in meant(kind, [{"id": id_} for id_ in ids], self._marks)]


def meant(kind: str, rows: Sequence[Row], marks: Mapping[Which, Mark]) -> Sequence[Row]:
    """Return the one row of `rows`, which share a name, that earlier applies created or adopted; else all.

    `marks` are the stored notes of such rows.
    """
    if len(rows) < 2:
        return rows
    noted = [(row, marks[kind, row["id"]]) for row in rows if (kind, row["id"]) in marks]
    made = [row for row, mark in noted if mark.made]
    for known in (made, [row for row, _ in noted]):
        if len(known) == 1:
            return known
    return rows


def _there_is_no(kind: str, name: object) -> str:
    return f"there is no {kind.removesuffix('s')} named {shorten_name(str(name))!r}"


# The change of a row in terms of names, never of ids.
@dataclass(slots=True)
class PlannedRow:
    verb: str
    resource: Resource
    at: str
    number: int
    # The identifying values, with ids of other rows; and the name for people.
    by: Row
    row_id: int | None = None
    name: str = ""
    # The verbs with their values, in the order of execution.
    writes: list[tuple[str, Row]] = field(default_factory=list)
    # The earlier values.
    before: dict[str, object] = field(default_factory=dict)
    fields: dict[str, tuple[object, object]] = field(default_factory=dict)
    # Fields that referred to another row before: its kind and id.
    others: dict[str, tuple[str, object]] = field(default_factory=dict)
    # Parts that named rows before, by list.
    parts: dict[str, Sequence[NamedPart]] = field(default_factory=dict)
    # Why the row is kept although no object wants it.
    stays: str = ""

    def render(self) -> Row:
        fields = {name: {"before": before, "after": after} for name, (before, after) in self.fields.items()}
        return {
            "change": self.verb, "resource": self.resource.name, "name": self.name, "at": self.at,
            "id": self.row_id, "fields": fields, "stays": self.stays,
        }  # fmt: skip


async def name_all(session: ApplyTransaction, changes: Sequence[PlannedRow]) -> None:
    """Set the full name of each change's row, and the names of rows that its former values refer to."""
    await in_thread(_name_all, changes, await _rows(session, changes))


def _name_all(changes: Sequence[PlannedRow], rows: Mapping[Which, Row]) -> None:
    """Name each planned change by the values that identify its row; show names for ids in its fields."""
    made: dict[int, PlannedRow] = {change.number: change for change in changes}

    def whole(resource: Resource, by: Row) -> str:
        parts: list[object] = []
        for name in declared(resource).by:
            kind, value = references(resource).get(name), by[name]
            if kind is None or value is None:
                parts.append(value)
            elif isinstance(value, NewRowId):
                parts.append(whole(KINDS[kind], made[value.number].by))
            else:
                there = rows.get((kind, value))
                parts.append(value if there is None else whole(KINDS[kind], there))
        return " / ".join(str(part) for part in parts if part is not None)

    for change in changes:
        change.name = whole(change.resource, change.by)
        for said, (kind, row_id) in change.others.items():
            _, after = change.fields[said]
            there = rows.get((kind, row_id))
            before = row_id if there is None else there[declared(KINDS[kind]).by[-1]]
            change.fields[said] = (before, after)
        for name, parts in change.parts.items():
            before, after = change.fields[name]
            assert isinstance(before, list)
            names = {
                part.index: f"{part.prefix}{there[declared(KINDS[part.kind]).by[-1]]}"
                for part in parts
                if (there := rows.get((part.kind, part.row_id))) is not None
            }
            change.fields[name] = (with_keys(declared(change.resource).parts[name].key, before, names), after)


async def _rows(session: ApplyTransaction, changes: Sequence[PlannedRow]) -> Mapping[Which, Row]:
    """Return the rows whose names are needed to name the changes, by kind and id."""
    wanted: dict[str, set[object]] = defaultdict(set)

    def want(resource: Resource, by: Row) -> None:
        for name in declared(resource).by:
            kind = references(resource).get(name)
            if kind is not None and by[name] is not None and not isinstance(by[name], NewRowId):
                wanted[kind].add(by[name])

    for change in changes:
        want(change.resource, change.by)
        for kind, row_id in change.others.values():
            if row_id is not None:
                wanted[kind].add(row_id)
        for part in (part for parts in change.parts.values() for part in parts):
            wanted[part.kind].add(part.row_id)
    rows: dict[Which, Row] = {}
    for kind, resource in reversed(list(KINDS.items())):
        ids = wanted[kind]
        if not ids:
            continue
        for row in await session.find(kind, {"id": ids}, len(ids)):
            rows[kind, row["id"]] = row
            want(resource, row)
    return rows


# Rows that earlier applies had for the names in files: renaming a row elsewhere does not break the link.
#
# A rotated key is followed to its replacement.

# Maximum of replacements that are followed since the last apply; beyond it, the row is created again.
FOLLOWED_MAX = 100


@dataclass(slots=True)
class NamedRows:
    """Rows of one kind: `rows` and `marks` by their names in files, and `lost`, names whose rows are gone.

    `passed` are, by name, the ids of earlier rows that a row has replaced, `gone` the ids of rows that no
    longer exist.
    """

    rows: dict[Identity, Row] = field(default_factory=dict)
    marks: dict[Identity, Mark] = field(default_factory=dict)
    lost: set[Identity] = field(default_factory=set)
    passed: dict[Identity, list[int]] = field(default_factory=dict)
    gone: dict[Identity, list[int]] = field(default_factory=dict)


async def remember(
    session: ApplyTransaction, resource: Resource, marks: Sequence[Mark], names: Collection[Identity],
    last: Collection[object],
) -> NamedRows:  # fmt: skip
    """Return the rows that earlier applies had for these names, by their `marks`, or rows that replaced them.

    `names` are full names; `last` are last parts of names.
    """
    mine = [mark for mark in marks if _may_have_name(mark, names, last)]
    there = await _read(session, resource, [_id(mark) for mark in mine])
    follows, known, latest = declared(resource).followed_by, dict(there), list(there.values())
    for _ in range(FOLLOWED_MAX):
        if not follows or not latest:
            break
        followers = await _read(session, resource, [row[follows] for row in latest])
        latest = [row for row in followers.values() if row["id"] not in known]
        known |= {row["id"]: row for row in latest}
    return _sorted_out(resource, mine, known)


def _may_have_name(mark: Mark, names: Collection[Identity], last: Collection[object]) -> bool:
    """Return whether a mark may be of a row with one of these full names, or last parts of names."""
    return mark.said is None or mark.said in names or mark.said[-1] in last


def _sorted_out(resource: Resource, marks: Sequence[Mark], known: Mapping[object, Row]) -> NamedRows:
    """Return a resource's rows by the names in their marks, and the names that were replaced or lost."""
    how, sorted_rows = declared(resource), NamedRows()
    stands: dict[object, Identity] = {}
    # A row has the name of its latest mark: its own marks come after those of rows it replaced, the newest
    # last.
    ends = [(mark, *_end(how.followed_by, known, _id(mark))) for mark in marks]
    for mark, row, passed in sorted(ends, key=lambda end: (not end[2], end[0].made, _id(end[0]))):
        name = mark.said if mark.said is not None else _name(resource, known.get(_id(mark)))
        if name is None:
            continue
        if row is None or how.is_gone(row):
            sorted_rows.lost.add(name)
            sorted_rows.gone.setdefault(name, []).append(_id(mark))
            continue
        sorted_rows.passed.setdefault(name, []).extend(passed)
        earlier = stands.get(row["id"])
        if earlier is not None and earlier != name and sorted_rows.rows[earlier]["id"] == row["id"]:
            del sorted_rows.rows[earlier], sorted_rows.marks[earlier]
        stands[row["id"]] = name
        sorted_rows.rows[name], sorted_rows.marks[name] = row, mark
    sorted_rows.lost -= sorted_rows.rows.keys()
    return sorted_rows


def _end(follows: str, known: Mapping[object, Row], row_id: int) -> tuple[Row | None, list[int]]:
    row, passed = known.get(row_id), list[int]()
    while row is not None and follows and row[follows] is not None and len(passed) < FOLLOWED_MAX:
        passed.append(int(str(row["id"])))
        row = known.get(row[follows])
    return row, passed


def _name(resource: Resource, row: Row | None) -> Identity | None:
    return None if row is None else tuple(row[name] for name in declared(resource).by)


def _id(mark: Mark) -> int:
    assert not isinstance(mark.row_id, NewRowId)  # what is stored has an id
    return mark.row_id


async def _read(session: ApplyTransaction, resource: Resource, ids: Collection[object]) -> dict[object, Row]:
    wanted = {id_ for id_ in ids if id_ is not None}
    rows = await session.find(resource.name, {"id": wanted}, len(wanted)) if wanted else ()
    return {row["id"]: row for row in rows}


# Maximum of rows of a kind with the names in the objects, and of marks of one apply name.
ROWS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Pair:
    """An object and the rows that it may mean, oldest first; a single row if it is known.

    `mark` is the stored mark of the row, `passed` are ids of rows that it replaced.
    """

    wanted: WantedObject
    rows: Sequence[Row]
    mark: Mark | None = None
    passed: Sequence[int] = ()


class RowMatcher:
    """Finds the rows of objects kind by kind, in the order in which rows can be created.

    `own` is the caller's organization: objects without an organization belong to it. `marks` are the rows
    that earlier files meant, which keep their meaning even if other rows now have the name.
    """

    def __init__(
        self, session: ApplyTransaction, objects: ConfigObjects, own: int | None, errors: Errors,
        marks: Mapping[Which, Mark], *, rows_max: int = ROWS_MAX,
    ) -> None:  # fmt: skip
        self.names = NameIndex(own, errors, marks)
        # Rows of earlier files whose names belong to other rows now.
        self.replaced: set[Which] = set()
        self._marks = marks
        self._marks_of: dict[str, list[Mark]] = defaultdict(list)
        for mark in marks.values():
            self._marks_of[mark.resource].append(mark)
        self._session = session
        self._objects = objects
        self._errors = errors
        self._rows_max = rows_max
        self._asked_names: dict[str, set[object]] = defaultdict(set)
        for wanted in (item for some in objects.by_kind.values() for item in some):
            self._ask(wanted.names.values())
            self._ask(part.reference for part in wanted.part_names)

    async def match(self, resource: Resource) -> list[Pair]:
        """Return the objects of a resource with their rows, [] if one of them is refused.

        Rows and objects are also registered under their names, for the references of later kinds.
        """
        objects = self._objects.by_kind.get(resource.name, ())
        if not objects and resource.name not in self._asked_names:
            return []
        errors_before = len(self._errors)
        resolved = await in_thread(lambda: [wanted for wanted in objects if self.names.resolve(wanted)])
        earlier_rows = await self._read_earlier_rows(resource, resolved)
        rows = await self._rows(resource, resolved)
        claimed = await self._claimed(resource, resolved)
        pairs = await in_thread(self._pair_with_rows, resource, resolved, rows, earlier_rows, claimed)
        return pairs if len(self._errors) == errors_before else []

    async def _read_earlier_rows(self, resource: Resource, objects: Sequence[WantedObject]) -> NamedRows:
        """Return the rows that earlier applies had for the names of these objects."""
        if not declared(resource).known_by_id:
            return NamedRows()
        names = {identity_of(resource, values_of(wanted)) for wanted in objects}
        asked = self._asked_names.get(resource.name, set())
        rows = await remember(self._session, resource, self._marks_of[resource.name], names, asked)
        self.names.lost[resource.name].update(name[-1] for name in rows.lost)
        return rows

    def _pair_with_rows(
        self,
        resource: Resource,
        whole: Sequence[WantedObject],
        rows: Sequence[Row],
        before: NamedRows,
        claimed: Mapping[Identity, Row],
    ) -> list[Pair]:
        """Return each object with its rows, and register rows and objects under their names.

        `before` are the rows that earlier applies had for the names; `claimed` are rows by their unique
        claims.
        """
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
        pairs: list[Pair] = []
        identities: set[Identity] = set()
        holders = {identity_of(resource, row): row for row in rows} if how.unique else {}
        for wanted, name in zip(whole, names, strict=True):
            if self._waits(wanted, holders.get(name), before.rows.get(name)):
                continue
            pair = self._pair(wanted, name, by_name.get(name, ()), before)
            if self._waits_for_claimed(pair, claimed):
                continue
            if not pair.rows:
                self.names.know(resource, values_of(wanted), NewRowId(wanted.number))
            if name not in identities or not pair.rows:
                self.names.said[kind].update([row["id"] for row in pair.rows] or [NewRowId(wanted.number)])
            identities.add(name)
            pairs.append(pair)
        return pairs

    def _waits(self, wanted: WantedObject, holder: Row | None, own: Row | None) -> bool:
        """Defer an object if `holder`, a row other than `own`, has its unique name; return whether it did."""
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
        """Defer an object without a row if another row has the unique values that it claims.

        Objects that refer to it are deferred, too. Return whether it was deferred.
        """
        wanted, kind, claims = pair.wanted, pair.wanted.resource.name, declared(pair.wanted.resource).claims
        holder = claimed.get(tuple(wanted.values.get(name) for name in claims))
        if holder is None or pair.rows:
            return False
        what = " and ".join(word(wanted.resource, name) for name in claims)
        self.names.left.append((wanted, f"{kind} {holder['id']} has its {what}: revoke that one"))
        self.names.lost[kind].add(values_of(wanted)[declared(wanted.resource).by[-1]])
        return True

    def _pair(self, wanted: WantedObject, name: Identity, there: Sequence[Row], before: NamedRows) -> Pair:
        """Return an object with the row that earlier applies had for it, or with the rows in `there`.

        Those are the rows of its name; rows that belong to other objects are left out.
        """
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
        for name in names:
            if isinstance(name, Reference):
                self._asked_names[name.target.name].add(name.name)
                self._ask(name.says.values())

    async def _rows(self, resource: Resource, objects: Sequence[WantedObject]) -> list[Row]:
        """Read the rows that objects or references may mean, selected by part of their name and by owner."""
        how = declared(resource)
        last, ids = how.by[-1], references(resource)
        key = how.by[0] if last in ids else last
        asked = self._asked_names.get(resource.name, set())
        values = [values_of(item) for item in objects]
        if how.folded:
            names = {folded(str(name)) for name in asked.union(value[key] for value in values)}
            return await self._read(resource, [{key: {*names}}])
        # Referred rows may have any owner; rows of objects have the owners that the objects name.
        parents = [name for name in how.by if name != key and name in ids]
        values_by_name = {name: _stored_values(value[name] for value in values) for name in (key, *parents)}
        values_by_name[key] -= asked
        return await self._read(resource, [{key: asked}, values_by_name])

    async def _claimed(self, resource: Resource, objects: Sequence[WantedObject]) -> dict[Identity, Row]:
        claims = declared(resource).claims
        some = [item for item in objects if all(item.values.get(name) is not None for name in claims)]
        claimed = {name: {item.values[name] for item in some} for name in claims}
        rows = await self._read(resource, [claimed]) if claims else ()
        return {tuple(row[name] for name in claims): row for row in rows}

    async def _read(self, resource: Resource, searches: Sequence[Mapping[str, set[object]]]) -> list[Row]:
        """Return the existing rows that any of the searches finds; raise `Unprocessable` for too many."""
        how, rows_read = declared(resource), list[Row]()
        for wanted in searches:
            if all(wanted.values()):
                left = self._rows_max - len(rows_read)
                rows_read += await self._session.find(resource.name, wanted, left, folded=how.folded)
            if len(rows_read) > self._rows_max:
                message = f"more than {self._rows_max} rows have these names: apply fewer objects at once"
                raise Unprocessable(errors=((resource.name, message),))
        return [row for row in rows_read if not how.is_gone(row)]

    def _refuse_twice(self, resource: Resource, objects: Sequence[WantedObject]) -> None:
        """Refuse objects that name the same row as an earlier one."""
        how = declared(resource)
        first: dict[Identity, WantedObject] = {}
        for wanted in objects:
            at = wanted.values.get(how.since) if how.since else None
            other = first.setdefault((*identity_of(resource, values_of(wanted)), at), wanted)
            if other is not wanted:
                name = word(resource, how.by[-1])
                self._errors.append((f"{wanted.at}.{name}", f"names the same as {other.at}"))


def never_becomes(wanted: WantedObject, row: Row) -> list[str]:
    """Return those fields of a wanted object that differ from its row and cannot be changed."""
    resource, how = wanted.resource, declared(wanted.resource)
    patch = resource.patch.model_fields if resource.patch is not None else {}
    values, changeable = values_of(wanted), {*patch, *how.actions, *how.begins}
    return [
        name
        for name in wanted.fields
        if name not in changeable and not same(values[name], stored(resource, row, name))
    ]


def _stored_values(values: Iterable[object]) -> set[object]:
    return {value for value in values if not isinstance(value, NewRowId)}
