"""How often a call may use tools that have a price or a model: as often as it states, or up to a ceiling.

Pure. A maximum counts only in the field, and of the API, where the provider keeps to it. A call that states
none is sent with the ceiling where its API has such a field. Which tools have no price goes by their kind
alone: a name is the caller's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Call
from gateway.core.calls.tariff import Vectors
from gateway.core.families.controlled import Document, elements, models_of
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
# Times that a model of a tool may answer where a call does not say it: an advisor is asked once or twice.
MODEL_USES: Final = 4
_ADVISOR: Final = "advisor"  # begins the kind of a tool that keeps to its maximum
# Tools whose models are paid by what they make, not by tokens of an answer.
_MAKERS: Final = frozenset({"image_generation", "openrouter:image_generation"})
_COMPACTION: Final = "compact"
_MANAGEMENT: Final = "context_management"
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


@dataclass(slots=True)
class Within:
    """Answers within a call beside its own: `models` says how often one may answer and with how much, None
    for all it can; `compactions` are of the call's model, each of the input.
    """

    models: list[tuple[str, int, int | None]]
    compactions: int = 0


def answers_within(call: Call) -> Within | None:
    """What may answer within a call, each of the whole input; None where it is the asked model alone."""
    document = call.document
    if document is None or not (call.models_beside or _MANAGEMENT in document):
        return None
    shape, found = SHAPES.get(call.meter), Within([], _compactions(document))
    field = shape.tool_uses if shape is not None else ""
    for tool in elements(document, "tools") if call.models_beside else ():
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _MAKERS:
            continue
        advisor = bool(field) and _is_advisor(tool)
        uses = _stated(tool.get(field)) if advisor else None
        most = _stated(tool.get("max_tokens")) if advisor else None
        found.models += [(model, uses or MODEL_USES, most) for model in models_of(tool, "tools")]
    for plugin in elements(document, "plugins") if call.models_beside else ():
        found.models += [(model, 1, None) for model in models_of(plugin, "plugins")]
    return found if found.models or found.compactions else None


def limit_models(call: Call) -> None:
    """Write how often an advisor may answer into a call that does not say it, where its API has a field."""
    document, shape = call.document, SHAPES.get(call.meter)
    if document is None or shape is None or not (shape.tool_uses and call.models_beside):
        return
    for tool in elements(document, "tools"):
        if _is_advisor(tool) and _stated(tool.get(shape.tool_uses)) is None:
            tool[shape.tool_uses] = MODEL_USES
            call.changed = True


def _is_advisor(tool: Document) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind.startswith(_ADVISOR)


def _compactions(document: Document) -> int:
    """How often a call's input may be made shorter by its model; both APIs that do name its kind so."""
    managed = document.get(_MANAGEMENT)
    if isinstance(managed, dict):
        edits = elements(managed, "edits", f"{_MANAGEMENT}.")
    else:
        edits = elements(document, _MANAGEMENT)
    kinds = [edit.get("type") for edit in edits]
    return sum(isinstance(kind, str) and kind.startswith(_COMPACTION) for kind in kinds)


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
    tools, searches = elements(document, "tools"), _searches(call, document)
    names_kept = _names_kept(document)
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
    """Provider tools that a call may use, and that have no price for at least one model that may answer."""
    document, family = call.document, OF_METER.get(call.meter)
    if document is None or family is None or (_ASKING.isdisjoint(document) and not _models_search(call)):
        return []
    asked = [*_kinds(elements(document, "tools")), *_plugins(elements(document, "plugins"))]
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


def _kinds(tools: list[Document], *, inside: bool = False) -> Iterator[str]:
    """The kinds of a call's tools: what their type says, else the names of their members."""
    for tool in tools:
        kind = tool.get("type")
        if kind == _GROUP and not inside:
            yield from _kinds(elements(tool, "tools", "tools."), inside=True)
        elif isinstance(kind, str):
            yield kind
        elif kind is not None or "input_schema" not in tool:
            yield from tool


def _plugins(plugins: list[Document]) -> Iterator[str]:
    """The kinds of OpenRouter's plugins."""
    for plugin in plugins:
        said = plugin.get("id")
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
    for tool in elements(document, "tools") if shape.tool_uses else ():
        kind = tool.get("type")
        if (
            isinstance(kind, str)
            and kind.startswith(shape.limited_tools)
            and tool.get(shape.tool_uses) is None
        ):
            tool[shape.tool_uses] = TOOL_USES
            call.changed = True


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
    return _stated(stated) or TOOL_USES


def _stated(most: object) -> int | None:
    """A maximum that a tool states, None where it states none."""
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        return min(most, TOOL_USES_MAX)
    return None
