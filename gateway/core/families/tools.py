"""The tools of a call, wherever its body has them. Lists of models, prices, maxima and acts go by this alone.

Tools stand in `tools`, in groups of tools, and in members of messages, items and parts. The name of such a
member decides, and not the type of the object around it: a type that nobody knows hides no tool. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gateway.core.families.controlled import FREE, OWN_NAMES, Document, elements, is_untyped_function
from gateway.core.families.costs import (
    ENVIRONMENT,
    GROUP,
    NAME,
    TOOL_MEMBERS,
    UNKNOWN,
    tools_of_cost,
)
from gateway.errors import InvalidRequest

# Types of entries that are no tool of their own. A reference names a tool that another place defines.
_NO_TOOLS: Final = tuple(tools_of_cost(GROUP, NAME))  # of any value, also one that cannot be hashed
# Members that only name tools, and data that callers and their functions write. An inner `input` is data too.
_NAMING: Final = frozenset({"tool_choice", "toolChoice", "toolAddition", "toolRemoval"})
_DATA: Final = FREE | OWN_NAMES | _NAMING | {"response", "json", "documents"}
_DATA_WITHIN: Final = _DATA | {"input"}


def is_member(name: str) -> bool:
    """Return whether a server may read a member of this name as one that has tools, whatever its case."""
    return _folded(name) in TOOL_MEMBERS


def tools_of(document: Document) -> list[Document]:
    """Return all tools that a body defines, at any depth; of a group, its members.

    Raise `InvalidRequest` if the `tools` of the body are no list of objects, or a member has another case.
    """
    tools: list[Document] = []
    # Values to search, and whether each is a tool or a list of tools.
    waiting: list[tuple[object, bool]] = [(elements(document, "tools"), True)]
    waiting += [(value, False) for name, value in document.items() if name != "tools" and name not in _DATA]
    while waiting:
        value, is_tool = waiting.pop()
        if isinstance(value, list):
            waiting += [(item, is_tool) for item in reversed(value) if isinstance(item, dict | list)]
        elif isinstance(value, dict):
            if is_tool and value.get("type") not in _NO_TOOLS:
                tools.append(value)
            for name, inside in value.items():
                if isinstance(inside, dict | list) and name not in _DATA_WITHIN:
                    has_tools = _has_tools(name)
                    if has_tools or not is_tool:
                        waiting.append((inside, has_tools))
    return tools


def kinds_of(tool: Document, costs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what a tool is and its cost in the table of its API: by its type, else by each of its members."""
    kind = tool.get("type")
    if isinstance(kind, str):
        cost = costs.get(kind, UNKNOWN)
        place = tool.get(ENVIRONMENT)
        if isinstance(place, dict):
            cost = costs.get(f"{kind}:{place.get('type')}", cost)
        return [(kind, cost)]
    if is_untyped_function(tool):
        return []
    return [(name, costs.get(name, UNKNOWN)) for name in tool]


def path_to(value: object, tool: Document, path: str = "") -> str:
    """Return where the object `tool` itself stands in a body; empty if it is not there."""
    if value is tool:
        return path
    inner: Iterator[tuple[str, object]] = iter(())
    if isinstance(value, dict):
        inner = ((f"{path}.{name}" if path else name, inside) for name, inside in value.items())
    elif isinstance(value, list):
        inner = ((f"{path}[{number}]", inside) for number, inside in enumerate(value))
    return next(filter(None, (path_to(inside, tool, place) for place, inside in inner)), "")


def _has_tools(name: str) -> bool:
    folded = _folded(name)
    if folded in TOOL_MEMBERS and name != folded:
        raise InvalidRequest(f"The field {name} must be written {folded}.", param=name)
    return folded in TOOL_MEMBERS


def _folded(name: str) -> str:
    return name.replace("ſ", "s").lower()  # Go takes both for the same letter
