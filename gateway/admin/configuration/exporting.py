"""What is there, written down as files say it: applied again it changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from gateway.admin.configuration.identity import Which
from gateway.admin.configuration.referring import meant
from gateway.admin.configuration.sameness import same
from gateway.admin.configuration.words import KINDS, declared, model, references, word
from gateway.admin.http.auth import require_read
from gateway.admin.http.metered import in_thread
from gateway.admin.ports import AdminPorts, Applying
from gateway.admin.resources import Resource
from gateway.admin.resources.configuration import DEFAULT_NAME
from gateway.admin.resources.values import In
from gateway.core.accounts.administration import Row
from gateway.core.accounts.declaration import Mark
from gateway.errors import Unprocessable

ROWS_MAX = 100_000
LEFT_OUT_MAX = 100


async def export(ports: AdminPorts) -> Row:
    """Write down all that is configuration, by its kind."""
    for resource in KINDS.values():
        require_read(ports.actor, resource)
    owner = ports.actor.organization_id or 0
    return await ports.store.applying(lambda session: _Export(owner).read(session), keep=False)


class _Export:
    """What was read so far: of each kind the rows by id, and how often each name is there."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        # Which of several rows of one name files mean, where they say none of their own name.
        self._marks: dict[Which, Mark] = {}
        self._rows: dict[str, Mapping[object, Row]] = {}
        self._names: dict[str, Counter[object]] = {}
        self._left_out: list[str] = []

    async def read(self, session: Applying) -> Row:
        """All kinds, each behind what it refers to."""
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
        told = [*self._left_out[:LEFT_OUT_MAX], *([f"and {more} more"] if more > 0 else [])]
        return {"objects": objects, "left_out": told}

    def _objects(self, resource: Resource, rows: Sequence[Row]) -> list[Row]:
        how = declared(resource)
        if how.followed_by:
            for row in rows:  # a row that stands in another's place has a greater id
                mark = self._marks.get((resource.name, row["id"]))
                if mark is not None and row[how.followed_by] is not None:
                    self._marks[resource.name, row[how.followed_by]] = mark
        there = [row for row in rows if not how.is_gone(row)]
        if how.repeats:
            there = list({_identity(resource, row): row for row in there}.values())
        same_name: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in there:
            same_name[_identity(resource, row)].append(row)
        # Looked for once a name: thousands of rows may have one.
        alone = {
            some[0]["id"]
            for some in (meant(resource.name, each, self._marks) for each in same_name.values())
            if len(some) == 1
        }
        there = [row for row in there if how.is_kept(row)]
        self._names[resource.name] = Counter(row[how.by[-1]] for row in there)
        kept: dict[object, Row] = {}
        objects = []
        for row in there:
            if row["id"] not in alone:
                self._leave(resource, row, "others have the same name: rename all but one")
                continue
            said = self._object(resource, row)
            if said is not None:
                kept[row["id"]] = row
                objects.append(said)
        self._rows[resource.name] = kept
        return objects

    def _object(self, resource: Resource, row: Row) -> Row | None:
        """A row as a file says it: what is not meant by itself, others by their names."""
        how, ids, shown = declared(resource), references(resource), resource.render(row)
        scope = {name: row[name] for name in ids}
        said: dict[str, object] = {}
        for name, info in model(resource).model_fields.items():
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
                    said[word(resource, name)] = self._name(KINDS[ids[name]], other, scope)
            elif value is not None and (is_named or not same(_default(model(resource), name), stored)):
                said[name] = value
        return said

    def _name(self, target: Resource, row: Row, scope: Row) -> object:
        """What names a row for another one, which has the ids of `scope`: as little as says it."""
        how = declared(target)
        last = how.by[-1]
        shared = all(scope.get(name) == row[name] for name in how.by[:-1])
        if last not in references(target) and (shared or self._names[target.name][row[last]] == 1):
            return row[last]
        said: dict[str, object] = {}
        for name in how.by:
            kind = references(target).get(name)
            if kind is None or row[name] is None:
                said[word(target, name)] = row[name]
            else:
                said[word(target, name)] = self._name(KINDS[kind], self._rows[kind][row[name]], scope)
        return said

    def _leave(self, resource: Resource, row: Row, why: str) -> None:
        self._left_out.append(f"{resource.name} {row['id']} ({row[declared(resource).by[-1]]}): {why}")


def _identity(resource: Resource, row: Row) -> tuple[object, ...]:
    how = declared(resource)
    return tuple(row[name] for name in (*how.by, *([how.since] if how.since else [])))


def _default(of: type[In], name: str) -> object:
    """What a field means where nothing is said of it."""
    return of.model_fields[name].get_default(call_default_factory=True)
