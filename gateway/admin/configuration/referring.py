"""Whom names stand for: what objects refer to, among what is there and what will be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from gateway.admin.configuration.identity import Identity, Which, values_of
from gateway.admin.configuration.objects import ERRORS_MAX, Errors, Reference, Wanted, shown
from gateway.admin.configuration.suggesting import SUGGESTED_MAX, suggestion
from gateway.admin.configuration.words import declared, references, word
from gateway.admin.resources import Resource
from gateway.core.accounts.administration import OWNER, Row
from gateway.core.accounts.declaration import Mark, New


class _Unknown(LookupError):
    """A name that nothing has: of which kind, and which."""

    def __init__(self, kind: str, name: object) -> None:
        super().__init__(f"{_there_is_no(kind, name)}; no object here makes one")
        self.which = (kind, name)


class Names:
    """What is there or will be, kind by kind; objects that refer to it are resolved behind it."""

    def __init__(self, own: int | None, errors: Errors, marks: Mapping[Which, Mark]) -> None:
        # Rows that others may have the names of tomorrow, with their whole names.
        self.referred: dict[Which, Identity | None] = {}
        # Objects that name what is not there any more: they wait, and nothing else does.
        self.left: list[tuple[Wanted, str]] = []
        # Ids that objects are about, and names of what was there before, by kind.
        self.said: dict[str, set[object]] = defaultdict(set)
        self.lost: dict[str, set[object]] = defaultdict(set)
        self._own = own
        self._errors = errors
        self._marks = marks
        self._unknown: list[tuple[int, str, object]] = []
        # By the last part of names and by whole ones; which of them files gave, and all of a row's.
        self._named: dict[str, dict[object, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._whole: dict[str, dict[Identity, list[object]]] = defaultdict(lambda: defaultdict(list))
        self._called: set[tuple[str, object, object]] = set()
        self._whole_of: dict[Which, Identity] = {}
        # What a name of a kind stands for: thousands of rows may have it, and thousands of objects say it.
        self._known: dict[tuple[str, object], Sequence[object]] = {}

    def know(self, resource: Resource, by: Row, row_id: object, *, called: bool = False) -> None:
        """Have a row be there by its name; files `called` it so, whatever it is called now."""
        kind, how = resource.name, declared(resource)
        last, whole = by[how.by[-1]], tuple(by[name] for name in how.by)
        if called:
            self._whole_of[kind, row_id] = whole
            is_known = row_id in self._whole[kind].get(whole, ())
            self._called |= {(kind, last, row_id), (kind, whole, row_id)}
            if is_known:
                return
        self._whole_of.setdefault((kind, row_id), whole)
        self._named[kind][last].append(row_id)
        self._whole[kind][whole].append(row_id)

    def suggest(self) -> None:
        """Say of the first names that are not there which ones may have been meant."""
        for at, kind, name in self._unknown[:SUGGESTED_MAX]:
            near = suggestion(name, self._named[kind])
            if near is not None:
                field, _ = self._errors[at]
                self._errors[at] = (field, f"{_there_is_no(kind, name)}; did you mean {near!r}?")

    def resolve(self, wanted: Wanted) -> bool:
        """Find what an object refers to; False where something is not there, or enough is wrong already."""
        wanted.ids.clear()  # whom they stood for in an earlier plan, others may not be by now
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
                self._miss(wanted, name, reference, error)
                return False
        return True

    def _miss(self, wanted: Wanted, field: str, reference: Reference, error: LookupError) -> None:
        """Leave an object whose other was there before, with all that names it; else it is wrong."""
        kind, said = reference.target.name, word(wanted.resource, field)
        if reference.name in self.lost[kind]:
            self.left.append((wanted, f"its {said} is not there any more: {error.args[0]}"))
            self.lost[wanted.resource.name].add(values_of(wanted)[declared(wanted.resource).by[-1]])
            return
        if isinstance(error, _Unknown):
            self._unknown.append((len(self._errors), *error.which))
        self._errors.append((f"{wanted.at}.{said}", str(error.args[0])))

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
            if (how.known_by_id or len(how.by) > len(wanted)) and not isinstance(found[0], New):
                which = target.name, found[0]
                self.referred[which] = self._whole_of[which] if how.known_by_id else None
            return found[0]
        if found:
            fields = ", ".join(word(target, name) for name in how.by)
            more = f"say {{{fields}}}" if len(how.by) > len(wanted) else "give all but one another name"
            raise LookupError(f"there are {len(found)} {target.name} named {reference.name!r}: {more}")
        if named:
            raise LookupError(f"there is {one} {reference.name!r}, but of another {word(target, how.by[0])}")
        raise _Unknown(target.name, reference.name)

    def _decided(self, kind: str, name: object, found: Sequence[object]) -> Sequence[object]:
        """Of rows of one name the one that these objects are about, else the one that was meant before."""
        if len(found) < 2:
            return found
        known = self._known.get((kind, name))
        if known is None:
            known = self._known[kind, name] = self._among(kind, name, found)
        return known

    def _among(self, kind: str, name: object, found: Sequence[object]) -> Sequence[object]:
        for chosen in (
            [each for each in found if each in self.said[kind]],
            [each for each in found if (kind, name, each) in self._called],
        ):
            if chosen:
                return chosen
        return [row["id"] for row in meant(kind, [{"id": each} for each in found], self._marks)]


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


def _there_is_no(kind: str, name: object) -> str:
    return f"there is no {kind.removesuffix('s')} named {shown(str(name))!r}"
