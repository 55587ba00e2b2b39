"""The difference between wanted objects and stored rows: a plan, identified by its digest.

Equal plans have equal digests: exactly the shown plan is executed, or the request is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from gateway.admin.configuration.comparison import are_same_parts, same
from gateway.admin.configuration.objects import (
    ConfigObjects,
    DateOrder,
    Errors,
    Identity,
    WantedObject,
    Which,
    identity_of,
    refuse,
    stored,
    values_of,
)
from gateway.admin.configuration.references import (
    ROWS_MAX as MATCHED_ROWS_MAX,
)
from gateway.admin.configuration.references import (
    Pair,
    PlannedRow,
    RowMatcher,
    meant,
    name_all,
)
from gateway.admin.configuration.words import (
    KINDS,
    declared,
    model,
    named_parts,
    parts_of,
    references,
    with_keys,
    without_nulls,
    word,
)
from gateway.admin.http.bodies import canonical
from gateway.admin.http.guard import in_thread
from gateway.admin.http.requests import require_read
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.resource import Resource
from gateway.admin.resources.values import In
from gateway.core.accounts.administration import CREATE, DEFAULT_NAME, DELETE, Actor, Mark, NewRowId, Row
from gateway.errors import Unprocessable

if TYPE_CHECKING:
    from persistence.apply_transaction import ApplyTransaction

NOW = "now"


# A row that an object describes now: the object and the row's id.
Taken = tuple[WantedObject, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes to execute, in order; `marks` are marks to store, `forgotten` marks to delete.

    `taken` are rows that no file described before and objects do now.
    """

    changes: Sequence[PlannedRow]
    unchanged: int
    marks: Sequence[Mark]
    forgotten: Sequence[Mark]
    taken: Sequence[Taken]
    # Identifies the plan by its content.
    digest: str


class Planner:
    """Makes a plan in one transaction; `marks` are those stored under the apply's name."""

    def __init__(
        self, session: ApplyTransaction, objects: ConfigObjects, actor: Actor, marks: Sequence[Mark],
        now: datetime,
        *, rows_max: int = MATCHED_ROWS_MAX,
    ) -> None:  # fmt: skip
        self._session = session
        self._objects = objects
        self._errors: Errors = []
        self._rows_max = rows_max
        self._marks: dict[tuple[str, object], Mark] = {(mark.resource, mark.row_id): mark for mark in marks}
        own = actor.organization_id
        self._matching = RowMatcher(session, objects, own, self._errors, self._marks, rows_max=rows_max)
        self._now = now
        self._changes: list[PlannedRow] = []
        self._new_marks: list[Mark] = []
        self._forgotten: list[Mark] = []
        self._taken_rows: list[Taken] = []
        self._met: set[tuple[str, object]] = set()
        self._dated: dict[tuple[str, Identity], DateOrder] = {}
        self._unchanged = 0

    async def plan(self, *, prune: bool, suggests: bool = True) -> Plan:
        """Compare all objects with the rows; raise `Unprocessable` with each error's field.

        With `suggests`, errors on unknown names contain similar names; it is off while others wait for locks.
        """
        for resource in KINDS.values():
            pairs = await self._matching.match(resource)
            await in_thread(self._compare_all, pairs)
        if suggests and self._errors:
            await in_thread(self._matching.names.suggest)
        refuse(self._errors)
        # Store the row that a name meant, so that the name keeps this meaning.
        for (kind, row_id), field in self._matching.names.referred.items():
            before = self._marks.get((kind, row_id))
            is_named = before is not None and (before.said or field is None)
            if is_named or (kind, row_id) in self._met:
                continue
            fields, made = ((), False) if before is None else (before.fields, before.made)
            self._new_marks.append(Mark(kind, int(str(row_id)), fields, made, field))
        self._leave()
        if prune:
            await self._prune()
        await name_all(self._session, self._changes)
        digest = await in_thread(_digest, self._changes, [*self._new_marks, *self._forgotten])
        return Plan(
            self._changes, self._unchanged, self._new_marks, self._forgotten, self._taken_rows, digest
        )  # fmt: skip

    def _compare_all(self, pairs: Sequence[Pair]) -> None:
        for pair in pairs:
            self._compare(pair)

    def _compare(self, pair: Pair) -> None:
        """Plan what makes the stored rows of a pair equal to its wanted object."""
        wanted, rows = pair.wanted, pair.rows
        how, found = declared(wanted.resource), None
        if how.since:
            found = self._latest(wanted, rows)
        elif len(rows) > 1:
            ids = ", ".join(str(row["id"]) for row in rows[:5])
            self._refuse(wanted, how.by[-1], f"is the name of {len(rows)} (ids {ids}): rename all but one")
            return
        elif rows:
            found = rows[0]
            self._change(wanted, found, pair.mark)
        row_id: int | NewRowId = NewRowId(wanted.number)
        if found is None:
            self._make(wanted)
        elif how.since:
            self._unchanged += 1
        if found is not None:
            row_id = int(str(found["id"]))
        if not how.since:
            self._note(pair, row_id)

    def _note(self, pair: Pair, row_id: int | NewRowId) -> None:
        """Note that the configuration describes a row as the pair's object.

        The row, and rows that it replaced, are not pruned; its mark is stored if it changed; a stored row
        without a mark counts as taken; marks of replaced rows are deleted.
        """
        wanted, kind, before = pair.wanted, pair.wanted.resource.name, pair.mark
        self._met |= {(kind, row_id), *((kind, old_id) for old_id in pair.passed)}
        identity = None
        if declared(wanted.resource).known_by_id:
            identity = identity_of(wanted.resource, values_of(wanted))
        # Only rows that an apply created are pruned later.
        made = isinstance(row_id, NewRowId) or (before is not None and before.made)
        mark = Mark(kind, row_id, wanted.fields, made, identity)
        if mark != self._marks.get((kind, row_id)):
            self._new_marks.append(mark)
        # A row that exists, and that no file described before: the answer lists those.
        if before is None and not isinstance(row_id, NewRowId):
            self._taken_rows.append((wanted, row_id))
        old_marks = [self._marks.get((kind, old_id)) for old_id in pair.passed]
        self._forgotten += [old_mark for old_mark in old_marks if old_mark is not None]

    def _leave(self) -> None:
        """Add to the plan, for each deferred object, a change that is not executed, with the reason.

        An object is deferred if another row has its unique name, or if a row that it refers to was lost.
        """
        for wanted, why in self._matching.names.left:
            planned = self._planned(CREATE, wanted)
            planned.stays = why
            self._changes.append(planned)

    def _make(self, wanted: WantedObject) -> None:
        """Plan the creation of a wanted object, with the actions for parts that a creation does not take."""
        how, values = declared(wanted.resource), dict(wanted.values)
        said = wanted.as_json()
        fields: dict[str, tuple[object, object]] = {name: (None, said[name]) for name in values}
        for name in wanted.names:
            field = word(wanted.resource, name)
            fields[field] = (None, wanted.said[field])
        fields |= {name: (None, wanted.said[name]) for name in how.parts if name in fields}
        if how.since and how.since not in values:
            moment = getattr(wanted.row, how.since)
            values[how.since] = self._now if isinstance(moment, datetime) else self._now.date()
            fields[how.since] = (None, NOW)
        planned = self._planned(CREATE, wanted)
        values |= wanted.ids
        later = {name: values.pop(name) for name in how.parts if name in how.actions and name in values}
        planned.writes = [(CREATE, values)]
        planned.writes += [(how.actions[name], {name: parts}) for name, parts in later.items() if parts]
        planned.fields = fields
        self._changes.append(planned)

    def _change(self, wanted: WantedObject, row: Row, mark: Mark | None) -> None:
        """Plan the patch and actions for those fields of a wanted object that differ from its `row`."""
        resource, how = wanted.resource, declared(wanted.resource)
        values = {**values_of(wanted)}
        left_out = [name for name in (mark.fields if mark else ()) if name not in wanted.fields]
        if left_out:
            meant = wanted.full()
            values |= {name: meant[name] for name in left_out if name in model(resource).model_fields}
        differ = {name: value for name, value in values.items() if not _is_stored(wanted, row, name, value)}
        patch = resource.patch.model_fields if resource.patch is not None else {}
        stays = ""
        for name in [name for name in differ if name not in patch and name not in how.actions]:
            value = differ.pop(name)
            if (references(resource).get(name, ""), row[name]) in self._matching.replaced:
                stays = f"its {word(resource, name)} is another by now, and it stays with the earlier one"
            elif name not in how.begins and name in wanted.fields:
                self._refuse(wanted, name, _stays(resource, row, name, value))
        planned = self._planned(resource.patch_verb, wanted, int(str(row["id"])))
        if stays:
            planned.stays = stays
            self._changes.append(planned)
        elif differ:
            planned.writes = self._writes_of(resource, differ)
            self._show_changes(planned, wanted, row, differ)
            self._changes.append(planned)
        else:
            self._unchanged += 1

    def _writes_of(self, resource: Resource, differ: Row) -> list[tuple[str, Row]]:
        """Return the writes that change these fields: a patch, and an action for fields that it may not change."""
        how, patch = declared(resource), resource.patch.model_fields if resource.patch is not None else {}
        changed = {name: value for name, value in differ.items() if name in patch}
        acted: dict[str, dict[str, object]] = {}
        for name in [field for field in differ if field not in patch]:
            action = how.actions[name]
            dated: dict[str, object] = {how.dated[action]: self._now.date()} if action in how.dated else {}
            acted.setdefault(action, dated)[how.words.get(name, name)] = differ[name]
        writes: list[tuple[str, Row]] = [(resource.patch_verb, changed)] if changed else []
        return [*writes, *acted.items()]

    def _show_changes(
        self, planned: PlannedRow, wanted: WantedObject, row: Row, names: Collection[str]
    ) -> None:
        """Add the values of changed fields, before and after, to a planned row."""
        resource, how = wanted.resource, declared(wanted.resource)
        planned.before = {name: row.get(name) for name in names}
        before, after = resource.render(row), wanted.as_json()
        for name in names:
            field = word(resource, name)
            if name in references(resource):
                planned.fields[field] = (None, wanted.said.get(field))
                planned.others[field] = (references(resource)[name], stored(resource, row, name))
            elif name in how.parts:
                parts = parts_of(resource, row, name)
                planned.parts[name] = [*named_parts(resource, row, name, parts)]
                planned.fields[name] = (parts, wanted.said.get(name, []))
            else:
                planned.fields[field] = (before[name], after[name])

    def _latest(self, wanted: WantedObject, rows: Sequence[Row]) -> Row | None:
        """Return the row in force that equals the object; None if a new row must be created."""
        resource, how = wanted.resource, declared(wanted.resource)
        name, at = (resource.name, identity_of(resource, values_of(wanted))), wanted.values.get(how.since)
        dated = self._dated[name] = self._dated.get(name) or DateOrder(rows, how.since)
        if at is not None:
            version = dated.made_for(at)
        else:
            moment = getattr(wanted.row, how.since)
            version = dated.in_force(self._now if isinstance(moment, datetime) else self._now.date())
        if version is None:
            return None
        full = {**wanted.full(), **values_of(wanted)}
        others = [name for name in full if name not in {*how.by, how.since}]
        if all(same(full[name], version.get(name)) for name in others):
            return version
        if at is not None and not how.repeats:
            message = (
                f"is that of {resource.name} {version['id']}, which stays as it is: name a later one, or none"
            )
            self._refuse(wanted, how.since, message)
            return version
        return None

    async def _prune(self) -> None:
        """Plan the deletion of rows that earlier applies created and that no object describes any more.

        Rows that refer to others go first. Kinds with deferred objects are left out.
        """
        waiting = {wanted.resource.name for wanted, _ in self._matching.names.left}
        undescribed = [mark for key, mark in self._marks.items() if mark.made and key not in self._met]
        for resource in reversed([kind for name, kind in KINDS.items() if name not in waiting]):
            mine = {mark.row_id: mark for mark in undescribed if mark.resource == resource.name}
            rows = await self._session.find(resource.name, {"id": list(mine)}, len(mine)) if mine else ()
            there = [row for row in rows if not declared(resource).is_gone(row)]
            gone, several = {row["id"] for row in there}, await self._several(resource, there)
            self._forgotten += [mark for row_id, mark in mine.items() if row_id not in gone]
            for row in there:
                row_id, number = int(str(row["id"])), -1 - len(self._changes)
                by = {name: row[name] for name in declared(resource).by}
                planned = PlannedRow(DELETE, resource, "", number, by, row_id)
                if identity_of(resource, row) in several:
                    planned.stays = "others have its name: rename all but one, or delete it by its id"
                elif resource.settle_first or resource.deletable:
                    planned.writes = [(resource.settle_first or DELETE, {})]
                else:
                    planned.stays = f"{resource.name} cannot be deleted"
                self._changes.append(planned)

    async def _several(self, resource: Resource, rows: Sequence[Row]) -> set[Identity]:
        """Return names that several rows share: rows with them are not deleted, as the wrong one might go."""
        if not rows:
            return set()
        how = declared(resource)
        names = {name: {row[name] for row in rows} for name in how.by}
        found = await self._session.find(resource.name, names, self._rows_max, folded=how.folded)
        there = Counter(identity_of(resource, row) for row in found if not how.is_gone(row))
        if len(found) > self._rows_max:
            return {identity_of(resource, row) for row in rows}
        return {identity for identity, count in there.items() if count > 1}

    def _planned(self, verb: str, wanted: WantedObject, row_id: int | None = None) -> PlannedRow:
        values = values_of(wanted)
        by = {name: values[name] for name in declared(wanted.resource).by}
        return PlannedRow(verb, wanted.resource, wanted.at, wanted.number, by, row_id)

    def _refuse(self, wanted: WantedObject, name: str, message: str) -> None:
        self._errors.append((f"{wanted.at}.{word(wanted.resource, name)}", message))


def _digest(changes: Sequence[PlannedRow], marks: Sequence[Mark]) -> str:
    noted = [[mark.resource, str(mark.row_id), str(mark.said), *mark.fields] for mark in marks]
    return sha256(canonical([[change.render() for change in changes], noted])).hexdigest()


def _is_stored(wanted: WantedObject, row: Row, name: str, value: object) -> bool:
    parts = declared(wanted.resource).parts.get(name)
    if parts is None:
        return same(value, stored(wanted.resource, row, name))
    return are_same_parts(parts, wanted.part_json.get(name, ()), parts_of(wanted.resource, row, name))


def _stays(resource: Resource, row: Row, name: str, value: object) -> str:
    if name in resource.fixed:
        return resource.fixed[name]
    if name in references(resource):
        return "cannot be changed: it stays with whom it was made"
    return f"cannot be changed: it stays {resource.render(row)[name]}, not {value}"


# Export: the rows in the form of configuration files. Applying such a file again changes nothing.

ROWS_MAX = 100_000
LEFT_OUT_MAX = 100


async def export(ports: AdminPorts) -> Row:
    for resource in KINDS.values():
        require_read(ports.actor, resource)
    owner = ports.actor.organization_id or 0
    return await ports.store.applying(lambda session: _Export(owner).read(session), keep=False)


class _Export:
    """The rows read so far: by kind and id, and the number of rows of each name."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        # The row that files mean by a name that several rows share.
        self._marks: dict[Which, Mark] = {}
        self._rows: dict[str, Mapping[object, Row]] = {}
        self._names: dict[str, Counter[object]] = {}
        self._left_out: list[str] = []

    async def read(self, session: ApplyTransaction) -> Row:
        """Return the document of all rows in the database, and notes about rows that it leaves out."""
        objects: dict[str, list[Row]] = {}
        marks = await session.marks(self._owner, DEFAULT_NAME, ROWS_MAX)
        self._marks = {(mark.resource, mark.row_id): mark for mark in marks}
        for resource in KINDS.values():
            rows = await session.every(resource.name, ROWS_MAX)
            if len(rows) > ROWS_MAX:
                message = f"has more than {ROWS_MAX} rows, the most that are written down at once"
                raise Unprocessable(errors=((resource.name, message),))
            found = await in_thread(self._objects, resource, rows)
            if found:
                objects[resource.name] = found
        more = len(self._left_out) - LEFT_OUT_MAX
        notes = [*self._left_out[:LEFT_OUT_MAX], *([f"and {more} more"] if more > 0 else [])]
        return {"objects": objects, "left_out": notes}

    def _objects(self, resource: Resource, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a resource as objects of a document; skip and report rows that share a name."""
        how = declared(resource)
        if how.followed_by:
            self._hand_marks_on(resource, rows)
        there = [row for row in rows if not how.is_gone(row)]
        if how.repeats:
            there = list({_identity(resource, row): row for row in there}.values())
        named_ids = self._named_ids(resource, there)
        there = [row for row in there if how.is_kept(row)]
        self._names[resource.name] = Counter(row[how.by[-1]] for row in there)
        kept: dict[object, Row] = {}
        objects = []
        for row in there:
            if row["id"] not in named_ids:
                self._leave(resource, row, "others have the same name: rename all but one")
                continue
            values = self._object(resource, row)
            if values is not None:
                kept[row["id"]] = row
                objects.append(values)
        self._rows[resource.name] = kept
        return objects

    def _hand_marks_on(self, resource: Resource, rows: Sequence[Row]) -> None:
        """Give the marks of replaced rows to the rows that replaced them."""
        follows = declared(resource).followed_by
        for row in rows:  # a row that stands in another's place has a greater id
            mark = self._marks.get((resource.name, row["id"]))
            if mark is not None and row[follows] is not None:
                self._marks[resource.name, row[follows]] = mark

    def _named_ids(self, resource: Resource, rows: Sequence[Row]) -> set[object]:
        """Return the ids of rows that a name means, alone or by a mark.

        They are computed once for each name, as thousands of rows may share it.
        """
        same_name: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in rows:
            same_name[_identity(resource, row)].append(row)
        groups = [meant(resource.name, group, self._marks) for group in same_name.values()]
        return {group[0]["id"] for group in groups if len(group) == 1}

    def _object(self, resource: Resource, row: Row) -> Row | None:
        """Return a row as an object of a file: without defaults, and with names instead of ids."""
        how, ids, shown = declared(resource), references(resource), resource.render(row)
        scope = {name: row[name] for name in ids}
        values: dict[str, object] = {}
        for name, info in model(resource).model_fields.items():
            if name in how.parts:
                if parts := self._parts(resource, row, name, scope):
                    values[name] = parts
                continue
            becomes = how.becomes.get(name)
            value = shown[name] if becomes is None or shown[becomes] is None else shown[becomes]
            stored = row[name] if becomes is None or row[becomes] is None else row[becomes]
            is_named = name in how.by or info.is_required()
            if name in ids:
                if value is not None:
                    other = self._rows[ids[name]].get(value)
                    if other is None:
                        self._leave(resource, row, f"its {word(resource, name)} is not written down")
                        return None
                    values[word(resource, name)] = self._name(KINDS[ids[name]], other, scope)
            elif value is not None and (is_named or not same(_default(model(resource), name), stored)):
                values[name] = value
        return values

    def _parts(self, resource: Resource, row: Row, field: str, scope: Row) -> list[Any]:
        """Return a list of parts of a row as files have it, without those whose rows are not written down."""
        how, parts = declared(resource).parts[field], parts_of(resource, row, field)
        names, gone = dict[int, object](), set[int]()
        for part in named_parts(resource, row, field, parts):
            other = self._rows[part.kind].get(part.row_id)
            if other is None:
                self._leave(resource, row, f"{part.kind} {part.row_id} of its {field} is not written down")
                gone.add(part.index)
            else:
                name = self._name(KINDS[part.kind], other, scope)
                names[part.index] = f"{part.prefix}{name}" if part.prefix else name
        written = with_keys(how.key, parts, names)
        return [
            without_nulls(resource, field, part) for index, part in enumerate(written) if index not in gone
        ]

    def _name(self, target: Resource, row: Row, scope: Row) -> object:
        """Return the shortest unique name of a row within `scope`, the ids in the row that refers to it."""
        how = declared(target)
        last = how.by[-1]
        shared = all(scope.get(name) == row[name] for name in how.by[:-1])
        if last not in references(target) and (shared or self._names[target.name][row[last]] == 1):
            return row[last]
        values: dict[str, object] = {}
        for name in how.by:
            kind = references(target).get(name)
            if kind is None or row[name] is None:
                values[word(target, name)] = row[name]
            else:
                values[word(target, name)] = self._name(KINDS[kind], self._rows[kind][row[name]], scope)
        return values

    def _leave(self, resource: Resource, row: Row, why: str) -> None:
        self._left_out.append(f"{resource.name} {row['id']} ({row[declared(resource).by[-1]]}): {why}")


def _identity(resource: Resource, row: Row) -> tuple[object, ...]:
    how = declared(resource)
    return tuple(row[name] for name in (*how.by, *([how.since] if how.since else [])))


def _default(model_: type[In], name: str) -> object:
    return model_.model_fields[name].get_default(call_default_factory=True)
