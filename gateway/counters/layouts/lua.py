"""Expands the scripts' operations on layouts into offsets and formats, when their library is assembled.

A script names a layout in capitals and an operation, with names of fields:

    local mode, tokens = SETTLEMENT.read(raw)       read fields into variables of their names,
    local hold_flags = HOLD.read(raw)               or of their names after the layout's name
    HOLD.field(raw, 'created')                      one field
    HOLD.bytes(raw, 'key_tpm', 'organization_tpm')  the packed bytes from one field to another
    SETTLEMENT.since(raw, 'layout')                 the bytes from one field to the end of the string
    HOLD.behind(raw)                                the bytes after the whole layout
    HOLD.opened(raw, 'credits')                     the fields up to this one as a table; or all
    hold.tokens, raised_hold.tokens                 a field of such a table, whose name ends in its layout's
    HOLD.fresh('credits')                           a table of defaults up to this field; or of all
    HOLD.written(hold)                              a table, packed
    HOLD.pack{tokens = 5, created = now}            a packed layout; fields without a value have their default
    BUDGET.before(form, {calls = 1}, more, values)  packed with more values behind it, by a form that begins with its own
    HOLD.span('', 'credits', {tokens = 5})          only the fields before this one, packed
    HOLD.span('credits', 'seen', {})                from one field up to another, or to the last number ('')
    ENTRY.texts{user = user}                        only the texts, packed
    HOLD.replaced(raw, {charged = 5})               the packed value with other values of these fields
    HOLD.today(raw, number)                         a value with an older layout number, in today's layout
    HOLD.earlier(raw)                               a value of today's layout, in the one before
    PLAN.into(tenant, raw)                          read into the fields of these names of an opened state
    TENANT.account(raw, 'cycle')                    opened up to this field or all; the fields common to all
                                                    accounts are 0, except the flags
    TENANT.renewed(raw, head, 'held', tenant)       other common fields, then the account's fields up to this
                                                    one from `tenant`, and the rest as packed
    TENANT.unmoved(raw)                             the packed fields before all that calls move
    TENANT.moved(tenant, 'held')                    the fields that calls move, up to this one, packed
    TENANT.past(raw, 'held')                        the packed fields after this one

A script that runs has none of these names, but `struct.unpack`, `string.sub` and numbers in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum, IntFlag
from itertools import groupby
from struct import Struct

from gateway.core.accounts import budgets
from gateway.core.accounts import steps as budget_steps
from gateway.core.accounts.outbox import EventFlag, EventKind, EventNote
from gateway.core.layout import EARLIER, FIRST, LAYOUT, Layout, LayoutField
from gateway.core.model import LimitKind, Scope, SettleResult, Verdict
from gateway.counters.layouts import accounts, packing, states

_CALL = re.compile(r"\b(?P<layout>[A-Z][A-Z_]*)\.(?P<verb>[a-z]+)(?=[({])")
_LOCALS = re.compile(r"(?P<made>\blocal )?(?<![.\w])(?P<names>\w+(?:,\s*\w+)*) =\s*$")
_FIELD = re.compile(r"(?<![.\w])(?P<record>(?:[a-z]+_)*(?P<layout>[a-z]+))\.(?P<field>[a-z_]+)\b")
# Tables with fields that are no opened layouts: libraries, scripts, and the JSON values of `share` and `note`.
_TABLES = frozenset({
    "facts", "math", "redis", "string", "struct", "table", "cjson", "cmsgpack", "capacity", "limits", "share",
    "asked", "other", "left", "wide", "payment", "rings", "carries", "script", "form", "list", "accounts",
})  # fmt: skip
_CLOSED_BY = {"(": ")", "{": "}", "[": "]"}
# The fields of an account before this one are its definition.
FIRST_MOVED = "requests_used"
_NAMES_MAX = 1_000  # characters before a `read` in which its variables are searched
# At least this many fields of 0 in a row are written as one string of zeros.
_ZEROS_MIN = 4
_WHOLE = re.compile(r"-?\d+")
# Names of functions in expanded text.
EMITTED_NAMES = frozenset({"lengths_8", "lengths_16", "packed_length"})
_NUMBERS: dict[str, type[IntEnum | IntFlag]] = {
    "VERDICT": Verdict, "SETTLED": SettleResult, "KIND": LimitKind, "SCOPE": Scope,
    "EVENT": EventKind, "ENTRY": EventFlag, "NOTE": EventNote,
}  # fmt: skip


def constants(layouts: Sequence[Layout]) -> dict[str, str]:
    """Return the constants of the scripts: flags, modes, codes, sizes of layouts, formats of states."""
    found = {"TODAY": LAYOUT, "EARLIER": EARLIER} | {
        name: number
        for module in (accounts, budgets, packing, states, budget_steps)
        for name, number in vars(module).items()
        if name.isupper() and isinstance(number, int)
    }
    for prefix, numbers in _NUMBERS.items():
        found |= {f"{prefix}_{one.name}": one.value for one in numbers}
    found |= {f"VERB_{name.upper()}": number for name, number in packing.VERBS.items()}
    found |= {f"{one.name}_BYTES": one.size for one in layouts}
    found |= {f"{one.name}_SIZE": len(one.fields) for one in layouts}
    found |= {f"WINDOW_{one.name.upper()}_AT": at for at, one in enumerate(states.WINDOW.fields, 1)}
    at = {(one.name, field.name): place for one in layouts for place, field in enumerate(one.fields, 1)}
    found |= {f"{name}_AT": at[begins] for name, begins in packing.RECORDS.items()}
    steps = ", ".join(f"[{unit}] = {step}" for unit, step in budgets.WIDE_STEPS.items())
    forms = {f"{one.name}_FORM": f"'{_form(one.fields)}'" for one in layouts}
    return {name: str(number) for name, number in found.items()} | forms | {"WIDE_STEPS": f"{{{steps}}}"}


def expanded(text: str, layouts: Sequence[Layout]) -> str:
    """Return a script with its layout operations written out; KeyError or ValueError for an unknown one.

    The script has as many lines as before.
    """
    by_name = {one.name: one for one in layouts}
    # The last first: an operation inside another's arguments is written out before it.
    for match in reversed(list(_CALL.finditer(text))):
        layout, write = by_name.get(match["layout"]), _WRITERS.get(match["verb"])
        if layout is None or write is None:
            raise ValueError(f"no layout does {match[0]}")
        arguments, end = _arguments(text, match.end())
        arguments = [one[1:-1] if one[0] == "'" else one for one in arguments]  # names of fields
        begin = match.start()
        if match["verb"] == "read":
            names = _LOCALS.search(text, max(0, begin - _NAMES_MAX), begin)
            if names is None:
                raise ValueError(f"{match[0]} has no names to read into")
            begin, arguments = names.start(), [names["made"] or "", names["names"], *arguments]
        lines = "\n" * text.count("\n", begin, end)
        text = text[:begin] + write(layout, *arguments) + lines + text[end:]

    def place(match: re.Match[str]) -> str:
        if match["record"] in _TABLES:
            return match[0]
        return f"{match['record']}[{by_name[match['layout'].upper()].index(match['field']) + 1}]"

    return _FIELD.sub(place, text)


# --- one function for each operation: its text -----------------------------------------------
def _read(layout: Layout, made: str, names: str, packed: str, at: str = "") -> str:
    of, prefix = {one.name for one in layout.fields}, f"{layout.name.lower()}_"
    given = re.split(r",\s*", names)
    wanted = {name if name in of else name.removeprefix(prefix): name for name in given}
    places = sorted(layout.index(name) for name in wanted)
    fields = layout.fields[places[0] : places[-1] + 1]
    read = ", ".join(wanted.get(one.name, "_") for one in fields)
    if not made and len(wanted) < len(fields):
        made = "local _ "  # fields in between go to `_`
    return f"{made}{read} = {_parse(layout, fields, packed, at)}"


def _field(layout: Layout, packed: str, name: str) -> str:
    field = _named(layout, name)
    if field.kind.size == 1:
        return f"byte({packed}{_at(_begin(layout, field))})"
    return f"({_parse(layout, [field], packed)})"


def _opened(layout: Layout, packed: str, last: str = "") -> str:
    end = layout.index(last) + 1 if last else len(layout.fields)
    return f"{{{_parse(layout, layout.fields[:end], packed)}}}"


def _written(layout: Layout, state: str) -> str:
    return f"pack('{_form(layout.fields)}', values({state}, 1, {len(layout.fields)}))"


def _fresh(layout: Layout, last: str = "") -> str:
    count = layout.index(last) + 1 if last else len(layout.fields)
    return "{" + ", ".join(str(one.default) for one in layout.fields[:count]) + "}"


def _bytes(layout: Layout, packed: str, first: str, last: str) -> str:
    return _sub(packed, layout.offset(first) + 1, layout.end(last))


def _since(layout: Layout, packed: str, name: str) -> str:
    return _sub(packed, layout.offset(name) + 1)


def _behind(layout: Layout, packed: str) -> str:
    return _sub(packed, layout.size + 1)


def _pack(layout: Layout, values: str) -> str:
    return _packed(layout, layout.fields, values)


def _before(layout: Layout, form: str, values: str, *more: str) -> str:
    given = _values(layout, values)
    return f"pack({form}, {', '.join([given.get(one.name, str(one.default)) for one in layout.fields] + [*more])})"


def _span(layout: Layout, first: str, behind: str, values: str) -> str:
    numbers = [one for one in layout.fields if not one.is_text]
    end = layout.index(behind) if behind else None
    return _packed(layout, numbers[layout.index(first) if first else 0 : end], values)


def _texts(layout: Layout, values: str) -> str:
    return _packed(layout, [one for one in layout.fields if one.is_text], values)


def _packed(layout: Layout, fields: Sequence[LayoutField], values: str) -> str:
    """Return the Lua expression that packs fields; ValueError if `values` has a wrong or missing name.

    All numbers are one call, or one literal if their values are known. A text is preceded by its length.
    """
    given = _values(layout, values)
    if missing := given.keys() - {one.name for one in fields}:
        raise ValueError(f"{layout.name} has no {missing} there")
    for one in fields:
        if one.name not in given and one.default is None:
            raise ValueError(f"{layout.name}.pack does not say {one.name}")
    numbers = [one for one in fields if not one.is_text]
    said = {one.name: given.get(one.name, str(one.default)) for one in fields}
    if numbers and all(_WHOLE.fullmatch(said[one.name]) for one in numbers):
        layout_of = Struct("<" + "".join(one.kind.python for one in numbers))
        packed = [_literal(layout_of.pack(*[int(said[one.name]) for one in numbers]))]
    else:
        packed = [_numbers(numbers, given)] if numbers else []
    for one in fields[len(numbers) :]:
        known, form, text = f"lengths_{8 * one.kind.size}", f"<{one.kind.lua[0]}", said[one.name]
        packed += [f"({known}[#{text}] or packed_length({known}, '{form}', #{text}))", text]
    return " .. ".join(packed)


def _numbers(fields: Sequence[LayoutField], given: dict[str, str]) -> str:
    form, parts = "<", list[str]()
    for is_zero, run in groupby(fields, lambda one: one.name not in given and one.default == 0):
        known = list(run)
        if is_zero and len(known) >= _ZEROS_MIN:
            size = sum(one.kind.size for one in known)
            form, parts = form + f"c{size}", [*parts, "'" + r"\0" * size + "'"]
        else:
            form += _form(known)[1:]
            parts += [given.get(one.name, str(one.default)) for one in known]
    return f"pack('{form}', {', '.join(parts)})"


def _replaced(layout: Layout, packed: str, values: str) -> str:
    given = _values(layout, values)
    runs = [(kept, list(run)) for kept, run in groupby(layout.fields, lambda one: one.name not in given)]
    if [kept for kept, _ in runs] == [True, False]:  # one call packs a beginning and a new part
        size = sum(one.kind.size for one in runs[0][1])
        new = ", ".join(given[one.name] for one in runs[1][1])
        return f"pack('<c{size}{_form(runs[1][1])[1:]}', {packed}, {new})"
    parts = []
    for kept, fields in runs:
        if kept:
            parts.append(_bytes(layout, packed, fields[0].name, fields[-1].name))
        else:
            parts.append(f"pack('{_form(fields)}', {', '.join(given[one.name] for one in fields)})")
    return " .. ".join(parts)


def _today(layout: Layout, packed: str, number: str) -> str:
    ways = [
        f"{number} < {max(older + 1, FIRST)} and {_joined(packed, layout.by_older(older))}"
        for older in (0, *range(FIRST, LAYOUT))
    ]
    return " or ".join(ways)


def _earlier(layout: Layout, packed: str) -> str:
    return f"({_joined(packed, layout.by_today())})"


def _into(layout: Layout, state: str, packed: str) -> str:
    places = ", ".join(f"{state}.{one.name}" for one in layout.fields)
    return f"{places} = {_parse(layout, layout.fields, packed)}"


def _account(layout: Layout, packed: str, last: str = "") -> str:
    head, end = ["0"] * layout.shared, layout.index(last) + 1 if last else len(layout.fields)
    head[layout.index("flags")] = _field(layout, packed, "flags")
    return f"{{{', '.join(head)}, {_parse(layout, layout.fields[layout.shared : end], packed)}}}"


def _renewed(layout: Layout, packed: str, head: str, last: str, state: str) -> str:
    shared, end = layout.shared, layout.index(last) + 1
    values = ", ".join(f"{state}[{at}]" for at in range(shared + 1, end + 1))
    moved = f"pack('{_form(layout.fields[shared:end])}', {values})"
    return f"({head} .. {moved} .. {_sub(packed, layout.end(last) + 1)})"


def _unmoved(layout: Layout, packed: str) -> str:
    return _sub(packed, 1, layout.offset(FIRST_MOVED))


def _moved(layout: Layout, state: str, last: str) -> str:
    begin, end = layout.index(FIRST_MOVED), layout.index(last) + 1
    values = ", ".join(f"{state}[{at}]" for at in range(begin + 1, end + 1))
    return f"pack('{_form(layout.fields[begin:end])}', {values})"


def _past(layout: Layout, packed: str, last: str) -> str:
    return _sub(packed, layout.end(last) + 1)


_WRITERS: dict[str, Callable[..., str]] = {
    "read": _read, "field": _field, "bytes": _bytes, "since": _since, "behind": _behind, "opened": _opened,
    "fresh": _fresh, "written": _written, "pack": _pack, "before": _before, "span": _span, "texts": _texts,
    "replaced": _replaced, "today": _today, "earlier": _earlier, "into": _into, "account": _account,
    "renewed": _renewed, "unmoved": _unmoved, "moved": _moved, "past": _past,
}  # fmt: skip


# --- bytes and names --------------------------------------------------------------------------
def _form(fields: Sequence[LayoutField]) -> str:
    return "<" + "".join(one.kind.lua for one in fields)


def _parse(layout: Layout, fields: Sequence[LayoutField], packed: str, at: str = "") -> str:
    begin = _begin(layout, fields[0])
    where = f", {at} + {begin - 1}" if at and begin > 1 else f", {at}" if at else _at(begin)
    return f"parse('{_form(fields)}', {packed}{where})"


def _at(begin: int) -> str:
    return f", {begin}" if begin > 1 else ""


def _sub(packed: str, first: int, last: int | None = None) -> str:
    return f"sub({packed}, {first}{f', {last}' if last else ''})"


def _joined(packed: str, parts: Sequence[slice | bytes]) -> str:
    return " .. ".join(
        _sub(packed, one.start + 1, one.stop) if isinstance(one, slice) else _literal(one) for one in parts
    )


def _literal(packed: bytes) -> str:
    return "'" + "".join(f"\\{byte:03}" for byte in packed) + "'"


def _begin(layout: Layout, field: LayoutField) -> int:
    return layout.offset(field.name) + 1


def _named(layout: Layout, name: str) -> LayoutField:
    return layout.fields[layout.index(name)]


def _values(layout: Layout, braced: str) -> dict[str, str]:
    """Return the fields of `{name = value, …}`; ValueError for a name that the layout lacks."""
    found = {}
    for one in _arguments(braced, 0)[0]:
        name, _, value = one.partition("=")
        found[layout.fields[layout.index(name.strip())].name] = value.strip()
    return found


def _arguments(text: str, at: int) -> tuple[list[str], int]:
    """Return the arguments between the bracket at `at` and its closing one, and the index after that.

    Text in braces is one argument.
    """
    if text[at] == "{" and at:
        inner, end = _arguments(text[at:], 0)
        return ["{" + ", ".join(inner) + "}"], at + end
    found, closing, begin = [], [_CLOSED_BY[text[at]]], at + 1
    for place, one in _code(text, at + 1):
        if one in _CLOSED_BY:
            closing.append(_CLOSED_BY[one])
        elif one == closing[-1]:
            closing.pop()
        if not closing or (one == "," and len(closing) == 1):
            found.append(" ".join(text[begin:place].split()))
            begin = place + 1
        if not closing:
            return [one for one in found if one], begin
    raise ValueError(f"nothing closes {text[at : at + 20]}")


def _code(text: str, at: int) -> Iterator[tuple[int, str]]:
    """Yield the characters outside of strings, each with its index."""
    quote = ""
    for place in range(at, len(text)):
        one = text[place]
        if quote:
            quote = "" if one == quote else quote
        elif one in "'\"":
            quote = one
        else:
            yield place, one
