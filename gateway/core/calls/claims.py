"""The tokens and credits that a call claims before it is made, and the bound of its output by its hold.

Pure. Under a strict plan, the hold in tokens is the call's limit. If credits are priced by tokens, so is the
hold in credits. A call without a stated maximum is then sent with one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import MAXIMUM, MONEY, TOKENS, UNIT_OF
from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import (
    NO_COUNTS,
    SEARCH,
    SEARCH_PROMPT,
    PriceQualifiers,
    TokenRate,
    dearest_rate,
    highest_rates,
    plain_rate,
    unpriced,
)
from gateway.core.billing.vector import IMAGES, Vector
from gateway.core.calls.call import (
    DEFAULT_BOUNDS,
    UNCOUNTED_BYTES_MAX,
    Body,
    BodyLook,
    CallRequest,
    CallSpec,
    RequestedUnits,
    UsageBounds,
    check_size,
    media_in,
    names_in,
    read_document,
    write_document,
    written_of,
)
from gateway.core.calls.documents import pages_of
from gateway.core.calls.estimate import (
    CONTEXT_MAX,
    MODELS_REMEMBERED_MAX,
    TOOL_USES_MAX,
    Estimate,
    limit_models,
    stated_uses,
)
from gateway.core.calls.forms import FormReader, boundary_of
from gateway.core.calls.recordings import lengths_of
from gateway.core.calls.routes import Route
from gateway.core.calls.storage import STORAGE_TOKENS_MAX
from gateway.core.calls.tariff import Vectors, charge_of, factor_of, is_in_money
from gateway.core.families import controlled
from gateway.core.families.controlled import (
    BACKGROUND,
    KEPT,
    LATER,
    NO_READERS,
    SEARCH_OPTIONS,
    SEARCH_PARAMETERS,
    SEARCHING_MODELS,
    Document,
    elements,
    flag,
    inner,
    models_beside,
    models_of,
    top_names,
)
from gateway.core.families.costs import FREE, UNKNOWN, options_of, plugin_cost, quotes_in, tool_costs
from gateway.core.families.family import CallKind, SocketMessages
from gateway.core.families.objects import unit_later
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.families.tools import kinds_of, path_to, tools_of
from gateway.core.model import INTEGER_MAX, Admitted, Service
from gateway.errors import InvalidRequest

# How often a call may use tools with a price or a model: as often as it states, or up to a ceiling.
# A maximum counts only in the field, and of the API, where the provider keeps to it. A call that states
# none is sent with the ceiling where its API has such a field. Which tools have no price goes by their kind
# alone: a name is the caller's own.

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
    return {name for one in vectors for name in one.tools}


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
        said = _said(tool, kinds)
        uses = _uses(tool.get(shape.tool_uses) if shape.tool_uses else total)
        for name in priced:
            if _plain(name) in said:
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
        units = [unpriced(vector, likely) for vector in vectors] if vectors else [list(likely)]
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
    kinds = dict([each for each in asked if each[1] not in FREE])
    return [kind for kind, cost in kinds.items() if not all(_has_price(kind, cost, one) for one in vectors)]


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
    said = f"{plainly} {_plain(cost)}"
    return any(name in said for name in names) or (plainly == _plain(SEARCH) and vector.request > 0)


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
    return not asks and not _models_search(call)


def _searches(call: CallRequest, document: Document, *, by_plugin: bool = True) -> int:
    """Return how many searches a call may make without a tool; `by_plugin` includes those of plugins."""
    options = document.get(SEARCH_PARAMETERS)
    stated = options.get("max_search_results") if isinstance(options, dict) else None
    if options is not None and not (isinstance(options, dict) and options.get("mode") == "off"):
        return _uses(stated)
    if document.get(SEARCH_OPTIONS) is not None or (by_plugin and document.get("plugins") is not None):
        return TOOL_USES
    return TOOL_USES if _models_search(call) else 0


def _models_search(call: CallRequest) -> bool:
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


def _said(tool: Document, kinds: Sequence[tuple[str, str]]) -> str:
    """Return the words that identify a provider's tool: type, cost, field names, and a name that it fixes."""
    named = "" if "input_schema" in tool else tool.get("name", "")
    return _plain(f"{' '.join(map(' '.join, kinds))} {named} {' '.join(tool)}")


def _plain(said: str) -> str:
    """Return the name of a tool in one common spelling, without case, underscores and `google`.

    A search that is priced for each prompt has the same name as other searches.
    """
    plainly = said.lower().replace("_", "").replace("google", "web")
    return "websearch" if plainly == _BY_PROMPT else plainly


def _uses(stated: object) -> int:
    return stated_uses(stated) or TOOL_USES


@dataclass(slots=True)
class CallClaim:
    """What one call reserves before it runs, and its maximum cost by tokens.

    Its hold is in `credits`, which may be cut down to `credits_least` (0: not at all), or in `units`.
    """

    estimate: Estimate
    dearest: TokenRate | None  # the maximum rate, None if tokens do not set the price
    credits: int
    credits_least: int
    units: int
    budget: BudgetClaim | None = None  # None if no budget applies
    vectors: Vectors = ()  # prices that the budgets count by


def claim_of(  # noqa: PLR0917  # a call, what it costs, and how much of it there may be
    call: CallRequest,
    service: Service,
    vectors: Vectors,
    estimate: Estimate,
    units: int,
    of_budgets: Vectors | None,
    hold: str = "",
) -> CallClaim:
    """Return the claim of a call: the amounts to hold (reserve) for it before it is sent.

    `vectors` are the prices of models that may answer, `of_budgets` those for its budgets (None if it has
    none). `hold` is its budgets' rule for the size of holds, empty if the plan decides.
    """
    dearest = dearest_of(service, vectors, estimate, call)
    budget = None if of_budgets is None else budget_claim(of_budgets, estimate, call, hold)
    credits_, least, units = claimed(service, dearest, estimate, units)
    return CallClaim(estimate, dearest, credits_, least, units, budget, of_budgets or ())


def dearest_of(service: Service, vectors: Vectors, estimate: Estimate, call: CallRequest) -> TokenRate | None:
    """Return the highest rate by which a call may be charged; None if tokens do not set its price."""
    if not vectors:
        return None
    asks = asks_of(call, vectors, estimate.read)
    return dearest_rate(vectors, estimate.read, asks, factor_of(service), in_money=is_in_money(service))


def claimed(service: Service, rate: TokenRate | None, estimate: Estimate, units: int) -> tuple[int, int, int]:
    """Return the credits to hold, the least that the hold may be cut to (0: it may not be), and the units."""
    if rate is None:
        credits_, _, units = charge_of(service, (), NO_COUNTS, None, units)
        return credits_, 0, units
    most = max(estimate.read, estimate.ceiling)
    if rate.in_money:
        return 0, 0, rate.seen(most)
    return rate.credits(most), rate.credits(estimate.least) if estimate.least else 0, units


def output_bound(
    rate: TokenRate | None, call: CallRequest, estimate: Estimate, admitted: Admitted
) -> int | None:
    """Return the most output tokens of one choice that the call's hold covers; None if unbounded."""
    most = ENDLESS
    if admitted.bounded:
        held, weights = admitted.held_tokens, admitted.weights
        most = held if weights is None else weights.covered(held, estimate.read)
    if rate is not None:
        most = min(most, rate.covered(admitted.held_credits))
    return None if most >= ENDLESS else estimate.bound(most, call)


def likely_asks(call: CallRequest, may: PriceQualifiers, read: int) -> PriceQualifiers:
    """Return those of the priced extras in `may` that the call asks for (cache writes, media, tools…).

    `read` are its likely input tokens.
    """
    if call.body.document is None or OF_METER.get(call.meter) is None:
        return may
    known = _held_units(call, read)
    uses = may.tools and {
        name: known.get(name) or min(most, TOOL_USES_LIKELY) for name, most in may.tools.items()
    }
    return _named_asks(call, may.sound, uses)


def _named_asks(call: CallRequest, sound: bool, uses: Mapping[str, int] | None) -> PriceQualifiers:
    """Return the priced extras that a call asks for by name, with its `sound` and its `uses` of tools."""
    names = call.body.names
    media = call.media.tokens > 0 or names.files > 0
    tiers = call.tiers
    if call.spec.attempts:
        tiers += tuple([attempt.tier for attempt in call.spec.attempts if attempt.tier])
    return PriceQualifiers(names.caches, names.long_caches, media, sound, tiers, uses)


def _held_units(call: CallRequest, read: int) -> dict[str, int]:
    """Return the units that a call holds; those of storage are the most if a file's length is unknown."""
    return call.units(max(read, STORAGE_TOKENS_MAX) if call.body.names.files or call.media.endless else read)


def asks_of(call: CallRequest, vectors: Vectors, read: int = ENDLESS) -> PriceQualifiers:
    """Return the priced extras that a call of `read` input tokens may use: cache writes, media, tiers, tools.

    Its API excludes some; all may apply if the request cannot be read. Extras that change no price of
    `vectors` are not checked.
    """
    document, names, family = call.body.document, call.body.names, OF_METER.get(call.meter)
    if document is None or family is None:
        return PriceQualifiers()
    priced = priced_tools(vectors)
    uses = uses_of(call, document, priced) if priced else None
    if call.spec.units.likely:
        uses = {**(uses or {}), **_held_units(call, read), **(call.spec.units.most or {})}
    caches = blobs = sound = False
    excluded, tiers = family.exclusions, list[str]()
    for one in vectors:
        dearest = highest_rates(one, read)
        caches = caches or dearest.dear_caches
        blobs = blobs or dearest.dear_blobs
        sound = sound or dearest.dear_sound
        for named in (one.service_tiers, one.tiers):
            if named:
                tiers += [tier for tier in named if not excluded.tier(document, tier)]
    caches = caches and not excluded.cache(document, names)
    return PriceQualifiers(
        caches,
        caches,
        blobs and not (not call.media.tokens and not call.objects.named and excluded.media(document, names)),
        sound and not excluded.sound(document, names),
        tuple(tiers),
        uses,
    )


# What a call reserves in budgets before it runs, and the bound of its output by that. Pure.
# Where its plan admits what is available, windows hold what is likely, at the prices that the call asks for;
# where it is strict, or a budget says so, the most it could use, at the dearest prices it may have.
@dataclass(slots=True)
class BudgetClaim:
    """What budget windows hold for a call: likely amounts, and the most."""

    money: int = 0  # likely, in nano-units
    money_most: int = 0
    money_least: int = 0  # the hold may be cut to this; 0 if the call states its maximum
    budget_tokens: int = 0  # likely
    budget_tokens_most: int = 0
    dearest: TokenRate | None = None  # the highest rate, None without a price
    likely: TokenRate | None = None  # the usual rate
    holds_most: bool = False  # the windows hold the most


def budget_claim(
    vectors: Sequence[Vector], estimate: Estimate, call: CallRequest, hold: str = ""
) -> BudgetClaim:
    """Return a call's claim on budgets. `vectors` are the prices of all models that may answer.

    Without prices it claims no money. `hold` is the rule of the budgets (`likely` or `maximum`), which
    replaces the plan's.
    """
    need, fewest, read = estimate.need, estimate.least, estimate.read
    ceiling, holds_most = max(read, estimate.ceiling), hold == MAXIMUM
    raw = ceiling if holds_most else need
    budget_tokens_most = raw if hold else ceiling
    if not vectors:
        return BudgetClaim(budget_tokens=raw, budget_tokens_most=budget_tokens_most, holds_most=holds_most)
    dearest, may = None, None
    if len(vectors) == 1 and call.asks is False and not call.spec.units.likely and not _models_search(call):
        dearest = plain_rate(vectors[0], read)  # most calls are text alone: the same rate, but faster
    if dearest is None:
        may = asks_of(call, vectors, read)
        dearest = dearest_rate(vectors, read, may, in_money=True)
    rate = dearest
    money = most = min(dearest.cost(read, ceiling - read), INTEGER_MAX)
    if not holds_most:
        likely_read = _likely_read(estimate, call)
        likely = plain_rate(vectors[0], likely_read) if may is None else None
        if likely is None:
            may = may or asks_of(call, vectors, read)
            likely = dearest_rate(vectors, likely_read, likely_asks(call, may, likely_read), in_money=True)
        rate = likely
        if estimate.input_share != 1:  # 1 means that nothing was learned, so the price is exact
            rate.input = math.ceil(rate.input * estimate.input_share)
        money = min(rate.cost(likely_read, need - likely_read), most)
    least = min(dearest.cost(read, fewest - read), money) if fewest else 0
    return BudgetClaim(
        money, money if hold else most, least, raw, budget_tokens_most, dearest, rate, holds_most
    )


def _likely_read(estimate: Estimate, call: CallRequest) -> int:
    """Return the input tokens in the likely hold of a call."""
    return min(min(estimate.read, estimate.need), call.input_estimate)  # noqa: PLW3301  # of two it is compiled


def unheld_rate(vectors: Sequence[Vector], estimate: Estimate, call: CallRequest) -> TokenRate | None:
    """Return the rate of the likely hold that a call without a budget of money would have, without tools.

    None if it has no price. The call may have been sent, so that its document is released.
    """
    if not vectors:
        return None
    read = _likely_read(estimate, call) or call.input_estimate  # nothing is estimated where no limit asks
    rate = plain_rate(vectors[0], read) if len(vectors) == 1 else None
    return rate or dearest_rate(vectors, read, _named_asks(call, False, None), in_money=True)


def budget_bound(
    claim: BudgetClaim, call: CallRequest, estimate: Estimate, admitted: Admitted, enforced: Collection[str]
) -> int | None:
    """Return the most output tokens of one choice that the call's budgets allow; None if unbounded.

    Only budgets in the units `enforced` count, and only if their hold was cut to what was free, or is the
    most that the call could use.
    """
    most, strict = ENDLESS, claim.holds_most
    if MONEY in enforced and claim.dearest is not None and (strict or admitted.money_held != claim.money):
        most = claim.dearest.paid(admitted.money_held)
    if TOKENS in enforced and (strict or admitted.budget_tokens_held != claim.budget_tokens):
        most = min(most, admitted.budget_tokens_held)
    return None if most >= ENDLESS else estimate.bound(most, call)


def answer_bound(
    call: CallRequest, claim: CallClaim, admitted: Admitted, enforced: Collection[str]
) -> int | None:
    """Return the most output tokens of one choice by the hold and budgets in `enforced` units, or None."""
    bound = None
    if admitted.bounded or claim.dearest is not None:
        bound = output_bound(claim.dearest, call, claim.estimate, admitted)
    if claim.budget is not None:
        of_budgets = budget_bound(claim.budget, call, claim.estimate, admitted, enforced)
        if bound is None or (of_budgets is not None and of_budgets < bound):
            bound = of_budgets
    return bound


def bind_uses(call: CallRequest, claim: CallClaim, vectors: Vectors, enforced: Collection[str]) -> None:
    """Limit uses of priced tools to the held number, if the price or an `enforced` budget depends on them."""
    if claim.dearest is not None:
        limit_uses(call, vectors)
    if claim.budget is not None and MONEY in enforced:
        limit_uses(call, claim.vectors)


def bind_output(call: CallRequest, bound: int, allowed: frozenset[str]) -> None:
    """Limit an answer to `bound` output tokens.

    Raise `InvalidRequest` if the body has a number that could make the upstream ignore the limit. Numbers
    with a name in `allowed` are known to be harmless.
    """
    call.bound = True
    check_numbers(call, allowed, bound)
    limit_output(call, bound)
    limit_models(call)


# Steps in which a stated task budget is lowered: another number would miss the upstream's cache.
TASK_STEPS: Final = 16


def lower_task(call: CallRequest, claim: BudgetClaim, admitted: Admitted) -> None:
    """Lower the task budget in a call's body to the tokens left in its tightest budget.

    The model then ends its work before it is cut off: for its API this field is advice.
    """
    window, config = admitted.budget, (call.body.document or {}).get("output_config")
    task = config.get("task_budget") if isinstance(config, dict) else None
    if window is None or not isinstance(task, dict) or task.get("type") != TOKENS:
        return
    total = task.get("total")
    stated = task.get("remaining", total)
    if type(total) is not int or type(stated) is not int or total <= 0:
        return  # its upstream refuses it
    rate, unit, there = claim.likely, UNIT_OF[window.unit], window.limit - window.used
    if unit == TOKENS:
        left = there + admitted.budget_tokens_held - call.input_estimate
    elif unit == MONEY and rate is not None:
        left = rate.paid(there + admitted.money_held) - rate.read
    else:
        return
    if left < stated:
        step = -(-total // TASK_STEPS)
        task["remaining"], call.body.changed = max(left, 0) // step * step, True


# From a body to a call: it is decoded, and checked. Values that the gateway sets, such as
# `stream_options.include_usage` or a maximum, are fields of the document, which is then written again. A
# plain body in which nothing is decided is sent as it came.


def read_call(
    route: Route,
    path_params: Mapping[str, str],
    body: bytes,
    bounds: UsageBounds = DEFAULT_BOUNDS,
    *,
    reads: bool = False,
    look: BodyLook | None = None,
    form: bytes = b"",
    messages: SocketMessages | None = None,
    document: Document | None = None,
) -> CallRequest:
    """Return a call from its body, as `route.meter` defines it; `InvalidRequest` names a wrong field.

    `messages` turn a WebSocket message into a body. A turn of a live session is a `document` without a body.
    The meters `generic` and `none` decode no body unless `reads` is set, because it may be of any type and
    streamed. `look` are known facts about the body, and `form` is the content type of a form.
    """
    shape = SHAPES.get(route.meter)
    if shape is None:
        parts = Body(body)
        if reads and body:
            look = look or BodyLook(body)
            document = read_document(body, look)
            parts = Body(
                written_of(document, body, look), document,
                names=look.names if look.plain else names_in(document), tools=elements(document, "tools"),
                plugins=elements(document, "plugins"),
            )  # fmt: skip
        return CallRequest(route.meter, route.family, parts, units_pointer=route.units_pointer)
    if form and shape.form is not None:
        reader = FormReader(shape.form, boundary_of(form))
        reader.feed(body)
        reader.end()
        return read_form(route, path_params, body, reader, bounds)
    if shape.of_tools and body.lstrip()[:1] == b"[":
        raise InvalidRequest("A batch is not taken: send each message by itself.")
    look = look or BodyLook(body)
    cut = look.cut if shape.skips_texts and messages is None else None
    if document is None:
        document = read_document(body if cut is None else cut.rest, look)
    if messages is not None:
        body, look = _asked_by(messages, document, body, look)
    parts = Body(document=document, cut=cut)
    if shape.of_tools:
        spec = shape.read(parts, document, path_params, bounds)
        parts.content, tool = written_of(document, body, look), spec.mcp.tool
        model = f"{route.upstream}/{tool}" if tool else ""
        spec = spec._replace(model=model, mcp=spec.mcp._replace(server=route.upstream))
        return CallRequest(route.meter, route.family, parts, spec, spec.output_max)
    call = _understand(route, shape, parts, document, path_params, bounds)
    if call.spec.streamed and shape.asks_for_usage and (added := ask_for_usage(document)) is not None:
        call.strip_usage = True
        parts.encode(document, body, look, added)
    else:
        parts.encode(document, body, look)
    call.input_bytes = len(parts.content)
    if call.body.names.media or call.body.names.files:
        media = media_in(document, shape.media)
        call.input_bytes -= media.size
        call.media = replace(media, text_beyond=call.media.text_beyond)
        call.body.names.files -= media.named
        call.body.names.files -= quotes_in(document) if call.body.names.files > 0 else 0
    if call.body.names.tools:
        find_tools(call, document)
    return call


def find_tools(call: CallRequest, document: Document) -> None:
    """Set the tools of a call, those in messages, parts and groups too, and the models that tools name."""
    call.body.tools = tools_of(document)
    models = [model for tool in call.body.tools for model in models_of(tool, "tools")]
    call.models_beside = tuple(dict.fromkeys((*call.models_beside, *models)))
    call.asks = call.asks or bool(call.body.tools)


def measure_media(*calls: CallRequest) -> None:
    """Count the pages of documents and the seconds of recordings in calls.

    This may take a second, so not on the event loop.
    """
    pages = pages_of([text for call in calls for text in call.media.documents])
    lengths = lengths_of([recording.data for call in calls for recording in call.media.recordings])
    for call in [call for call in calls if call.unmeasured]:
        documents, recordings, shape = call.media.documents, call.media.recordings, SHAPES[call.meter]
        numbers = [next(pages) for _ in documents]
        count, endless = sum(number or 0 for number in numbers), numbers.count(None)
        seconds = video_seconds = 0
        for recording in recordings:
            length = next(lengths)
            if shape.hear is not None:
                call.spec = shape.hear(call.body, call.spec._replace(media=call.media), length)
                call.media = call.spec.media
            elif length is None or recording.endless:
                endless += 1
            else:
                seconds += math.ceil(length.seconds)
                video_seconds += math.ceil(length.seconds) if recording.is_video else 0
        media, places = call.media, shape.media
        of_documents = max(media.document_tokens, count * places.page)
        tokens = min(seconds * places.second + video_seconds * places.frame, CONTEXT_MAX)
        of_recordings = max(media.recording_tokens, tokens)
        more = of_recordings - media.recording_tokens
        call.media = replace(
            media, documents=(), recordings=(), pages=count, seconds=seconds, video_seconds=video_seconds,
            endless=media.endless + endless, tokens=media.tokens + of_documents - media.document_tokens + more,
            document_tokens=of_documents, recording_tokens=of_recordings, heard=media.heard + more,
        )  # fmt: skip


def ask_for_usage(document: Document) -> int | None:
    """Request a report of usage in the stream; return the number of added fields, None if the client does."""
    options = inner(document, "stream_options", controlled.STREAM_OPTIONS)
    if options is None:
        added = 1 if "stream_options" in document else 2
        document["stream_options"] = {"include_usage": True}
        return added
    if flag(options, "include_usage", "stream_options."):
        return None
    added = 0 if "include_usage" in options else 1
    options["include_usage"] = True
    return added


def read_form(
    route: Route, path_params: Mapping[str, str], body: bytes, form: FormReader, bounds: UsageBounds
) -> CallRequest:
    """Return a call from a form: its text fields are the document, and its body is sent unchanged."""
    shape, document = SHAPES[route.meter], form.fields
    parts = Body(body, document, files=form.files, model_at=form.model_at)
    call = _understand(route, shape, parts, document, path_params, bounds)
    call.input_bytes, parts.names = form.texts_bytes, names_in(document)
    return call


def _understand(  # noqa: PLR0917  # how a call is read, and what it says
    route: Route, shape: CallKind, body: Body, document: Document, path_params: Mapping[str, str],
    bounds: UsageBounds,
) -> CallRequest:  # fmt: skip
    """Return a call by its decoded body, as the reader of its API and the fields of all APIs define it."""
    spec = shape.read(body, document, path_params, bounds)
    if shape.stores and not (shape.lasts or spec.units.likely):
        unit = unit_later(route.family, route.path)
        spec = spec._replace(units=RequestedUnits({unit: 1} if unit else None))
    # Each tool and plugin is priced and held by itself.
    body.tools, body.plugins = elements(document, "tools"), elements(document, "plugins")
    names = top_names(document)
    family = OF_METER.get(route.meter)
    beside = models_beside(document, names, NO_READERS if family is None else family.model_lists)
    if names.later:
        _refuse_later(spec, document)
    tiers: tuple[str, ...] = ()
    if family is not None and not document.keys().isdisjoint(family.exclusions.tier_fields):
        tiers = family.exclusions.asked_tiers(document)
    return CallRequest(
        route.meter, route.family, body, spec, spec.output_max, models_beside=beside,
        reports=spec.reports or route.usage == "always" or (not route.usage and shape.always_reports),
        gives_up=names.times_out, asks=names.asks, output_default=shape.output_default, tiers=tiers,
        storage=spec.units.storage, media=spec.media,
    )  # fmt: skip


def _refuse_later(spec: CallSpec, document: Document) -> None:
    """Raise `InvalidRequest` if a call asks for an answer later, and is no job.

    A `background` that is a text is that of a picture, where the call is for pictures.
    """
    for name in LATER:
        value = document.get(name)
        draws = isinstance(value, str) and any(unit.startswith(IMAGES) for unit in spec.units.likely or ())
        known = name == BACKGROUND and (spec.background or draws)
        if value not in (None, False) and not known:
            raise InvalidRequest(f"{name} is not accepted: no job here is charged later for it.", param=name)


def _asked_by(
    messages: SocketMessages, document: Document, body: bytes, look: BodyLook
) -> tuple[bytes, BodyLook]:
    """Turn a WebSocket message into the `document` of a call; return its JSON, and facts about that."""
    written_of(document, body, look)
    messages.read(document)
    written = write_document(document)
    look = BodyLook(written)
    if not look.plain and len(written) > UNCOUNTED_BYTES_MAX:
        check_size(written)
    return written, look


def limit_output(call: CallRequest, tokens: int) -> None:
    """Set the maximum of output tokens to `tokens` in the body of a call that states none.

    A stated maximum of 0 becomes 1, because the gateway counts it so.
    """
    shape = SHAPES.get(call.meter)
    document = call.body.document
    if document is None or shape is None or not shape.maximum:
        return
    place = document if shape.place is None else shape.place(document)
    if call.output_max is None:
        tokens = max(min(tokens, call.output_default or tokens), call.aim.output_least)
        place[shape.maximum] = call.output_max = tokens
        call.body.put(shape.maximum)
    for name in shape.numbers:
        if place.get(name) == 0 and name != shape.uses:
            place[name] = 1
            call.body.changed = True


# Values by which a bound call could use more than its hold: unknown numbers, and several chats in one. A
# server may let a name of its own overrule the maximum read here, as llama.cpp does with `n_predict`. So
# where a hold binds a call, a number in its body must be known, at any depth: these are of the APIs'
# references, vLLM, SGLang, TGI, llama.cpp, Ollama, LiteLLM and OpenRouter. What a shape reads itself is in
# its `numbers`, which count at their own place alone.

HARMLESS = frozenset(
    {
        # sampling
        "temperature", "top_p", "top_k", "top_a", "min_p", "typical_p", "tfs_z", "top_n_sigma", "seed",
        "random_seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty",
        "repeat_last_n", "length_penalty", "no_repeat_ngram_size", "dynatemp_range", "dynatemp_exponent",
        "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "xtc_probability", "xtc_threshold", "topP", "topK", "presencePenalty",
        "frequencyPenalty",
        # what is told of tokens
        "logprobs", "top_logprobs", "prompt_logprobs", "n_probs", "top_n_tokens", "responseLogprobs",
        # less prompt, less thinking
        "truncate", "truncate_prompt_tokens", "prompt_truncate_len", "num_search_results", "n_keep", "n_discard", "num_keep", "min_keep",
        "n_indent",
        "thinking_token_budget", "thinking_budget_tokens", "reasoning_budget", "dimensions",
        # where and how long it runs
        "id_slot", "priority", "timeout", "request_timeout", "stream_timeout", "keep_alive", "num_ctx",
        "num_batch", "num_gpu", "num_thread", "t_max_prompt_ms", "t_max_predict_ms", "data_parallel_rank",
        # how vLLM streams, and what it tells of its experts
        "stream_interval", "routed_experts_prompt_start",
        # lists of tokens
        "stop_token_ids", "allowed_token_ids", "bad_words_ids",
    }
)  # fmt: skip
# Fields by which a call has no bound, each with its switch. OpenAI bounds neither the number nor the depth of the
# agents of a response (`MultiAgent` of openai 3.51.0).
_BOUNDLESS: Final = {"multi_agent": "enabled"}
# Minima of output, of vLLM, SGLang and LMDeploy. A server that obeys the larger number would pass the maximum.
MINIMA = frozenset({"min_tokens", "min_new_tokens"})
# Texts that may be digits. Several of these servers read a body by pydantic, which takes other such texts for
# numbers.
TEXTS = frozenset(
    {
        "model", "user", "input", "prompt", "suffix", "stop", "instructions", "system", "conversation",
        "previous_response_id", "safety_identifier", "prompt_cache_key", "service_tier", "container",
        "inference_geo", "workspace_id", "user_profile_id", "session_id", "request_id", "rid", "trace_id",
        "cachedContent", "cached_content",
    }
)  # fmt: skip
# Objects whose numbers are prompts, schemas, or settings of tools and templates: nothing in them sets a
# maximum.
FREE_OBJECTS = frozenset(
    {
        "messages", "items", "input", "inputs", "prompt", "contents", "content", "system", "instructions",
        "documents", "systemInstruction", "system_instruction", "chat_history", "message", "prediction",
        "images",
        "tools", "functions", "tool_choice", "function_call", "toolConfig", "tool_config", "toolChoice",
        "mcp_servers", "plugins", "connectors", "tool_results", "container", "conversation",
        "response_format", "responseFormat", "text", "format", "output_format", "json_schema",
        "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
        "_responseJsonSchema", "guided_json", "structured_outputs", "grammar",
        "metadata", "litellm_metadata", "client_metadata", "requestMetadata", "labels", "logit_bias",
        "safetySettings", "safety_settings", "web_search_options", "search_parameters", "provider",
        "chat_template_kwargs", "mm_processor_kwargs", "kv_transfer_params", "vllm_xargs", "custom_params",
        "repetition_detection", "lora", "promptVariables", "guardrailConfig", "cache",
    }
)  # fmt: skip
# Names that are known in other objects at the top: numbers that the maximum bounds, or that set none, and
# schemas.
NESTED = {
    "fallbacks": frozenset({"max_tokens", "budget_tokens", "token_budget", "remaining", "total", "format"}),
    "thinking": frozenset({"budget_tokens", "token_budget"}),
    "reasoning": frozenset({"max_tokens"}),
    "reasoning_config": frozenset({"budget_tokens"}),
    "thinkingConfig": frozenset({"thinkingBudget"}),
    "thinking_config": frozenset({"thinking_budget"}),
    "output_config": frozenset({"remaining", "total", "format"}),
    "context_management": frozenset({"compact_threshold", "value"}),
    "additionalModelRequestFields": frozenset({"budget_tokens"}),
    "imageConfig": frozenset({"compressionQuality"}),
    "image_config": frozenset({"compression_quality"}),
}
_OBJECTS_DEPTH_MAX: Final = 16
_NONE: Final[frozenset[str]] = frozenset()
_FLOAT_CHARACTERS_MAX: Final = 64
_NUMBER_DIGITS: Final = re.compile(r"[\s_+\-.eE]*\d[\s_+\-.eE\d]*")


def check_numbers(call: CallRequest, allowed: frozenset[str], bound: int = INTEGER_MAX) -> None:
    """Raise `InvalidRequest` for unknown numbers in a body, which could overrule its output maximum.

    Raise it also for several chats in one call, and for a minimum above the maximum, which is `bound` where
    the call states none. `allowed` are names that the upstream's configuration permits.
    """
    shape, document = SHAPES.get(call.meter), call.body.document
    if shape is None or document is None or not shape.maximum:
        return
    elements(document, "messages")  # some servers take each list in it for a chat
    place = document if shape.place is None else shape.place(document)
    for name, asks in _BOUNDLESS.items():
        inside = document.get(name)
        if (
            inside is not None
            and name not in allowed
            and not (isinstance(inside, dict) and inside.get(asks) in (None, False))
        ):
            raise InvalidRequest(
                f"{name}: nothing bounds what its agents read and write, and this call must not use more than is"
                " held. Leave it out.",
                param=name,
            )
    known = _Numbers(HARMLESS | allowed, bound if call.output_max is None else call.output_max)
    for part in (document,) if place is document else (document, place):
        for name, value in part.items():
            if name not in shape.numbers:
                _check_number(name, name, value, known)
            free = value is place or name in FREE_OBJECTS or name in allowed
            if not free and isinstance(value, list | dict):
                _check_inside(value, name, known, NESTED.get(name, _NONE), _OBJECTS_DEPTH_MAX)


class _Numbers(NamedTuple):
    """Names whose numbers are `known` to be harmless, and the maximum of output, which no minimum may exceed."""

    known: frozenset[str]
    output_max: int


def _check_number(name: str, param: str, value: object, numbers: _Numbers) -> None:
    most = numbers.output_max
    if name in MINIMA and name not in numbers.known:
        if value is not None and (type(value) is not int or value > most):
            raise InvalidRequest(
                f"{param} must be a whole number up to {most}, the most that this call may write.",
                param=param,
            )
    elif name not in numbers.known and name not in TEXTS and _is_number(value):
        raise InvalidRequest(
            f"{param}: nobody here knows what this number does, and this call must not use more than is"
            " held. Leave it out, or have the operator allow it by `fields` of the upstream.",
            param=param,
        )


def _check_inside(value: object, path: str, known: _Numbers, inner: Collection[str], depth: int) -> None:
    """Raise `InvalidRequest` for a number, at any depth, under a name that is not in `known` or `inner`."""
    if depth == 0:
        raise InvalidRequest(f"{path} is nested more than {_OBJECTS_DEPTH_MAX} deep.", param=path)
    if isinstance(value, list):
        for each in value:
            if isinstance(each, list | dict):
                _check_inside(each, path, known, inner, depth - 1)
    elif isinstance(value, dict):
        for name, inside in value.items():
            param = f"{path}.{name}"
            if name not in inner:
                _check_number(name, param, inside, known)
                if isinstance(inside, list | dict):
                    _check_inside(inside, param, known, inner, depth - 1)


def _is_number(value: object) -> bool:
    """Return whether a lenient server may read a value as a number: also a text, or a list of one number."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        if len(value) > _FLOAT_CHARACTERS_MAX:
            return _NUMBER_DIGITS.fullmatch(value) is not None
        try:
            float(value)
        except ValueError:
            return False
        return True
    return type(value) in {int, float}
