"""What each tool, part and member of a request may cost, by the table in `costs_table.py`. Pure.

`deploy/costs.py` draws the names from the types of the vendors' SDKs, and people decide what each costs. A name
without a row costs an unknown amount.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from gateway.core.families.costs_table import ROWS

# Costs of tools beside prices, which have the name of a price.
FREE: Final = frozenset({"free", "safe"})  # nothing but tokens
SAFE: Final = frozenset({"safe", "file_search", "web_search", "web_search_preview"})  # changes nothing
GROUP: Final = "group"  # an object around tools
LIKE: Final = "like"  # an API whose tools this one has too
NAME: Final = "name"  # names a tool that another place defines
UNKNOWN: Final = "unknown"
# Costs of parts.
TEXT: Final = "text"
PARTS: Final = "parts"  # what its parts cost
PICTURE: Final = "picture"
PAGES: Final = "pages"
SOUND: Final = "sound"
VIDEO: Final = "video"
STATED: Final = "stated"  # the medium whose type it states
# Costs of members.
MODEL: Final = "model"
MODELS: Final = "models"
OBJECT: Final = "object"
NOTHING: Final = "nothing"
# Members that have tools, in messages, items, parts and groups of all APIs.
TOOL_MEMBERS: Final = frozenset({"tools", "tool", "definition"})
# The member of a tool that says who runs it: its type is written behind that of the tool, with a colon.
ENVIRONMENT: Final = "environment"
BY_HAND: Final = "by hand"  # ends the name of a section that no SDK has


def read_rows(rows: str) -> dict[str, dict[str, str]]:
    """Return the cost of each name, by section of a table."""
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    cost = ""
    for line in rows.splitlines():
        names = line
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith(("#", " ")):
            cost, _, names = line.partition(":")
        if line and not line.startswith(("[", "#")):
            section.update(dict.fromkeys(names.split(), cost))
    return sections


_SECTIONS: Final = read_rows(ROWS)
_UPPER: Final = re.compile("(?<=[a-z0-9])[A-Z]")


def costs_of(section: str) -> dict[str, str]:
    """Return the cost of each name in a section, and of those that no SDK has; Gemini's in both spellings."""
    costs = _SECTIONS.get(section, {}) | _SECTIONS.get(f"{section} {BY_HAND}", {})
    if not section.startswith("gemini "):
        return costs
    return costs | {
        _UPPER.sub(lambda upper: f"_{upper[0].lower()}", name): cost for name, cost in costs.items()
    }


def names_of(what: str, *costs: str) -> frozenset[str]:
    """Return the names in the sections of the kind `what`, of any API, that have one of these costs."""
    sections = [section for section in _SECTIONS if what in section.split()]
    return frozenset(
        name for section in sections for name, cost in costs_of(section).items() if cost in costs
    )


def members_of_cost(api: str, cost: str) -> frozenset[str]:
    """Return the members of an API that have this cost."""
    return frozenset(name for name, member_cost in costs_of(f"{api} members").items() if member_cost == cost)


# What the types of parts and the members of all APIs cost; a part that is a medium in one is a text in none.
_PARTS: Final = frozenset(
    name for section in _SECTIONS if {"parts", "fields"} & set(section.split()) for name in costs_of(section)
)
_MEDIA: Final = {name: cost for cost in (PICTURE, PAGES, SOUND, VIDEO) for name in names_of("parts", cost)}


def medium_of(kind: str, unknown: str = "") -> str:
    """Return the cost of a medium in a part of the type `kind`: empty if it has none, `unknown` without a row."""
    return _MEDIA.get(kind) or ("" if kind in _PARTS else unknown)


_NONE: Final[Mapping[str, str]] = {}


def _costs_by_api(what: str) -> dict[str, dict[str, str]]:
    """Return the cost of each name in the sections of this kind, by API, with those of another that it is like."""
    costs = {
        section.partition(" ")[0]: costs_of(section.removesuffix(f" {BY_HAND}"))
        for section in _SECTIONS
        if what in section.split()
    }
    for rows in costs.values():
        for other in [name for name, cost in rows.items() if cost == LIKE]:
            rows.update(costs[other])
    return costs


_TOOLS: Final = _costs_by_api("tools")
_TOKENS: Final = {
    api: {name: int(cost) for name, cost in rows.items() if cost != LIKE}
    for api, rows in _costs_by_api("tokens").items()
}
_NO_TOKENS: Final[Mapping[str, int]] = {}


def tool_costs(api: str) -> Mapping[str, str]:
    """Return what each tool of an API costs, by its type or member."""
    return _TOOLS.get(api, _NONE)


def tool_tokens(api: str) -> Mapping[str, int]:
    """Return the tokens that each tool of an API adds to a prompt, by its type or member."""
    return _TOKENS.get(api, _NO_TOKENS)


_OPTIONS: Final = _costs_by_api("options")
OPTIONS: Final = frozenset(name for rows in _OPTIONS.values() for name in rows)
# Members of an option that say whether it is on, and values that say no.
_SWITCHES: Final = ("enable", "enabled")
_OFF: Final = (None, False, 0, "", "false", "off", "disabled")


def options_of(api: str, document: Mapping[str, object]) -> dict[str, str]:
    """Return the options of a body that make a provider use a tool, each with its price."""
    return {
        name: cost
        for name, cost in _OPTIONS.get(api, _NONE).items()
        if name in document and not _is_off(document[name])
    }


def _is_off(value: object) -> bool:
    if isinstance(value, dict):
        return any(name in value and _is_off(value[name]) for name in _SWITCHES)
    return not isinstance(value, list) and value in _OFF


def tools_of_cost(*costs: str) -> frozenset[str]:
    """Return the types of tools of any API that have one of these costs."""
    return frozenset(name for rows in _TOOLS.values() for name, cost in rows.items() if cost in costs)


_PLUGINS: Final = costs_of("openai plugins")


def plugin_cost(name: str) -> str:
    """Return what one of OpenRouter's plugins costs, by its id."""
    return _PLUGINS.get(name, UNKNOWN)


_QUOTES: Final = costs_of("all quotes")


def quotes_in(document: Mapping[str, object]) -> int:
    """Return how many addresses and ids of files a body only quotes: in citations, results and tools' servers."""
    servers = document.get("mcp_servers")
    count = (
        sum("url" in server for server in servers if isinstance(server, dict))
        if isinstance(servers, list)
        else 0
    )
    waiting = list[object]([document])
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and kind in _QUOTES:
                inside = value.get(kind)  # chat completions have a citation in a member by its type
                holder = inside if isinstance(inside, dict) else value
                count += isinstance(holder.get(_QUOTES[kind]), str)
            value = list(value.values())
        if isinstance(value, list):
            waiting += [item for item in value if isinstance(item, dict | list)]
    return count
