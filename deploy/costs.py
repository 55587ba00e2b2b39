#!/usr/bin/env python3
"""Draw the table of costs from the vendors' SDKs: `python deploy/costs.py`; with `--check` only compare them.

It reads the types of requests: those of tools, of parts, and members that are texts or open objects. What
people decided is kept. A new name is added as `unknown`, and a name that no SDK has any more is printed: it goes, or
into a section `by hand` if a vendor still takes it. Only SDKs that are installed are read.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import typing
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, Final

import typing_extensions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.core.families import costs_table  # noqa: E402  # found once the checkout is on the path
from gateway.core.families.costs import (  # noqa: E402  # as above
    BY_HAND,
    ENVIRONMENT,
    TOOL_MEMBERS,
    UNKNOWN,
    read_rows,
)

TABLE: Final = Path(costs_table.__file__)
COLUMNS: Final = 106
# Types of the account itself, to which no route leads, of answers' parsers, and of connections.
NO_BODIES: Final = re.compile(r"\.(admin|compliance|organization|user_profiles|webhooks|websocket\w+)\b")
# Of google-genai: what an answer has, options of the SDK itself, and jobs that no route makes.
NO_REQUESTS: Final = re.compile(r"HttpOptions|\w+Response|\w*(Tuning|Evaluation|Reward|Destination)\w*")
_CHOICE: Final = "tool_choice"  # its types are those of tools
_USES: Final = "max_uses"  # the member of tools that take a maximum of uses
_LITERALS: Final = (typing.Literal, typing_extensions.Literal)
_OPEN: Final = (dict, object, Any)
Drawn = dict[str, set[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, print what a person has to decide, and return the exit status."""
    parser = argparse.ArgumentParser(prog="costs.py")
    parser.add_argument("--check", action="store_true", help="print what differs, and write nothing")
    options = parser.parse_args(arguments)
    drawn = draw()
    lines = differences(drawn)
    if not options.check:
        head, _, _ = TABLE.read_text().partition('"""\\\n')
        TABLE.write_text(f'{head}"""\\\n{render(costs_table.ROWS, drawn)}"""\n')
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


def differences(drawn: Drawn) -> list[str]:
    """Return a line for each drawn name that the table lacks, and for each of its names that is not drawn."""
    rows, lines = read_rows(costs_table.ROWS), []
    for section, names in drawn.items():
        by_hand = rows.get(f"{section} {BY_HAND}", {})
        known = rows.get(section, {})
        lines += [f"{section}: {name} is new" for name in sorted(names - known.keys() - by_hand.keys())]
        lines += [f"{section}: {name} is gone" for name in sorted(known.keys() - names)]
    return lines


def render(rows: str, drawn: Drawn) -> str:
    """Return the rows with all drawn names that they lack, as `unknown`; comments stay before their lines."""
    known, written, section = read_rows(rows), list[str](), ""
    groups: list[tuple[list[str], str, set[str]]] = []
    comments: list[str] = []

    def end() -> None:
        new = (
            drawn.get(section, set())
            - set(known.get(section, ()))
            - set(known.get(f"{section} {BY_HAND}", ()))
        )
        if new and not any(cost == UNKNOWN for _, cost, _ in groups):
            groups.append(([], UNKNOWN, set()))
        for above, cost, names in groups:
            text = f"{cost}: {' '.join(sorted(names | (new if cost == UNKNOWN else set())))}"
            lines = textwrap.wrap(
                text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            written.extend([*above, *lines])
        groups.clear()

    for line in rows.splitlines():
        if line.startswith("["):
            end()
            section = line.strip("[]")
            written.extend(["", *comments, line])
            comments.clear()
        elif line.startswith("#"):
            comments.append(line)
        elif line.startswith(" "):
            groups[-1][2].update(line.split())
        elif line:
            cost, _, names = line.partition(":")
            groups.append(([*comments], cost, set(names.split())))
            comments.clear()
    end()
    return "\n".join(written).strip() + "\n"


def draw() -> Drawn:
    """Return the names that the installed SDKs have, by section."""
    drawn: Drawn = defaultdict(set)
    for api in ("openai", "anthropic"):
        if find_spec(api) is not None:
            _draw_types(api, _typed_dicts(f"{api}.types"), drawn)
    if find_spec("google") is not None and find_spec("google.genai") is not None:
        types = import_module("google.genai.types")
        roots = [one for name, one in vars(types).items() if re.fullmatch(r"_\w+Parameters", name)]
        roots += [types.LiveClientMessage]
        steps = import_module("google.genai._gaos.types.interactions")
        roots += [getattr(steps, name) for name in dir(steps) if re.fullmatch(r"Create\w+Param", name)]
        _draw_types("gemini", _reached(roots), drawn)
        drawn["gemini tools"] |= members_of(types.Tool).keys()
        drawn["gemini fields"] |= members_of(types.Part).keys()
    if find_spec("botocore") is not None:
        _draw_converse(drawn)
    return dict(drawn)


def _draw_types(api: str, classes: list[Any], drawn: Drawn) -> None:
    """Add the types of tools and of other objects, and the members that are texts or open objects."""
    tools, types, members = (drawn[f"{api} {what}"] for what in ("tools", "parts", "members"))
    elsewhere = set[str]()
    for one in classes:
        types.update(type_names(one))
        for name, hint in members_of(one).items():
            if any(leaf in {str, bytes, *_OPEN} for leaf in leaves(hint)):
                members.add(name)
            for inner in classes_of(hint):
                if name in TOOL_MEMBERS:
                    tools.update(type_names(inner), _environments(inner))
                    if _USES in members_of(inner):
                        drawn[f"{api} limits"].update(type_names(inner))
                elif name != _CHOICE:
                    elsewhere.update(type_names(inner))
    types -= tools - elsewhere


def _environments(tool: Any) -> Iterator[str]:
    for inner in classes_of(members_of(tool).get(ENVIRONMENT)):
        yield from (f"{kind}:{where}" for kind in type_names(tool) for where in type_names(inner))


def _draw_converse(drawn: Drawn) -> None:
    service = import_module("botocore.session").get_session().get_service_model("bedrock-runtime")
    drawn["bedrock tools"] |= service.shape_for("Tool").members.keys()
    for name in ("ContentBlock", "SystemContentBlock", "ToolResultContentBlock"):
        drawn["bedrock fields"] |= service.shape_for(name).members.keys()
    waiting, known = [service.shape_for("ConverseRequest")], set()
    while waiting:
        shape = waiting.pop()
        if shape.name not in known:
            known.add(shape.name)
            for name, member in shape.members.items():
                inner = member
                while inner.type_name in {"list", "map"}:
                    inner = inner.member if inner.type_name == "list" else inner.value
                is_open = getattr(inner, "is_document_type", False)
                if inner.type_name == "structure" and not is_open:
                    waiting.append(inner)
                elif is_open or inner.type_name == "blob" or (inner.type_name == "string" and not inner.enum):
                    drawn["bedrock members"].add(name)


def _typed_dicts(package: str) -> list[Any]:
    found: dict[Any, None] = {}
    for module in walk_packages(import_module(package).__path__, f"{package}."):
        if "param" in module.name and not NO_BODIES.search(module.name):
            for one in vars(import_module(module.name)).values():
                if typing_extensions.is_typeddict(one) and not NO_BODIES.search(one.__module__):
                    found.setdefault(one)
    return [one for one in found if one.__module__.startswith(package)]


def _reached(roots: list[Any]) -> list[Any]:
    found: dict[Any, None] = {}
    while roots:
        one = roots.pop()
        if one not in found and not NO_REQUESTS.match(one.__name__):
            found[one] = None
            roots += [inner for hint in members_of(one).values() for inner in classes_of(hint)]
    return list(found)


@cache
def members_of(one: Any) -> dict[str, Any]:
    """Return the members of an SDK's type as JSON has them, with their types; none of another type."""
    if typing_extensions.is_typeddict(one):
        return typing.get_type_hints(one, include_extras=True)
    fields = getattr(one, "model_fields", {})
    return {field.alias or name: field.annotation for name, field in fields.items()}


def leaves(hint: Any) -> Iterator[Any]:
    """Yield the types that a value may be, or have in its lists; of an open object, `dict`."""
    hint = getattr(hint, "__value__", hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        yield dict
    elif origin in {typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired}:
        yield from leaves(inner[0])
    elif origin in _LITERALS:
        return
    elif inner:
        for one in inner:
            yield from leaves(one)
    else:
        yield hint


def classes_of(hint: Any) -> Iterator[Any]:
    """Yield the objects with members of their own that a value may be, or have in its lists and objects."""
    hint = getattr(hint, "__value__", hint)
    if typing_extensions.is_typeddict(hint) or hasattr(hint, "model_fields"):
        yield hint
    elif typing.get_origin(hint) not in _LITERALS:
        for one in typing.get_args(hint):
            yield from classes_of(one)


def type_names(one: Any) -> list[str]:
    """Return the texts that the member `type` of an object may have."""
    return [text for text in _literals(members_of(one).get("type")) if isinstance(text, str)]


def _literals(hint: Any) -> Iterator[object]:
    hint = getattr(hint, "__value__", hint)
    for one in typing.get_args(hint):
        if typing.get_origin(hint) in _LITERALS:
            yield one
        else:
            yield from _literals(one)


if __name__ == "__main__":
    sys.exit(main())
