"""What is to be done about a row, and how it is told: by names, never by ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.admin.configuration.words import KINDS, declared, references
from gateway.admin.http.metered import in_thread
from gateway.admin.ports import Applying
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import Row
from gateway.core.accounts.declaration import New

Which = tuple[str, object]


@dataclass(slots=True)
class Planned:
    """What is to be done about one row, and how it is told: `fields` are (before, after) by their words."""

    verb: str
    resource: Resource
    at: str
    number: int
    # What it is named by, with the ids of others; and how people read that.
    by: Row
    row_id: int | None = None
    name: str = ""
    # What is written by which verb, in order.
    writes: list[tuple[str, Row]] = field(default_factory=list)
    # What was there of it, as it was read.
    before: dict[str, object] = field(default_factory=dict)
    fields: dict[str, tuple[object, object]] = field(default_factory=dict)
    # Which fields named another row before: its kind and id.
    others: dict[str, tuple[str, object]] = field(default_factory=dict)
    # Why it stays although nothing wants it.
    stays: str = ""

    def told(self) -> Row:
        """The same as JSON."""
        told = {name: {"before": before, "after": after} for name, (before, after) in self.fields.items()}
        return {
            "change": self.verb, "resource": self.resource.name, "name": self.name, "at": self.at,
            "id": self.row_id, "fields": told, "stays": self.stays,
        }  # fmt: skip


async def name_all(session: Applying, changes: Sequence[Planned]) -> None:
    """Give each change the whole name of its row, and the names of what its fields named before."""
    await in_thread(_name_all, changes, await _rows(session, changes))


def _name_all(changes: Sequence[Planned], rows: Mapping[Which, Row]) -> None:
    made: dict[int, Planned] = {each.number: each for each in changes}

    def whole(resource: Resource, by: Row) -> str:
        parts: list[object] = []
        for name in declared(resource).by:
            kind, value = references(resource).get(name), by[name]
            if kind is None or value is None:
                parts.append(value)
            elif isinstance(value, New):
                parts.append(whole(KINDS[kind], made[value.number].by))
            else:
                there = rows.get((kind, value))
                parts.append(value if there is None else whole(KINDS[kind], there))
        return " / ".join(str(part) for part in parts if part is not None)

    for each in changes:
        each.name = whole(each.resource, each.by)
        for said, (kind, row_id) in each.others.items():
            _, after = each.fields[said]
            there = rows.get((kind, row_id))
            before = row_id if there is None else there[declared(KINDS[kind]).by[-1]]
            each.fields[said] = (before, after)


async def _rows(session: Applying, changes: Sequence[Planned]) -> Mapping[Which, Row]:
    """Rows that names are made of; those that refer to others before them."""
    wanted: dict[str, set[object]] = defaultdict(set)

    def want(resource: Resource, by: Row) -> None:
        for name in declared(resource).by:
            kind = references(resource).get(name)
            if kind is not None and by[name] is not None and not isinstance(by[name], New):
                wanted[kind].add(by[name])

    for each in changes:
        want(each.resource, each.by)
        for kind, row_id in each.others.values():
            if row_id is not None:
                wanted[kind].add(row_id)
    found: dict[Which, Row] = {}
    for kind, resource in reversed(list(KINDS.items())):
        ids = wanted[kind]
        for row in await session.find(kind, {"id": ids}, len(ids)) if ids else ():
            found[kind, row["id"]] = row
            want(resource, row)
    return found
