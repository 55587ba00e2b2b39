"""Forms: the fields of a model with what is in them, and what was posted as the JSON body it stands for.

Nothing is checked here: what cannot be read as what a field wants is passed on as it was typed,
so that the resource's own model says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any
from uuid import uuid4

from multidict import MultiMapping

from gateway.admin.resources import typed as typed_as
from gateway.admin.resources.fields import Field
from gateway.core.accounts.administration import Row
from gateway.errors import AdminRefusal

FORMER = "was."
# Fields that take a document; an example says more than a schema.
EXAMPLES = {
    "pricing": '{"tiers": [{"up_to": 1000, "unit_price": "0.002"}, {"up_to": null, "unit_price": "0.001"}]}\n'
    'or {"per_million": {"gpt-4o*": {"input": 500, "output": 1500}}, "markup": "1.2"}\n'
    'or {"at_cost": {"markup": "1.2"}}',
    "auto_top_up": '{"threshold": 1000, "credits": 10000, "unit_cost": "0.01", "monthly_max": 10}',
    "tools": '{"web_search": "10"}',
    "context_tiers": '[{"above": 200000, "input": "6", "output": "22.5"}]',
    "service_tiers": '{"batch": "0.5"}',
    "weights": '{"cache_read": "0.1"}',
    "changes": '{"amount": 120}',
}

_MINUTE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Form:
    """A form on a page: fields, what is in them, what is wrong with them.

    What cannot be taken back is `confirmed` by a tick that says so.
    `former` are the values a change starts from; `once` names this filling-in, so that sending
    it twice does it once. `choices` lists what an id may refer to, where that is a short list.
    """

    action: str
    title: str
    submit: str
    fields: Sequence[Field] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    former: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    note: str = ""
    choices: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    is_open: bool = False
    is_dangerous: bool = False
    confirmed: str = ""
    once: str = field(default_factory=lambda: uuid4().hex)

    @property
    def groups(self) -> list[tuple[str, list[Field]]]:
        """The fields in order, those that stand together under their heading."""
        return [(group, list(fields)) for group, fields in groupby(self.fields, lambda each: each.group)]


def in_form(fields: Sequence[Field], row: Row) -> dict[str, Any]:
    """A row's values as a form shows them: texts, and lists of texts for what has many."""
    values: dict[str, Any] = {}
    for each in fields:
        outer, _, inner = each.name.partition(".")
        value: Any = row.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        values[each.name] = _shown(each, value)
    return values


def defaults(fields: Sequence[Field]) -> dict[str, Any]:
    """What a new form begins with."""
    return {each.name: [] if each.kind == "many" else each.default for each in fields}


def came_back(form: Form, posted: MultiMapping[Any], error: AdminRefusal) -> Form:
    """A refused form as it was typed, with what is wrong beside its fields."""
    values = {each.name: _typed(each, each.name, posted) for each in form.fields}
    beside, others = _by_field(form.fields, error.errors)
    message = "; ".join(others) if error.errors else error.message
    return replace(form, values=values, errors=beside, message=message, is_open=True)


def former_values(fields: Sequence[Field], posted: MultiMapping[Any]) -> dict[str, Any]:
    """What a change began with."""
    return {each.name: _typed(each, FORMER + each.name, posted) for each in fields}


def body_of(fields: Sequence[Field], posted: MultiMapping[Any], *, changes: bool) -> dict[str, object]:
    """The JSON body a posted form stands for.

    Where `changes`, only fields that differ from what the form began with; a field that was
    emptied is null. Otherwise a field left empty is left out.
    """
    body: dict[str, object] = {}
    nested: dict[str, dict[str, object]] = {}
    touched: set[str] = set()
    for each in fields:
        if each.name not in posted:
            continue
        typed = _typed(each, each.name, posted)
        differs = typed != _typed(each, FORMER + each.name, posted)
        outer, _, inner = each.name.partition(".")
        value = _value(each, typed)
        if inner:
            nested.setdefault(outer, {})
            if value is not None:
                nested[outer][inner] = value
            if differs or (not changes and value is not None):
                touched.add(outer)
        elif (changes and differs) or (not changes and value is not None):
            body[each.name] = value
    body |= {outer: nested[outer] for outer in touched}
    return body


def _by_field(fields: Sequence[Field], errors: Sequence[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Messages beside their fields, and those that belong to none of them."""
    beside: dict[str, str] = {}
    others: list[str] = []
    for name, message in errors:
        place = next(
            (each.name for each in fields if name == each.name or name.startswith(f"{each.name}.")), None
        )
        if place is None:
            others.append(f"{name}: {message}" if name else message)
        else:
            inner = name.removeprefix(place).lstrip(".")
            plain = message.replace("Input should be ", "must be ").replace(
                "a valid integer", "a whole number"
            )
            said = f"{inner}: {plain}" if inner else plain
            beside[place] = f"{beside[place]}; {said}" if place in beside else said
    return beside, others


def _typed(each: Field, name: str, posted: MultiMapping[Any]) -> Any:
    sent = [text for text in posted.getall(name, []) if isinstance(text, str)]
    if each.kind == "many":
        return [text for text in sent if text]
    text = sent[-1].strip().replace("\r\n", "\n") if sent else ""
    # Browsers drop seconds that are zero.
    return text[:16] if each.kind == "instant" and len(text) == 19 and text.endswith(":00") else text


def _value(each: Field, typed: Any) -> object:
    if each.kind == "many":
        return list(typed)
    if typed == "":
        return [] if each.kind in {"lines", "numbers"} and not each.nullable else None
    if each.kind == "whole":
        count = typed_as.whole(typed)
        return typed if count is None else count
    if each.kind == "flag":
        return {"true": True, "false": False}.get(typed, typed)
    if each.kind == "instant" and _MINUTE.fullmatch(typed):
        return f"{typed}:00Z" if len(typed) == 16 else f"{typed}Z"
    if each.kind == "numbers":
        return typed_as.numbers(typed)
    if each.kind == "lines":
        return [line.strip() for line in typed.split("\n") if line.strip()]
    if each.kind == "json":
        try:
            return json.loads(typed)
        except (ValueError, RecursionError):
            return typed
    return typed


def _shown(each: Field, value: Any) -> Any:
    if each.kind == "many":
        return [str(item) for item in value or ()]
    if value is None:
        return ""
    if each.kind == "flag":
        return "true" if value else "false"
    if each.kind == "instant":
        return str(value)[:19]
    if each.kind == "numbers":
        return ", ".join(f"{item:g}" for item in value)
    if each.kind == "lines":
        return "\n".join(map(str, value))
    if each.kind == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    return str(value)
