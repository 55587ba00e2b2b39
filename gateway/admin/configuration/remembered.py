"""Rows that files were applied to before, by what the files called them: whoever renames one changes nothing.

A key that another stands in the place of is that other one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.admin.configuration.identity import Identity
from gateway.admin.configuration.words import declared
from gateway.admin.ports import Applying
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import Row
from gateway.core.accounts.declaration import Mark, New

# So often one may have taken the place of another since files were applied; after more it is made anew.
FOLLOWED_MAX = 100


@dataclass(slots=True)
class Remembered:
    """Of one kind: `rows` by their names in files, `marks` by the same, and names whose rows are `lost`.

    `passed` are the ids of those in whose places the rows stand, `gone` of those that had the names.
    """

    rows: dict[Identity, Row] = field(default_factory=dict)
    marks: dict[Identity, Mark] = field(default_factory=dict)
    lost: set[Identity] = field(default_factory=set)
    passed: dict[Identity, list[int]] = field(default_factory=dict)
    gone: dict[Identity, list[int]] = field(default_factory=dict)


async def remember(
    session: Applying, resource: Resource, marks: Sequence[Mark], names: Collection[Identity],
    last: Collection[object],
) -> Remembered:  # fmt: skip
    """Find the rows of these names, whole ones or the part that people know, as files said them before."""
    mine = [mark for mark in marks if mark.said is None or mark.said in names or mark.said[-1] in last]
    there = await _read(session, resource, [_id(mark) for mark in mine])
    follows, known, wanted = declared(resource).followed_by, dict(there), list(there.values())
    for _ in range(FOLLOWED_MAX if follows else 0):
        wanted = [*(await _read(session, resource, [row[follows] for row in wanted])).values()]
        wanted = [row for row in wanted if row["id"] not in known]
        known |= {row["id"]: row for row in wanted}
        if not wanted:
            break
    return _sorted_out(resource, mine, known)


def _sorted_out(resource: Resource, marks: Sequence[Mark], known: Mapping[object, Row]) -> Remembered:
    how, found = declared(resource), Remembered()
    stands: dict[object, Identity] = {}
    # A row is called what it was last: what is of itself, not of one before it, comes last; the newest last.
    ends = [(mark, *_end(how.followed_by, known, _id(mark))) for mark in marks]
    for mark, row, passed in sorted(ends, key=lambda each: (not each[2], each[0].made, _id(each[0]))):
        name = mark.said if mark.said is not None else _name(resource, known.get(_id(mark)))
        if name is None:
            continue
        if row is None or how.is_gone(row):
            found.lost.add(name)
            found.gone.setdefault(name, []).append(_id(mark))
            continue
        found.passed.setdefault(name, []).extend(passed)
        earlier = stands.get(row["id"])
        if earlier is not None and earlier != name and found.rows[earlier]["id"] == row["id"]:
            del found.rows[earlier], found.marks[earlier]
        stands[row["id"]] = name
        found.rows[name], found.marks[name] = row, mark
    found.lost -= found.rows.keys()
    return found


def _end(follows: str, known: Mapping[object, Row], row_id: int) -> tuple[Row | None, list[int]]:
    """The row that stands for one by now, and those that it passed."""
    row, passed = known.get(row_id), list[int]()
    while row is not None and follows and row[follows] is not None and len(passed) < FOLLOWED_MAX:
        passed.append(int(str(row["id"])))
        row = known.get(row[follows])
    return row, passed


def _name(resource: Resource, row: Row | None) -> Identity | None:
    return None if row is None else tuple(row[name] for name in declared(resource).by)


def _id(mark: Mark) -> int:
    assert not isinstance(mark.row_id, New)  # what is stored has an id
    return mark.row_id


async def _read(session: Applying, resource: Resource, ids: Collection[object]) -> dict[object, Row]:
    wanted = {each for each in ids if each is not None}
    rows = await session.find(resource.name, {"id": wanted}, len(wanted)) if wanted else ()
    return {row["id"]: row for row in rows}
