"""The definition of a resource: its fields, filters and actions.

Each resource defines its routes, checks, answers and part of the OpenAPI document. The models `create`,
`patch` and `body` describe requests, `out` answers.
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

from gateway.admin.resources.form_fields import REFERS, FormField, IntegerParameter, Secret, is_flat
from gateway.admin.resources.values import Day, Id, In, Instant, LimitsIn, LimitsOut, Out
from gateway.core.accounts.administration import Access, Row
from gateway.core.model import INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Filter:
    """The type of a filter's value: `kind` is id, count, text, uuid or flag.

    `choices` restrict a text, with `or_tag` to these and `tag:NAME`; `most` is the maximum of a number.
    """

    kind: str = "id"
    choices: tuple[str, ...] = ()
    most: int = INTEGER_MAX
    or_tag: bool = False


def filters(names: str, **choices: tuple[str, ...]) -> dict[str, Filter]:
    """Parse filters from words: `tenant_id` is an id, `model:text` a text; `choices` restrict some texts."""
    kinds = (word.partition(":") for word in names.split())
    return {
        name: Filter("text", choices[name]) if name in choices else Filter(kind or "id")
        for name, _, kind in kinds
    }


@dataclass(frozen=True, slots=True)
class Action:
    """`POST …/{id}/<name>`: returns the resource, or with `quota` the tenant's quota.

    With `settles`, the organization's accounts are closed first, so that all pending use is stored. With
    `mints` it creates a row with the resource's secret and returns it. The console shows it on rows that it
    is `offered` for, requires a tick of `confirmed` first, and shows `done` afterwards.
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
    """`GET /<resource>/<name>`: a computed answer to a query.

    With `of` it is about one row, identified by that field or by its id: `GET /<resource>/{id}/<name>`. With
    `verb` it is a `POST` with the query as its body, for those who may do that. The commands of both are written by hand.
    """

    name: str
    summary: str
    asked: type[In]
    out: type[Out]
    of: str = ""
    verb: str = ""

    @property
    def is_query(self) -> bool:
        """Whether it is a `GET` of the collection, whose command follows from its query."""
        return not (self.of or self.verb)


@dataclass(frozen=True, slots=True)
class SubResource:
    """`GET …/{id}/<name>`: a list of a row's parts; a table shows its `columns`. Without `out` there is no list.

    With `put` and `delete`, `PUT` and `DELETE …/{id}/<name>/{<part>}` run these actions of the resource on one
    part: `named` is the model of the path's last field. A `put` without a body has no answer.
    """

    name: str
    summary: str
    out: type[Out] | None = None
    order: str = ""
    columns: tuple[str, ...] = ()
    named: type[In] | None = None
    put: Action | None = None
    delete: Action | None = None

    live = ""

    @property
    def key(self) -> str:
        """The name of the path's last field."""
        assert self.named is not None
        [name] = self.named.model_fields
        return name

    @property
    def writes(self) -> tuple[tuple[str, Action], ...]:
        """The actions on one part, by method."""
        both = (("PUT", self.put), ("DELETE", self.delete))
        return tuple((method, action) for method, action in both if action is not None)

    def form_of(self, action: Action) -> type[In]:
        """Return the model of a form or command of an action: the path's last field, then those of the body."""
        assert self.named is not None
        models = (self.named,) if action.body is None else (action.body, self.named)
        made: type[In] = create_model(action.name, __base__=models)
        return made

    def render(self, row: Row) -> Row:
        assert self.out is not None
        return self.out.model_validate(row).model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class BatchEndpoint:
    """`POST /<resource>`: one `body` or a list of them; some may be refused. `name` is its command."""

    name: str
    summary: str
    body: type[In]
    out: type[Out]
    media: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DocumentEndpoint:
    """`GET …/{id}<suffix>`: a file made from a row; `asked` are parameters with values, default first.

    A `public` document needs no token.
    """

    suffix: str
    media: str
    summary: str
    asked: tuple[tuple[str, tuple[str, ...]], ...] = ()
    public: bool = False


@dataclass(frozen=True, slots=True)
class PartsDeclaration:
    """A list of a row's parts in configuration files, such as members, at most `most`; their order means nothing.

    `key` is the field that identifies a part, empty if a part is a single value. `names` returns, for an
    object's values and the key of a part, the resource of the row that the key names and the text before that
    name; the resource is "" if the key names no row. A part whose time in `ends` has passed counts as missing.
    """

    most: int
    names: Callable[[Row, object], tuple[str, str]]
    key: str = ""
    ends: str = ""


@dataclass(frozen=True, slots=True)
class ConfigDeclaration:
    """How configuration files describe a resource; resources without one are not in files.

    `by` are the fields that identify a row, the name for people last; with `folded` they are compared
    regardless of case. `needs` are fields required in files only. `after` are resources that must be created
    first, besides those whose ids it holds. Rows that are `is_gone` count as missing; rows that are not
    `is_kept` are not exported.

    Rows that never change have the field `since`: of those with one name the latest applies, and a new one
    replaces it. With `repeats`, a later row with the same time replaces an earlier one, else there is only
    one. `begins` are fields of new rows only. A field in `actions` is changed by that action, which may call
    it by another name in `words`, and takes the day from the field in `dated`; `becomes` names the field with
    its future value.

    With `known_by_id`, several rows may have one name, which an organization's own people give: rows created
    by files are identified by id, and others are left alone. `followed_by` is the field with the id of a
    row's replacement. If names are `unique` nonetheless, another row keeps its name until it is renamed.
    `claims` are fields whose values no two rows share: another row keeps them until it is gone.

    `parts` are lists of parts: fields of the model that creates a row, or sub-resources with the fields of their
    `put`, which an action in `actions` replaces as a whole.
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
    parts: Mapping[str, PartsDeclaration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Endpoint:
    """A named answer, and who may read it.

    `refers` are the resources of its ids, where they differ from `REFERS`.
    """

    name: str
    access: Access
    description: str
    out: type[Out]
    refers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name in the OpenAPI document of the model of this endpoint's answers."""
        return self.out.__name__

    def target(self, name: str) -> str:
        """Return the resource that a field's id refers to; "" if it holds no id."""
        return self.refers.get(name) or REFERS.get(name, "")

    def render(self, row: Row) -> Row:
        return self.out.model_validate(row).model_dump(mode="json")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReportEndpoint(Endpoint):
    """An answer about everything: `GET /<name>`, with `numbers` or `asked` as its query; `POST` runs `run`.

    `documents` are files of the same answer. With `by_hand` its command is written by hand. `ran` is the
    answer of `run`, if it is not the report.
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
    """A collection of the Admin API; None for a model means that the operation does not exist.

    `named_by` is the field with the name for people. `live` is the kind of live values from the counters
    (`quota` of a tenant, `credits` of an organization, `budgets`). `fixed` are messages on fields that cannot
    change. `patch_verb` is the verb of `PATCH`. `settle_first` is the action that must be applied before a
    row may be deleted. `tagged` rows have tags, which `tag:NAME` filters by.
    """

    named_by: str = "name"
    create: type[In] | None = None
    patch: type[In] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    deletable: bool = False
    live: str = ""
    patch_verb: str = "change"
    filters: Mapping[str, Filter] = field(default_factory=dict)
    tagged: bool = False
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
        """Every field of the resource, with the message for setting a field that cannot be set."""
        return {name: self.fixed.get(name, "cannot be set here") for name in self.out.model_fields}


# Fields of forms, derived from a resource's model: name, label and choices.
#
# The model's JSON schema is the only source: forms and commands have exactly the fields of the Admin API.

Json = Mapping[str, Any]  # JSON schema: any shape

LONG_TEXT_CHARS = 200
_PLAIN = {"integer": "whole", "boolean": "flag", "amount": "amount"}
# Null in the API is an empty field for people.
_NULL = re.compile(r"\bnull\b")


@cache
def fields_of(resource: Endpoint, model: type[BaseModel]) -> tuple[FormField, ...]:
    """Return the form fields of a resource's model: for a new row, a change or an action."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    form_fields: list[FormField] = []
    for name, part in schema.get("properties", {}).items():
        shape, nullable = _shape(part, schema)
        if is_flat(name) and "properties" in shape:
            for inner, inner_shape in shape["properties"].items():
                kind, _ = _kind(inner, _shape(inner_shape, schema)[0], schema)
                hint = inner_shape.get("description", "")
                form_fields.append(FormField(f"{name}.{inner}", kind, nullable=True, hint=hint))
            continue
        kind, choices = _kind(name, shape, schema)
        default = part.get("default")
        form_fields.append(
            FormField(
                name,
                kind,
                name in required,
                nullable,
                hint=_NULL.sub("empty", part.get("description", "")),
                choices=choices,
                refers=resource.target(name),
                default="" if default in (None, [], {}) else _text(default),
                of_texts=_holds_texts(shape),
            )
        )
    return tuple(form_fields)


def _shape(part: Json, schema: Json) -> tuple[Json, bool]:
    """Return the schema of a field with references resolved, and whether it may be null."""
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
    """Return the kind of form field for a JSON Schema, and the choices of a field with choices."""
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


def _holds_texts(shape: Json) -> bool:
    inner = shape.get("additionalProperties")
    named = {**shape.get("properties", {}), **shape.get("patternProperties", {})}
    parts: Sequence[Json] = [inner] if isinstance(inner, Mapping) else list(named.values())
    forms = [form for part in parts for form in part.get("oneOf", (part,)) if "$ref" not in form]
    return bool(parts) and all(_shape(form, {})[0].get("type") == "string" for form in forms)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    return str(value)


# Models derived from the one that creates a row: for changes, and for answers.

AS_CREATED: Mapping[str, object] = {}
# The description of the field that marks current values.
IS_CURRENT = "False: as last stored. The counters are away, or have what cannot be read."


def patch_of(
    model: type[In],
    *,
    without: tuple[str, ...] = (),
    name: str = "",
    kinds: Mapping[str, object] = AS_CREATED,
) -> type[In]:
    """Return a model for changes: `model` without the fields in `without`, and each field may be left out.

    `kinds` override the types of fields: a name that new rows get by default, for example, cannot become
    null.
    """
    fields = {
        field: (
            kinds.get(field, _kind_of_field(info)),
            ModelField(default_factory=absent, description=info.description),
        )
        for field, info in model.model_fields.items()
        if field not in without
    }
    name = name or model.__name__.replace("Create", "Patch")
    made: type[In] = create_model(name, __base__=In, **fields)  # type: ignore[call-overload]  # built fields
    made.__doc__ = f"The fields of {model.__name__} to change; those left out stay."
    return made


def dated(model: type[In], name: str, doc: str, description: str) -> type[In]:
    """Return a model with the additional field `from`, the first day on which it applies.

    No class can have a field of that name.
    """
    day = {"from": (Day, ModelField(description=description))}
    made: type[In] = create_model(name, __base__=model, __doc__=doc, **day)  # type: ignore[call-overload]  # built
    return made


def answer_of(model: type[In], doc: str, /, *, base: type[Out] = Out, **more: object) -> type[Out]:
    """Return the model of answers for rows that `model` creates: its fields, the id and the time of creation.

    `more` are further fields, or fields with another type.
    """
    fields: dict[str, Any] = {"id": (Id, ...)}
    for name, info in model.model_fields.items():
        fields[name] = (_answer_type(_kind_of_field(info)), ModelField(description=info.description))
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


def _answer_type(kind: Any) -> Any:
    """Return the type of an answer's field: texts, choices and documents lose the limits of requests."""
    origin, inner = get_origin(kind), get_args(kind)
    if LimitsIn in inner:
        return LimitsOut
    if origin in {Union, UnionType}:
        return reduce(or_, map(_answer_type, inner))
    if origin is list:
        return list[_answer_type(inner[0])]  # type: ignore[misc]  # made here
    if origin is Literal:
        return type(inner[0])
    if origin is Annotated:
        plain = _answer_type(inner[0])
        return plain if plain is str or plain is not inner[0] or get_origin(plain) is list else kind
    return dict[str, Any] if isinstance(kind, type) and issubclass(kind, In) else kind


def absent() -> None:
    return None


# Pages of a report: the number of items, and the end of the previous page.

CURSOR_CHARS_MAX = 400

Cursor = Annotated[
    str, ModelField(strict=True, min_length=1, max_length=CURSOR_CHARS_MAX, pattern="^[A-Za-z0-9_-]+$")
]


class PageQuery(In):
    """The query parameters of a page."""

    limit: int = ModelField(default=1_000, ge=1, le=10_000, description="Most items to tell.")
    cursor: Cursor | None = ModelField(
        default=None, description="`next_cursor` of the page before, with the same parameters."
    )
