"""Models that follow from the one a row is made by: what a change may say, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from gateway.admin.resources.values import Day, Id, In, Instant, LimitsIn, LimitsOut, Out

AS_CREATED: Mapping[str, object] = {}
# What is said of figures that the counters know better.
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
        field: (kinds.get(field, _kind(info)), Field(default_factory=_absent, description=info.description))
        for field, info in model.model_fields.items()
        if field not in without
    }
    name = name or model.__name__.replace("Create", "Patch")
    made: type[In] = create_model(name, __base__=In, **fields)  # type: ignore[call-overload]  # built fields
    made.__doc__ = f"The fields of {model.__name__} to change; those left out stay."
    return made


def dated(model: type[In], name: str, doc: str, description: str) -> type[In]:
    """Make a model that says `from` which day on it counts besides: no class has a field of that name."""
    day = {"from": (Day, Field(description=description))}
    made: type[In] = create_model(name, __base__=model, __doc__=doc, **day)  # type: ignore[call-overload]  # built
    return made


def answer_of(model: type[In], doc: str, *, base: type[Out] = Out, **more: object) -> type[Out]:
    """Make what is answered of a row that `model` makes: its fields, its id and when it was made.

    `more` are fields that are answered besides, or in another kind than is asked.
    """
    fields: dict[str, Any] = {"id": (Id, ...)}
    for name, info in model.model_fields.items():
        fields[name] = (_told(_kind(info)), Field(description=info.description))
    for name, kind in more.items():
        fields[name] = kind if isinstance(kind, tuple) else (kind, ...)
    if "timestamp" not in fields:
        fields["created_at"] = (Instant, ...)
    made: type[Out] = create_model(
        model.__name__.removesuffix("Create"), __base__=base, __doc__=doc, **fields
    )
    return made


def _kind(info: FieldInfo) -> Any:
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def _told(kind: Any) -> Any:
    """The kind of an answer: texts, choices and documents as they are stored, all else as it is asked."""
    origin, inner = get_origin(kind), get_args(kind)
    if LimitsIn in inner:
        return LimitsOut
    if origin in {Union, UnionType}:
        return reduce(or_, map(_told, inner))
    if origin is list:
        return list[_told(inner[0])]  # type: ignore[misc]  # made here
    if origin is Literal:
        return str
    if origin is Annotated:
        plain = _told(inner[0])
        return plain if plain is str or plain is not inner[0] or get_origin(plain) is list else kind
    return dict[str, Any] if isinstance(kind, type) and issubclass(kind, In) else kind


def _absent() -> None:
    return None
