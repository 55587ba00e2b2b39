"""Reads a sent configuration: each object is checked as the Admin API checks a row.

Ids are not known yet: references to other rows stay names.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any

from pydantic import ValidationError

from gateway.admin.configuration.suggestions import near
from gateway.admin.configuration.words import KINDS, declared, model, references, with_keys, word, words
from gateway.admin.http import bodies
from gateway.admin.resources.resource import Resource
from gateway.admin.resources.values import In
from gateway.core.accounts.administration import OWNER, Row
from gateway.core.billing.price_book import folded
from gateway.errors import Unprocessable

OBJECTS_MAX = 20_000
ERRORS_MAX = 50
# Unknown kinds named in the errors; with this many, nothing else is checked.
UNKNOWN_KINDS_MAX = 5
# Maximum of values in one object, at any depth, besides its parts; and of values in one list of parts: there
# are up to 10,000 parts of five values.
OBJECT_VALUES_MAX = 5_000
PART_VALUES_MAX = 60_000
# Characters of an unknown name that an error repeats.
NAME_SHOWN_CHARS_MAX = 100
REFERENCE_DEPTH_MAX = 3
# Placeholders for an id, and for a time, that are not known yet.
_SOME_ID = 1
_SOME_TIME = "2000-01-01T00:00:00Z"

Error = tuple[str, str]
Errors = list[Error]
# An object's kind, its position within the kind, and its position among all objects.
_Place = tuple[Resource, int, int]


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to a row by its name; the parts in `says` may be references themselves."""

    target: Resource
    says: Mapping[str, object]

    @property
    def name(self) -> object:
        """The last part of the referred row's name, the one that people know it by."""
        return self.says.get(declared(self.target).by[-1])


@dataclass(frozen=True, slots=True)
class PartName:
    """A reference in the list `field` of parts, at `index`, with the text `prefix` before the name."""

    field: str
    index: int
    prefix: str
    reference: Reference


@dataclass(slots=True)
class WantedObject:
    """An object of the configuration: `values` are its checked fields, except those that name other rows.

    In lists of parts placeholders stand for the keys that name other rows, which are `part_names`.
    """

    resource: Resource
    index: int
    # The position among all objects, in the order of creation.
    number: int
    said: Row
    row: In
    values: Row
    names: Mapping[str, Reference | None]
    part_names: Sequence[PartName] = ()
    # Parts that have ended, by list and place in it.
    ended: Collection[tuple[str, int]] = ()
    # The ids of the referred rows, or placeholders for rows to be created, once resolved; and the lists of
    # parts with such ids, for writes and as JSON.
    ids: dict[str, object] = field(default_factory=dict)
    part_json: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def at(self) -> str:
        return f"{self.resource.name}.{self.index}"

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(sorted({*self.values, *self.names}))

    @property
    def name(self) -> str:
        named = self.said.get(word(self.resource, declared(self.resource).by[-1]))
        if isinstance(named, dict):
            named = " / ".join(str(part) for part in named.values() if isinstance(part, str))
        return shorten_name(str(named or ""))

    def full(self) -> Row:
        """Return all values of the object, with the defaults of fields that are left out."""
        return self.row.model_dump()

    def as_json(self) -> Row:
        return self.row.model_dump(mode="json")

    def resolve_parts(self, keys: Mapping[str, Mapping[int, object]]) -> None:
        """Put keys that name rows in their places in lists of parts, and leave out the parts that have ended."""
        lists: Mapping[str, Any] = self.values
        for name in declared(self.resource).parts.keys() & lists.keys():
            key = declared(self.resource).parts[name].key
            self.ids[name], self.part_json[name] = (
                [
                    part
                    for index, part in enumerate(with_keys(key, parts, keys.get(name, {})))
                    if (name, index) not in self.ended
                ]
                for parts in (lists[name], self.row.model_dump(mode="json", include={name})[name])
            )


@dataclass(frozen=True)
class ConfigObjects:
    """All sent objects by kind, in the order in which rows can be created."""

    by_kind: Mapping[str, Sequence[WantedObject]]

    @cached_property
    def count(self) -> int:
        return sum(map(len, self.by_kind.values()))


def read(
    sent: Mapping[str, object], now: datetime, own: int | None = None, objects_max: int = OBJECTS_MAX
) -> ConfigObjects:
    """Read and check all objects; raise `Unprocessable` with the position and field of each error.

    For a caller of one organization (`own`), objects without an organization belong to it. Parts that have
    ended at `now` are left out.
    """
    unknown = [*islice((kind for kind in sent if kind not in KINDS), UNKNOWN_KINDS_MAX)]
    errors: Errors = [
        (shorten_name(kind), f"unknown kind; {near(shorten_name(kind), KINDS)}") for kind in unknown
    ]
    if len(unknown) == UNKNOWN_KINDS_MAX:
        refuse(errors)
    wanted_objects: dict[str, list[WantedObject]] = {}
    count = number = 0
    for kind, resource in KINDS.items():
        objects = sent.get(kind, [])
        if not isinstance(objects, list):
            errors.append((kind, "must be a list of objects"))
            continue
        count += len(objects)
        if count > objects_max:
            raise Unprocessable(errors=((kind, f"too many objects: at most {objects_max} at once"),))
        for index, item in enumerate(objects):
            number += 1
            wanted = _object((resource, index, number), item, own, now, errors)
            if wanted is not None:
                wanted_objects.setdefault(kind, []).append(wanted)
            if len(errors) >= ERRORS_MAX:
                refuse(errors)
    refuse(errors)
    return ConfigObjects(wanted_objects)


def refuse(errors: Errors) -> None:
    """Raise `Unprocessable` with the first `ERRORS_MAX` errors, if there are any."""
    if errors:
        raise Unprocessable("Nothing was applied.", tuple(errors[:ERRORS_MAX]))


def _object(
    place: _Place, item: object, own: int | None, now: datetime, errors: Errors
) -> WantedObject | None:
    """Return the object that an item of a document describes, or None after adding its faults to `errors`."""
    resource, index, number = place
    at, how = f"{resource.name}.{index}", declared(resource)
    if not isinstance(item, dict):
        errors.append((at, "must be an object: fields and their values"))
        return None
    if most := _passed_maximum(how.parts, item):
        errors.append((at, f"holds more than {most} values"))
        return None
    here: Errors = []
    ids = references(resource)
    values, names = _read_fields(resource, item, here)
    part_names = [name for field in how.parts for name in _part_names(resource, field, values, here)]
    if own is not None and OWNER in ids and values.get(OWNER) is None:
        values[OWNER] = _SOME_ID
    required = [word(resource, name) for name in how.needs if values.get(name) is None]
    here += [(name, "required") for name in required if name not in dict(here)]
    checked = {**({how.since: _SOME_TIME} if how.since else {}), **values}
    try:
        row = model(resource).model_validate(checked)
    except ValidationError as error:
        messages = (
            (_field_in_file(resource, name), message)
            for name, message in bodies.errors_of(error, resource.known)
        )
        here += [message for message in messages if message[0] not in dict(here)]
    if here:
        errors += [(f"{at}.{name}", message) for name, message in here]
        return None
    plain = row.model_dump(exclude_unset=True)
    given = {name: value for name, value in plain.items() if name in values and name not in ids}
    ended = {(field, index) for field in how.parts for index in _ended_parts(resource, field, given, now)}
    return WantedObject(resource, index, number, item, row, given, names, part_names, ended)


def _passed_maximum(parts: Collection[str], fields: Mapping[str, object]) -> int:
    """Return the maximum of values that an object without its `parts`, or one of these, passes; else 0."""
    if _is_larger({name: value for name, value in fields.items() if name not in parts}, OBJECT_VALUES_MAX):
        return OBJECT_VALUES_MAX
    return PART_VALUES_MAX if any(_is_larger(fields.get(name), PART_VALUES_MAX) for name in parts) else 0


def _part_names(resource: Resource, field: str, values: bodies.Body, errors: Errors) -> list[PartName]:
    """Return the references in a list of parts; placeholders take their places in `values`."""
    how, parts = declared(resource).parts[field], values.get(field)
    part_names: list[PartName] = []
    if not isinstance(parts, list):
        return part_names
    placeholders: dict[int, object] = {}
    for index, part in enumerate(parts[: how.most]):
        if how.key and not isinstance(part, dict):
            continue
        key = part.get(how.key) if how.key else part
        kind, prefix = how.names(values, key)
        if not kind:
            continue
        named = key.removeprefix(prefix) if isinstance(key, str) else key
        try:
            part_names.append(PartName(field, index, prefix, _reference(KINDS[kind], named)))
        except ValueError as error:
            errors.append((".".join(filter(None, (field, str(index), how.key))), str(error)))
            if len(errors) >= ERRORS_MAX:
                break
        placeholders[index] = f"{prefix}{_SOME_ID}" if how.key else _SOME_ID
    values[field] = with_keys(how.key, parts, placeholders)
    return part_names


def _read_fields(
    resource: Resource, item: Mapping[str, Any], errors: Errors
) -> tuple[bodies.Body, dict[str, Reference | None]]:
    """Return the values of an item's fields, with `_SOME_ID` where it refers to an object, and these references.

    Faults are added to `errors`.
    """
    ids, known = references(resource), words(resource)
    names: dict[str, Reference | None] = {}
    values: bodies.Body = {}
    for key, value in item.items():
        name = known.get(key)
        if name is None:
            errors.append((shorten_name(key), _unknown(resource, shorten_name(key))))
            if len(errors) >= ERRORS_MAX:
                break
        elif name not in ids:
            values[name] = value
        elif value is None:
            names[name] = values[name] = None
        else:
            values[name] = _SOME_ID
            try:
                names[name] = _reference(KINDS[ids[name]], value)
            except ValueError as error:
                errors.append((key, str(error)))
    return values, names


def _ended_parts(resource: Resource, field: str, values: Row, now: datetime) -> Iterator[int]:
    """Yield the places of the parts in a list whose time has passed."""
    until, parts = declared(resource).parts[field].ends, values.get(field)
    if until and isinstance(parts, list):
        yield from (index for index, part in enumerate(parts) if (part.get(until) or now) < now)


def _unknown(resource: Resource, text: str) -> str:
    if text in references(resource):
        return f"unknown field; say {word(resource, text)}, and its name"
    if text in resource.known and text not in words(resource).values():
        return "cannot be set here"
    return f"unknown field; {near(text, words(resource))}"


def shorten_name(name: str) -> str:
    return name if len(name) <= NAME_SHOWN_CHARS_MAX else f"{name[:NAME_SHOWN_CHARS_MAX]}…"


def _is_larger(value: object, most: int) -> bool:
    """Return whether a value holds more than `most` nested values; the count stops there."""
    waiting, count = [value], 0
    while waiting:
        larger = waiting.pop()
        if isinstance(larger, dict | list):
            count += len(larger)
            if count > most:
                return True
            waiting += larger.values() if isinstance(larger, dict) else larger
    return False


def _field_in_file(resource: Resource, path: str) -> str:
    first, dot, rest = path.partition(".")
    return f"{word(resource, first)}{dot}{rest}"


def _reference(target: Resource, value: object, depth: int = 1) -> Reference:
    """Return the reference to a row of `target` that `value`, a name or an object of names, stands for.

    ValueError describes a valid reference.
    """
    how = declared(target)
    last = word(target, how.by[-1])
    if isinstance(value, str) and how.by[-1] not in references(target):
        return Reference(target, {how.by[-1]: value})
    fields = [word(target, name) for name in how.by]
    right = f"its {last}" if len(fields) == 1 else f"its {last}, or {{{', '.join(fields)}}}"
    if not isinstance(value, dict) or depth > REFERENCE_DEPTH_MAX:
        raise ValueError(f"must be {right}")  # reported like any other invalid value
    wrong = [shorten_name(said) for said in value if said not in fields][:UNKNOWN_KINDS_MAX]
    if wrong or last not in value:
        raise ValueError(f"must be {right}, not {', '.join(wrong) or 'without ' + last}")
    return Reference(target, dict(_parts(target, value, depth)))


def _parts(target: Resource, value: Mapping[str, object], depth: int) -> Iterator[tuple[str, object]]:
    """Yield the values that make up a name of a row, references to other rows included."""
    for said, parts in value.items():
        name = words(target)[said]
        if name in references(target) and parts is not None:
            yield name, _reference(KINDS[references(target)[name]], parts, depth + 1)
        elif isinstance(parts, str) or (parts is None and name != declared(target).by[-1]):
            yield name, parts
        else:
            raise ValueError(f"must have a text as its {said}")


# The identifying values and the other values, of objects and of rows alike.

Identity = tuple[object, ...]
# A row: its kind and id.
Which = tuple[str, object]


def values_of(wanted: WantedObject) -> Row:
    """Return an object's values with ids of referred rows; missing parts of its name get defaults."""
    defaults = {name: getattr(wanted.row, name) for name in declared(wanted.resource).by}
    for name in references(wanted.resource):
        if name in defaults:
            defaults[name] = None
    return {**defaults, **wanted.values, **wanted.ids}


def identity_of(resource: Resource, values: Row) -> Identity:
    how = declared(resource)
    parts = (values[name] for name in how.by)
    return tuple(folded(str(part or "")) for part in parts) if how.folded else tuple(parts)


def stored(resource: Resource, row: Row, name: str) -> object:
    becomes = declared(resource).becomes.get(name)
    return row[name] if becomes is None or row[becomes] is None else row[becomes]


class DateOrder:
    """The rows of one name, sorted once by the field `since`, the time from which each applies."""

    def __init__(self, rows: Sequence[Row], since: str) -> None:
        self._rows = sorted(rows, key=lambda row: _place(row, since))
        self._moments: list[Any] = [row[since] for row in self._rows]

    def made_for(self, moment: object) -> Row | None:
        """Return the row that applies from exactly this moment, the newest of several; None without one."""
        place = bisect_right(self._moments, moment)
        return self._rows[place - 1] if place and self._moments[place - 1] == moment else None

    def in_force(self, moment: object) -> Row | None:
        """Return the row that is in force at a moment, the newest of several; None if there is none."""
        place = bisect_right(self._moments, moment)
        return self._rows[place - 1] if place else None


def _place(row: Row, since: str) -> Any:
    return row[since], row["id"]
