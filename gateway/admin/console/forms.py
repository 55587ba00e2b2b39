"""Forms: the fields of a model with their values, and the JSON body of a submitted form.

Nothing is validated here: a text that does not fit its field's type is passed on unchanged, so that the
resource's model reports the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple
from uuid import uuid4

from multidict import MultiMapping
from pydantic import BaseModel

from gateway.admin.console.formatting import label_of
from gateway.admin.console.outlines import read_outline, write_outline
from gateway.admin.console.screens import Slot
from gateway.admin.http.requests import id_of
from gateway.admin.resources import form_fields as typed_as
from gateway.admin.resources.form_fields import FormField, words
from gateway.core.accounts.administration import Row
from gateway.errors import AdminRefusal

FORMER = "was."
# Fields with nested values; an example explains more than a schema.
EXAMPLES = {
    "pricing": "tiers:\n  - up_to: 1000\n    unit_price: 0.002\n  - up_to: null\n    unit_price: 0.001",
    "auto_top_up": "threshold: 1000\ncredits: 10000\nunit_cost: 0.01\nmonthly_max: 10",
    "runs": "max: 5.00\nmax_calls: 100\nttl_s: 3600\nrequired: true",
    "address": "street: Main Road 5\npost_code: 10115\ncity: Berlin\ncountry: DE",
    "contact": "name: Ada\nphone: +49 30 1\nemail: ada@example.com",
    "images": "1024x1024/high: 0.167",
    "tools": "web_search: 10",
    "tags": "feature: search",
    "context_tiers": "- above: 200000\n  input: 6\n  output: 22.5",
    "service_tiers": "batch: 0.5\npriority:\n  input: 5\n  output: 20",
    "hours": "- days: [1, 2, 3, 4, 5]\n  from: 01:00\n  to: 04:00\n  time_zone: UTC\n  factor: 2\n  except: [2026-12-25]",
    "weights": "cache_read: 0.1",
    "steps": '- at: 0.8\n  models:\n    "claude-opus-*": claude-sonnet-4-6',
    "targets": "openai: gpt-4o\nazure: prod-4o",
    "guaranteed": "requests_per_minute: 60\ntokens_per_minute: 100000",
    "changes": "amount: 120",
}

# The start of a line of a nested value: a name and a colon.
_PART = re.compile(r"[a-z_]+: ", re.ASCII)
_MINUTE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", re.ASCII)


class Tick(NamedTuple):
    """A row that a form can be applied to by a tick: its position, its description and its maximum amount."""

    position: int
    said: str
    amount: str


@dataclass(frozen=True, slots=True)
class PageForm:
    """A form on a page: its fields, their values and errors.

    Irreversible actions are `confirmed` by a tick with this text. `former` are the values before a change;
    `once` identifies this form, so that submitting it twice has one effect. `choices` are the possible values
    of ids with short lists. `slots` are the fields in the form's sentence; of the others those not in `main`
    are folded, if `main` is not empty. `model` validates the body. `ticks` are the rows that a field with
    rows offers. `presets` are addresses of the form with usual values.
    """

    action: str
    title: str
    submit: str
    fields: Sequence[FormField] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    former: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    note: str = ""
    choices: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    is_open: bool = False
    is_dangerous: bool = False
    confirmed: str = ""
    slots: Sequence[Slot] = ()
    main: frozenset[str] = frozenset()
    model: type[BaseModel] | None = None
    ticks: Sequence[Tick] = ()
    hidden: Mapping[str, str] = field(default_factory=dict)
    presets: Sequence[tuple[str, str]] = ()
    once: str = field(default_factory=lambda: uuid4().hex)

    @property
    def sentence(self) -> list[tuple[Slot, FormField]]:
        known = {each.name: each for each in self.fields}
        return [(slot, known[slot.field]) for slot in self.slots if slot.field in known]

    @property
    def groups(self) -> list[tuple[str, list[FormField]]]:
        """The form's visible fields by heading, in order, except those that are in the form's sentence."""
        return _grouped(each for each in self._besides if not self.main or each.name in self.main)

    @property
    def more(self) -> list[tuple[str, list[FormField]]]:
        """The form's folded fields by heading, in order, except those that are in the form's sentence."""
        return _grouped(each for each in self._besides if self.main and each.name not in self.main)

    @property
    def is_unfolded(self) -> bool:
        """Whether the folded fields must be shown: one has an error or an unusual value."""
        usual = self.former or defaults(self.fields)
        folded = [each for _, fields in self.more for each in fields]
        return any(
            each.name in self.errors or self.values.get(each.name, "") != usual.get(each.name, "")
            for each in folded
        )

    @property
    def _besides(self) -> list[FormField]:
        slots = {slot.field for slot in self.slots}
        return [each for each in self.fields if each.name not in slots]


def _grouped(fields: Iterable[FormField]) -> list[tuple[str, list[FormField]]]:
    return [(group, list(fields_)) for group, fields_ in groupby(fields, lambda one: one.group)]


def fields_in_form(fields: Sequence[FormField], row: Row) -> dict[str, Any]:
    """Return a row's values for the fields of a form: texts, or lists of texts for multiple values."""
    values: dict[str, Any] = {}
    for each in fields:
        outer, _, inner = each.name.partition(".")
        value: Any = row.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        values[each.name] = _render_value(each, value)
    return values


def defaults(fields: Sequence[FormField]) -> dict[str, Any]:
    kinds: Mapping[str, Any] = {"many": [], "ticks": {}}
    return {each.name: kinds.get(each.kind, each.default) for each in fields}


def form_again(form: PageForm, posted: MultiMapping[Any], error: AdminRefusal) -> PageForm:
    """Return a refused form with the submitted values, and the errors next to their fields."""
    values = {each.name: _typed(each, each.name, posted) for each in form.fields}
    beside, others = _by_field(form.fields, error.errors)
    message = "; ".join(others) if error.errors else error.message
    return replace(form, values=values, errors=beside, message=message, is_open=True)


def former_values(fields: Sequence[FormField], posted: MultiMapping[Any]) -> dict[str, Any]:
    return {each.name: _typed(each, FORMER + each.name, posted) for each in fields}


def body_of(fields: Sequence[FormField], posted: MultiMapping[Any], *, changes: bool) -> dict[str, object]:
    """Return the JSON body of a submitted form.

    With `changes`, only fields that differ from their former value are included, and an emptied field is
    null. Otherwise empty fields are left out.
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
    # Limits without a number limit nothing; another nested value without a part is null.
    body |= {
        outer: nested[outer] if typed_as.is_limits(outer) or any(nested[outer].values()) else None
        for outer in touched
    }
    return body


def _by_field(
    fields: Sequence[FormField], errors: Sequence[tuple[str, str]]
) -> tuple[dict[str, str], list[str]]:
    """Return error messages by form field, and the messages that belong to no field."""
    beside: dict[str, str] = {}
    others: list[str] = []
    for name, message in errors:
        each = next((each for each in fields if name == each.name or name.startswith(f"{each.name}.")), None)
        if each is None:
            others.append(f"{label_of(name)}: {message}" if name else message)
        else:
            place = each.name
            inner = name.removeprefix(place).lstrip(".")
            plain = message.replace("Input should be ", "must be ").replace(
                "a valid integer", "a whole number"
            )
            if each.kind == "json" and not inner and plain.startswith("must be a valid"):
                plain = "must be lines as in the example"
            said = f"{inner}: {plain}" if inner else plain
            beside[place] = f"{beside[place]}; {said}" if place in beside else said
    return beside, others


def _typed(form_field: FormField, name: str, posted: MultiMapping[Any]) -> Any:
    sent = [text for text in posted.getall(name, []) if isinstance(text, str)]
    if form_field.kind == "many":
        return [text for text in sent if text]
    if form_field.kind == "ticks":
        places = [text for text in sent if id_of(text) is not None]
        return {text: str(posted.get(f"{name}.{text}", "")).strip() for text in places}
    text = sent[-1].strip().replace("\r\n", "\n") if sent else ""
    # Browsers omit seconds that are zero.
    return text[:16] if form_field.kind == "instant" and len(text) == 19 and text.endswith(":00") else text


def _value(form_field: FormField, typed: Any) -> object:
    if form_field.kind == "many":
        return list(typed)
    if form_field.kind == "ticks":
        return [
            {"position": int(at), "amount": item} if item else {"position": int(at)}
            for at, item in typed.items()
        ] or None
    if typed == "":
        if form_field.kind == "json" and form_field.of_texts and not form_field.nullable:
            return {}
        return [] if form_field.kind in {"lines", "numbers"} and not form_field.nullable else None
    if form_field.kind == "whole":
        count = typed_as.whole(typed)
        return typed if count is None else count
    if form_field.kind == "flag":
        return {"true": True, "false": False}.get(typed, typed)
    if form_field.kind == "instant" and _MINUTE.fullmatch(typed):
        return f"{typed}:00Z" if len(typed) == 16 else f"{typed}Z"
    if form_field.kind == "numbers":
        return typed_as.numbers(typed)
    if form_field.kind == "lines":
        lines = [line.strip() for line in typed.split("\n") if line.strip()]
        parts = read_outline(typed) if form_field.name in EXAMPLES and all(map(_PART.match, lines)) else None
        return parts if isinstance(parts, Mapping) else lines
    return read_outline(typed) if form_field.kind == "json" else typed


def _render_value(form_field: FormField, value: Any) -> Any:
    if form_field.kind == "many":
        return [str(item) for item in value or ()]
    if value is None:
        return ""
    if form_field.kind == "flag":
        return "true" if value else "false"
    if form_field.kind == "instant":
        return str(value)[:19]
    if form_field.kind == "numbers":
        return ", ".join(f"{item:g}" for item in value)
    if form_field.kind == "lines":
        return write_outline(value) if isinstance(value, Mapping) else "\n".join(map(str, value))
    if form_field.kind == "json":
        return write_outline(value)
    return str(value)


_NULL, _CODE = re.compile(r"\bNull\b"), re.compile(r"`([^`]+)`")
_NAME = re.compile(r"[a-z_]+", re.ASCII)
_OBJECT = re.compile(r"\{[^{}]*\}")


def hint_of(description: str) -> str:
    """Return a field's description for a form, with labels for field names and “Empty” for null."""
    text = _NULL.sub("Empty", description)
    text = _CODE.sub(lambda match: f"“{words(match[1]) if _NAME.fullmatch(match[1]) else match[1]}”", text)
    return _OBJECT.sub(lambda match: f"“{write_outline(read_outline(match[0]))}”", text)
