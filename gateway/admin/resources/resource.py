"""A resource: its fields, its filters and its actions.

One row of this table makes its routes, its checks, its answers and its part of the OpenAPI
document. Models under `create`, `patch` and `body` say what may be sent; `out` what is answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic import Field as ModelField
from pydantic.fields import FieldInfo

from gateway.admin.resources.form_fields import REFERS, FormField, IntegerParameter, Secret
from gateway.admin.resources.values import Day, Id, In, Instant, LimitsIn, LimitsOut, Out
from gateway.core.accounts.administration import Access, Row
from gateway.core.model import INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Filter:
    """What a filter's value must be: `kind` is id, count, text, uuid or flag.

    `choices` narrow a text, `most` a number.
    """

    kind: str = "id"
    choices: tuple[str, ...] = ()
    most: int = INTEGER_MAX


def filters(names: str, **choices: tuple[str, ...]) -> dict[str, Filter]:
    """Make filters of words: `tenant_id` is of an id, `model:text` of that kind; a text may have choices."""
    kinds = (word.partition(":") for word in names.split())
    return {
        name: Filter("text", choices[name]) if name in choices else Filter(kind or "id")
        for name, _, kind in kinds
    }


@dataclass(frozen=True, slots=True)
class Action:
    """`POST …/{id}/<name>`: answers with the resource, or with the tenant's quota where `quota`.

    Where `settles`, the organization's accounts are closed first: all that happened is stored. One that
    `mints` makes a row with the resource's secret, and answers with it. The console offers it where it can do
    anything with a row, has `confirmed` ticked before what nothing takes back, and says `done` behind it.
    """

    name: str
    summary: str
    body: type[In] | None = None
    quota: bool = False
    settles: bool = False
    mints: bool = False
    offered: Callable[[Row], bool] = lambda _: True
    confirmed: str = ""
    done: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """`GET /<resource>/<name>`: an answer of its own to what the query asks.

    One that is `of` a field is about one row, which is named by that field or by its id:
    `GET /<resource>/{id}/<name>`. Its command is written by hand.
    """

    name: str
    summary: str
    asked: type[In]
    out: type[Out]
    of: str = ""


@dataclass(frozen=True, slots=True)
class SubResource:
    """`GET …/{id}/<name>`: a list of a row's sub-rows of a kind; a table shows `columns` of it."""

    name: str
    summary: str
    out: type[Out]
    order: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchEndpoint:
    """`POST /<resource>`: one of `body` or a list of them; some may be refused. `name` is its command."""

    name: str
    summary: str
    body: type[In]
    out: type[Out]
    media: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DocumentEndpoint:
    """`GET …/{id}<suffix>`: a file made of a row; `asked` are parameters, their values, the default first.

    One that is `public` needs no token.
    """

    suffix: str
    media: str
    summary: str
    asked: tuple[tuple[str, tuple[str, ...]], ...] = ()
    public: bool = False


@dataclass(frozen=True, slots=True)
class ConfigDeclaration:
    """How files of configuration say a row; a resource without it is not configuration.

    `by` are the fields that name a row, the one that people know it by last; they are compared without
    regard to case where `folded`. `needs` must be said although the Admin API takes a row without. `after`
    are resources that have to be there first, besides those whose ids it holds. Rows that `is_gone` says it
    of are not there; those that `is_kept` denies are not exported.

    A row that is never changed has `since`: of those with one name the one with the latest counts, and a
    new one takes its place. Of two of one moment the later row does where `repeats`, else there is one.
    `begins` are fields of a new row alone. A field in `actions` is changed by that action, which may know it
    by another of `words`, and takes the day in the field that `dated` names; where another field says what it
    will be, `becomes` names it.

    Where `known_by_id` several may have one name, which an organization's own people give: what files made is
    known by its id, and what others named so is left to them. `followed_by` names the row that stands in its
    place. Where names are `unique` nonetheless, what others gave one to keeps it until they rename it. Rows
    of others with the fields that a row `claims`, which no two rows share, keep them until they are gone.
    """

    by: tuple[str, ...] = ("name",)
    folded: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_gone: Callable[[Row], bool] = lambda _: False
    is_kept: Callable[[Row], bool] = lambda _: True
    since: str = ""
    repeats: bool = False
    begins: tuple[str, ...] = ()
    actions: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    dated: Mapping[str, str] = field(default_factory=dict)
    becomes: Mapping[str, str] = field(default_factory=dict)
    known_by_id: bool = False
    followed_by: str = ""
    unique: bool = False
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Endpoint:
    """An answer under a name, and its readers.

    `refers` says what its ids refer to where `REFERS` does not say it.
    """

    name: str
    access: Access
    description: str
    out: type[Out]
    refers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What one of its answers is called in the OpenAPI document."""
        return self.out.__name__

    def target(self, name: str) -> str:
        """Return the resource whose id a field of this one holds; empty if it holds none."""
        return self.refers.get(name) or REFERS.get(name, "")

    def render(self, row: Row) -> Row:
        return self.out.model_validate(row).model_dump(mode="json")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReportEndpoint(Endpoint):
    """One answer about everything: `GET /<name>`, with `numbers` or `asked` as its query; `POST` does `run`.

    `documents` are files of the same answer. Where it is `by_hand` its command is written by hand. What
    `run` answers is `ran`, if it is not the report.
    """

    summary: str
    numbers: Mapping[str, IntegerParameter] = field(default_factory=dict)
    asked: type[In] | None = None
    documents: tuple[DocumentEndpoint, ...] = ()
    by_hand: bool = False
    run: Action | None = None
    ran: type[Out] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Resource(Endpoint):
    """One collection of the Admin API; None for a model means it cannot be done.

    `named_by` is the field people know a row by. `live` names what the counters know better (`quota` of a
    tenant, `credits` of an organization, `budgets`). `fixed` says why a field stays as it is. `patch_verb` is
    what `PATCH` does. `settle_first` names the action that must be in force before a row may be deleted.
    """

    named_by: str = "name"
    create: type[In] | None = None
    patch: type[In] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    deletable: bool = False
    live: str = ""
    patch_verb: str = "change"
    filters: Mapping[str, Filter] = field(default_factory=dict)
    order: str = "by id ascending"
    actions: tuple[Action, ...] = ()
    documents: tuple[DocumentEndpoint, ...] = ()
    questions: tuple[Question, ...] = ()
    parts: tuple[SubResource, ...] = ()
    batch: BatchEndpoint | None = None
    secret: Secret | None = None
    settle_first: str | None = None
    declared: ConfigDeclaration | None = None

    @property
    def known(self) -> Mapping[str, str]:
        """Every field of the resource, sent or answered, with a note where it cannot be set."""
        return {name: self.fixed.get(name, "cannot be set here") for name in self.out.model_fields}


# What people are asked, made of a resource's own model: each field, how it is labelled, what may be chosen.
#
# The model's JSON schema is the only source: forms and commands ask for exactly what the Admin API takes.

Json = Mapping[str, Any]  # JSON schema: any shape

LONG_TEXT_CHARS = 200
_PLAIN = {"integer": "whole", "boolean": "flag", "amount": "amount"}
# What a program sends as null, a person leaves empty.
_NULL = re.compile(r"\bnull\b")


@cache
def fields_of(resource: Endpoint, model: type[BaseModel]) -> tuple[FormField, ...]:
    """Return the fields of one of the resource's models: of a new row, a change or an action."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    found: list[FormField] = []
    for name, part in schema.get("properties", {}).items():
        shape, nullable = _shape(part, schema)
        if name.endswith("limits"):
            found += [FormField(f"{name}.{inner}", "whole", nullable=True) for inner in shape["properties"]]
            continue
        kind, choices = _kind(name, shape, schema)
        default = part.get("default")
        found.append(
            FormField(
                name,
                kind,
                name in required,
                nullable,
                hint=_NULL.sub("empty", part.get("description", "")),
                choices=choices,
                refers=resource.target(name),
                default="" if default in (None, [], {}) else _text(default),
                of_texts=_of_texts(shape),
            )
        )
    return tuple(found)


def _shape(part: Json, schema: Json) -> tuple[Json, bool]:
    """Return the schema behind references and `or null`."""
    if "$ref" in part:
        return schema["$defs"][part["$ref"].rpartition("/")[2]], False
    options: Sequence[Json] = part.get("anyOf", part.get("oneOf", ()))
    if options:
        real = [option for option in options if option.get("type") != "null"]
        if [option.get("type") for option in real] == ["string", "integer"]:
            return {"type": "amount"}, len(real) < len(options)
        shape, _ = _shape(real[0], schema)
        return shape, len(real) < len(options)
    return part, False


def _kind(name: str, shape: Json, schema: Json) -> tuple[str, tuple[str, ...]]:
    if "enum" in shape:
        return "choice", tuple(map(str, shape["enum"]))
    if "const" in shape:
        return "choice", (str(shape["const"]),)
    if shape.get("format") == "date":
        return "day", ()
    if shape.get("format") == "date-time":
        return "instant", ()
    kind = shape.get("type")
    if kind in _PLAIN:
        return _PLAIN[kind], ()
    if kind == "array" and name != "tiers":
        items, _ = _shape(shape["items"], schema)
        if "properties" in items:
            return "json", ()
        if items.get("type") == "number":
            return "numbers", ()
        return ("many", tuple(map(str, items["enum"]))) if "enum" in items else ("lines", ())
    if kind in {"object", "array"}:
        return "json", ()
    if "0-9" in shape.get("pattern", "") and "examples" in shape:
        return "money", ()
    return ("long" if shape.get("maxLength", 0) > LONG_TEXT_CHARS else "text"), ()


def _of_texts(shape: Json) -> bool:
    inner = shape.get("additionalProperties")
    parts: Sequence[Json] = (
        [inner] if isinstance(inner, Mapping) else list(shape.get("properties", {}).values())
    )
    forms = [form for part in parts for form in part.get("oneOf", (part,)) if "$ref" not in form]
    return bool(parts) and all(_shape(form, {})[0].get("type") == "string" for form in forms)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return str(value)


# Models that follow from the one a row is made by: of a change, and of an answer.

AS_CREATED: Mapping[str, object] = {}
# Words on figures that the counters know better.
IS_CURRENT = "False: as last stored. The counters are away, or have what cannot be read."


def patch_of(
    model: type[In],
    *,
    without: tuple[str, ...] = (),
    name: str = "",
    kinds: Mapping[str, object] = AS_CREATED,
) -> type[In]:
    """Make a model in which every field of `model` may be left out but keeps its own rule.

    `kinds` are of fields that a change takes in another one: what a new row is given where nothing is said,
    such as a name, cannot be taken away again.
    """
    fields = {
        field: (
            kinds.get(field, _kind_of_field(info)),
            ModelField(default_factory=_absent, description=info.description),
        )
        for field, info in model.model_fields.items()
        if field not in without
    }
    name = name or model.__name__.replace("Create", "Patch")
    made: type[In] = create_model(name, __base__=In, **fields)  # type: ignore[call-overload]  # built fields
    made.__doc__ = f"The fields of {model.__name__} to change; those left out stay."
    return made


def dated(model: type[In], name: str, doc: str, description: str) -> type[In]:
    """Make a model that says `from` which day on it counts besides: no class has a field of that name."""
    day = {"from": (Day, ModelField(description=description))}
    made: type[In] = create_model(name, __base__=model, __doc__=doc, **day)  # type: ignore[call-overload]  # built
    return made


def answer_of(model: type[In], doc: str, /, *, base: type[Out] = Out, **more: object) -> type[Out]:
    """Make what is answered of a row that `model` makes: its fields, its id and when it was made.

    `more` are fields that are answered besides, or in another kind than is asked.
    """
    fields: dict[str, Any] = {"id": (Id, ...)}
    for name, info in model.model_fields.items():
        fields[name] = (_told(_kind_of_field(info)), ModelField(description=info.description))
    for name, kind in more.items():
        fields[name] = kind if isinstance(kind, tuple) else (kind, ...)
    if "timestamp" not in fields:
        fields["created_at"] = (Instant, ...)
    made: type[Out] = create_model(
        model.__name__.removesuffix("Create"), __base__=base, __doc__=doc, **fields
    )
    return made


def _kind_of_field(info: FieldInfo) -> Any:
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def _told(kind: Any) -> Any:
    """Return the type of an answer's field: texts, choices and documents lose the limits of input."""
    origin, inner = get_origin(kind), get_args(kind)
    if LimitsIn in inner:
        return LimitsOut
    if origin in {Union, UnionType}:
        return reduce(or_, map(_told, inner))
    if origin is list:
        return list[_told(inner[0])]  # type: ignore[misc]  # made here
    if origin is Literal:
        return type(inner[0])
    if origin is Annotated:
        plain = _told(inner[0])
        return plain if plain is str or plain is not inner[0] or get_origin(plain) is list else kind
    return dict[str, Any] if isinstance(kind, type) and issubclass(kind, In) else kind


def _absent() -> None:
    return None


# Pages of a report: how many items of it, and where the page before ended.

CURSOR_CHARS_MAX = 400

Cursor = Annotated[
    str, ModelField(strict=True, min_length=1, max_length=CURSOR_CHARS_MAX, pattern="^[A-Za-z0-9_-]+$")
]


class PageQuery(In):
    """The query of a page."""

    limit: int = ModelField(default=1_000, ge=1, le=10_000, description="Most items to tell.")
    cursor: Cursor | None = ModelField(
        default=None, description="`next_cursor` of the page before, with the same parameters."
    )
