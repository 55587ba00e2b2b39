"""How often a call may use tools with a price or a model: as often as it states, or up to a ceiling.

Pure. A maximum counts only in the field, and of the API, where the provider keeps to it. A call that states none is
sent with the ceiling where its API has such a field. Which tools have no price goes by their kind alone: a name is
the caller's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from gateway.core.billing.price_book import SEARCH, SEARCH_PROMPT, SPOKEN, unpriced_names
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import MODELS_REMEMBERED_MAX, TOOL_USES_MAX, stated_uses
from gateway.core.calls.tariff import Vectors
from gateway.core.families.controlled import (
    KEPT,
    SEARCH_OPTIONS,
    SEARCH_PARAMETERS,
    SEARCHING_MODELS,
    Document,
    top_names,
)
from gateway.core.families.costs import FREE, UNKNOWN, options_of, plugin_cost, tool_costs
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.families.tools import kinds_of, path_to

# Uses of each tool in the hold of a call that states no maximum: more than the searches that
# providers make for one answer by themselves (documented: up to 20), and half a dollar at the usual price.
TOOL_USES: Final = 50
TOOL_USES_LIKELY: Final = 5  # the same for a likely hold
# The name of a search that is priced by the prompt, in the spelling for comparisons.
_BY_PROMPT: Final = SEARCH_PROMPT.replace("_", "")


def priced_tools(vectors: Vectors) -> Collection[str]:
    """Return the names of all tools that have a price."""
    if len(vectors) == 1:
        return vectors[0].tools
    return {name for vector in vectors for name in vector.tools}


def uses_of(call: CallRequest, document: Document, priced: Collection[str]) -> dict[str, int]:
    """Return how often a call may use each tool in `priced`, by name, without those that it cannot use."""
    found: dict[str, int] = {}
    shape = SHAPES.get(call.meter)
    if not priced or shape is None:
        return found
    if _asks_for_none(call, document):
        return found
    tools, searches = call.body.tools, _searches(call, document)
    names_kept = any(field in document for field in KEPT) or isinstance(document.get("prompt"), dict)
    family = OF_METER[call.meter].name
    ordered = {_plain(cost) for cost in options_of(family, document).values()}
    if not tools and not searches and not names_kept and not ordered:
        return found
    total = document.get(shape.uses) if shape.uses else None
    costs = tool_costs(family)
    for tool in tools:
        kinds = kinds_of(tool, costs)
        if all(cost in FREE for _, cost in kinds):
            continue
        words = _words_of(tool, kinds)
        uses = _uses(tool.get(shape.tool_uses) if shape.tool_uses else total)
        for name in priced:
            if _plain(name) in words:
                found[name] = min(found.get(name, 0) + uses, TOOL_USES_MAX)
    for name in priced:
        if searches and "search" in name and "file" not in name:
            found.setdefault(name, searches)
        if names_kept or _plain(name) in ordered:
            found.setdefault(name, _uses(total))
    if SEARCH_PROMPT in found:
        found[SEARCH_PROMPT] = 1
    return found


def unpriced_tools(call: CallRequest, vectors: Vectors) -> list[str]:
    """Return the provider's tools that a call may use, and that a model which may answer has no price for."""
    document, family = call.body.document, OF_METER.get(call.meter)
    if likely := call.spec.units.likely:
        units = [unpriced_names(vector, likely) for vector in vectors] if vectors else [list(likely)]
        if call.output_max != 0 and all(vector.prices[SPOKEN] for vector in vectors):  # its tokens are told
            units = [[name for name in names if name != "character"] for names in units]
        if call.storage is None or any(units):
            return list(dict.fromkeys(name for names in units for name in names))
    if document is None or family is None or _asks_for_none(call, document):
        return []
    large = _large_containers(call.body.tools)
    dear = [f"{kind} with a memory_limit of {size}, where only 1g has a price," for kind, size in large]
    if dear:
        return dear
    costs = tool_costs(family.name)
    asked = [kind for tool in call.body.tools for kind in kinds_of(tool, costs)]
    asked += _plugins(call.body.plugins)
    if _searches(call, document, by_plugin=False):
        asked.append((SEARCH, SEARCH))
    asked += [(cost, cost) for cost in options_of(family.name, document).values()]
    kinds = dict([pair for pair in asked if pair[1] not in FREE])
    return [
        kind for kind, cost in kinds.items() if not all(_has_price(kind, cost, vector) for vector in vectors)
    ]


# Members of tools with a container that is made for the call, and the size whose session has the price `container`
# (openai 3.51.0: `ToolAuto` and `ContainerAuto`, of 1g, 4g, 16g and 64g).
_CONTAINERS: Final = ("container", "environment")
_USUAL_SIZES: Final = (None, "1g")


def _large_containers(tools: Sequence[Document]) -> Iterator[tuple[object, object]]:
    """Yield the type of each tool whose container costs more than a usual one, and the size of it."""
    for tool in tools:
        for name in _CONTAINERS:
            container = tool.get(name)
            if isinstance(container, dict) and container.get("memory_limit") not in _USUAL_SIZES:
                yield tool.get("type"), container["memory_limit"]


def find_tool(call: CallRequest, kind: str) -> tuple[str, str]:
    """Return where a body has its first tool of this kind, and the name that a price of it has."""
    family = OF_METER.get(call.meter)
    table = tool_costs("" if family is None else family.name)
    for tool in call.body.tools:
        costs = [cost for name, cost in kinds_of(tool, table) if name == kind and cost not in FREE]
        if costs:
            place = path_to(call.body.document, tool) or "tools"
            return f"{place}.{'type' if 'type' in tool else kind}", kind if costs[0] == UNKNOWN else costs[0]
    for option, cost in options_of("" if family is None else family.name, call.body.document or {}).items():
        if cost == kind:
            return option, cost
    return "tools", "" if " " in kind else kind  # no price can be set for a large container


def _has_price(kind: str, cost: str, vector: Vector) -> bool:
    """Return whether a model's price covers a kind of tool. A price of each request covers its search.

    Of a kind that is in no table, only the price by its own name does.
    """
    names, plainly = map(_plain, vector.tools), _plain(kind)
    if cost == UNKNOWN:
        return plainly in names
    message = f"{plainly} {_plain(cost)}"
    return any(name in message for name in names) or (plainly == _plain(SEARCH) and vector.request > 0)


def _plugins(plugins: Sequence[Document]) -> Iterator[tuple[str, str]]:
    """Yield the kinds of OpenRouter's plugins, and their costs."""
    for plugin in plugins:
        name = str(plugin.get("id"))
        cost = plugin_cost(name)
        yield (name if cost in {*FREE, UNKNOWN} else cost), cost


def limit_uses(call: CallRequest, vectors: Vectors) -> None:
    """Set a maximum of uses in a call of priced tools that states none, if its API has such a field."""
    document, shape = call.body.document, SHAPES.get(call.meter)
    if document is None or shape is None or not (shape.uses or shape.tool_uses):
        return
    if _asks_for_none(call, document):
        return
    priced = priced_tools(vectors)
    if not priced:
        return
    if shape.uses and document.get(shape.uses) is None and uses_of(call, document, priced):
        document[shape.uses] = TOOL_USES
        call.body.put(shape.uses)
    for tool in call.body.tools if shape.tool_uses else ():
        kind = tool.get("type")
        if isinstance(kind, str) and kind in shape.limited_tools and tool.get(shape.tool_uses) is None:
            tool[shape.tool_uses] = TOOL_USES
            call.body.put(shape.tool_uses)


def _asks_for_none(call: CallRequest, document: Document) -> bool:
    """Return whether a call certainly uses no tool and no search, judged by its field names and models."""
    asks = top_names(document).asks if call.asks is None else call.asks
    return not asks and not models_search(call)


def _searches(call: CallRequest, document: Document, *, by_plugin: bool = True) -> int:
    """Return how many searches a call may make without a tool; `by_plugin` includes those of plugins."""
    options = document.get(SEARCH_PARAMETERS)
    stated = options.get("max_search_results") if isinstance(options, dict) else None
    if options is not None and not (isinstance(options, dict) and options.get("mode") == "off"):
        return _uses(stated)
    if document.get(SEARCH_OPTIONS) is not None or (by_plugin and document.get("plugins") is not None):
        return TOOL_USES
    return TOOL_USES if models_search(call) else 0


def models_search(call: CallRequest) -> bool:
    """Return whether a model that may answer searches by itself."""
    spec = call.spec
    if spec.mcp.tool:
        return False
    if not call.models_beside and not call.aim.targets:
        return _may_search(spec.model)  # most calls
    return any(_may_search(model) for model in call.models)


def _may_search(model: str) -> bool:
    """Return whether a model searches by itself, by its name. Results are cached."""
    found = _searching.get(model)
    if found is None:
        name = model.lower()
        if len(_searching) >= MODELS_REMEMBERED_MAX:
            _searching.clear()
        found = _searching[model] = any(word in name for word in SEARCHING_MODELS)
    return found


_searching: Final[dict[str, bool]] = {}


def _words_of(tool: Document, kinds: Sequence[tuple[str, str]]) -> str:
    """Return the words that identify a provider's tool: type, cost, field names, and a name that it fixes."""
    named = "" if "input_schema" in tool else tool.get("name", "")
    return _plain(f"{' '.join(map(' '.join, kinds))} {named} {' '.join(tool)}")


def _plain(text: str) -> str:
    """Return the name of a tool in one common spelling, without case, underscores and `google`.

    A search that is priced for each prompt has the same name as other searches.
    """
    plainly = text.lower().replace("_", "").replace("google", "web")
    return "websearch" if plainly == _BY_PROMPT else plainly


def _uses(stated: object) -> int:
    return stated_uses(stated) or TOOL_USES
