"""How often a call may use its provider's tools that have a price: as often as it states, or up to a ceiling.

Pure. A maximum counts only in the field, and of the API, where the provider keeps to it. A call that states
none is sent with the ceiling where its API has such a field. Which tools have no price goes by their kind
alone: a name is the caller's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Call
from gateway.core.calls.tariff import Vectors
from gateway.core.families.controlled import Document
from gateway.core.families.registry import OF_METER, SHAPES

# Uses of each tool that a call holds where it does not say how many it may make: more than the searches that
# providers make or return for one answer by themselves (up to 20 as they document it), and half a dollar of
# the usual price. And the most one may say.
TOOL_USES: Final = 50
TOOL_USES_MAX: Final = 1_000_000
# What makes an answer search beside `tools`: fields of a body, and what stands in names of models.
_SEARCH_OPTIONS: Final = "web_search_options"
_SEARCH_PARAMETERS: Final = "search_parameters"
_SEARCH: Final = "web_search"
_GROUP: Final = "namespace"  # a tool that is others
_DIGITS: Final = "0123456789"  # of the date that a kind ends with
_SEARCHING_MODELS: Final = ("search", "sonar", ":online")
MODELS_REMEMBERED_MAX: Final = 4_096
# Where a provider keeps tools that a body names by an id: any of them may be there.
_KEPT: Final = ("cachedContent", "cached_content")
# Without any of these a body asks for no tool and no search.
_ASKING: Final = frozenset({"tools", "prompt", "plugins", _SEARCH_PARAMETERS, _SEARCH_OPTIONS, *_KEPT})
# Tools that are the client's own, whatever their names.
_OF_CLIENT: Final = ("function", "custom")


def priced_tools(vectors: Vectors) -> Collection[str]:
    """The names of tools that have a price."""
    if len(vectors) == 1:
        return vectors[0].tools
    return {name for one in vectors for name in one.tools}


def uses_of(call: Call, document: Document, priced: Collection[str]) -> dict[str, int]:
    """Uses of priced tools that a call may make."""
    found: dict[str, int] = {}
    shape = SHAPES.get(call.meter)
    if not priced or shape is None:
        return found
    if _ASKING.isdisjoint(document) and not _models_search(call):
        return found
    tools, searches, names_kept = _tools(document), _searches(call, document), _names_kept(document)
    if not tools and not searches and not names_kept:
        return found
    total = document.get(shape.uses) if shape.uses else None
    for tool in tools:
        said = _said(tool)
        uses = _uses(tool.get(shape.tool_uses) if shape.tool_uses else total)
        for name in priced:
            if _plain(name) in said:
                found[name] = min(found.get(name, 0) + uses, TOOL_USES_MAX)
    for name in priced:
        if searches and "search" in name and "file" not in name:
            found.setdefault(name, searches)
        if names_kept:
            found.setdefault(name, _uses(total))
    return found


def unpriced_tools(call: Call, vectors: Vectors) -> list[str]:
    """Its provider's tools that a call may use and that one of the models that may answer has no price of."""
    document, family = call.document, OF_METER.get(call.meter)
    if document is None or family is None or (_ASKING.isdisjoint(document) and not _models_search(call)):
        return []
    asked = [*_kinds(document.get("tools")), *_plugins(document.get("plugins"))]
    free = family.free_tools
    kinds = {kind: plainly for kind in asked if (plainly := _plain(kind)).rstrip(_DIGITS) not in free}
    if _searches(call, document, by_plugin=False):
        kinds[_SEARCH] = _plain(_SEARCH)
    return [kind for kind, plainly in kinds.items() if not all(_has_price(plainly, one) for one in vectors)]


def _has_price(kind: str, vector: Vector) -> bool:
    """Whether a model's price has one of a kind of tool; that of a call has its search in it."""
    return any(_plain(name) in kind for name in vector.tools) or (
        kind == _plain(_SEARCH) and vector.request > 0
    )


def _kinds(tools: object, *, inside: bool = False) -> Iterator[str]:
    """The kinds of a call's tools: what their type says, else the names of their members."""
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        kind = tool.get("type")
        if kind == _GROUP and not inside:
            yield from _kinds(tool.get("tools"), inside=True)
        elif isinstance(kind, str):
            yield kind
        elif kind is not None or "input_schema" not in tool:
            yield from tool


def _plugins(plugins: object) -> Iterator[str]:
    """The kinds of OpenRouter's plugins."""
    for plugin in plugins if isinstance(plugins, list) else ():
        said = plugin.get("id") if isinstance(plugin, dict) else plugin
        yield _SEARCH if said == "web" else str(said)


def limit_uses(call: Call, vectors: Vectors) -> None:
    """Write the ceiling into a call of priced tools that states no maximum, where its API has a field."""
    document, shape = call.document, SHAPES.get(call.meter)
    if document is None or shape is None or not (shape.uses or shape.tool_uses):
        return
    priced = priced_tools(vectors)
    if not priced:
        return
    if shape.uses and document.get(shape.uses) is None and uses_of(call, document, priced):
        document[shape.uses] = TOOL_USES
        call.changed = True
    for tool in _tools(document) if shape.tool_uses else ():
        kind = tool.get("type")
        if (
            isinstance(kind, str)
            and kind.startswith(shape.limited_tools)
            and tool.get(shape.tool_uses) is None
        ):
            tool[shape.tool_uses] = TOOL_USES
            call.changed = True


def _tools(document: Document) -> list[Document]:
    tools = document.get("tools")
    return [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []


def _searches(call: Call, document: Document, *, by_plugin: bool = True) -> int:
    """Searches that a call may make without a tool, 0 for none."""
    options = document.get(_SEARCH_PARAMETERS)
    stated = options.get("max_search_results") if isinstance(options, dict) else None
    if options is not None and not (isinstance(options, dict) and options.get("mode") == "off"):
        return _uses(stated)
    if document.get(_SEARCH_OPTIONS) is not None or (by_plugin and document.get("plugins") is not None):
        return TOOL_USES
    return TOOL_USES if _models_search(call) else 0


def _models_search(call: Call) -> bool:
    """Whether a model that may answer searches by itself."""
    return _may_search(call.model) or any(_may_search(model) for model in call.models_beside)


def _may_search(model: str) -> bool:
    """Whether a model searches by itself; remembered for up to `MODELS_REMEMBERED_MAX` names."""
    found = _searching.get(model)
    if found is None:
        name = model.lower()
        if len(_searching) >= MODELS_REMEMBERED_MAX:
            _searching.clear()
        found = _searching[model] = any(word in name for word in _SEARCHING_MODELS)
    return found


_searching: Final[dict[str, bool]] = {}


def _names_kept(document: Document) -> bool:
    return any(field in document for field in _KEPT) or isinstance(document.get("prompt"), dict)


def _said(tool: Document) -> str:
    """What says which tool it is: its type, its fields and, unless it is the client's own, its name."""
    kind = tool.get("type", "")
    named = "" if kind in _OF_CLIENT or "input_schema" in tool else tool.get("name", "")
    return _plain(f"{kind} {named} {' '.join(tool)}")


def _plain(said: str) -> str:
    """Names of tools as providers spell them, alike: `web_search_20250305`, `googleSearch`."""
    return said.lower().replace("_", "").replace("google", "web")


def _uses(stated: object) -> int:
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return min(stated, TOOL_USES_MAX)
    return TOOL_USES
