"""Fields of requests that refer to stored objects, and fields that end like an id and do not.

Both are in the table of costs. A name that it does not have is judged by its value: it must be no object that
another organization owns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.families.controlled import ID_ENDS, OF_EVERY_FAMILY, Document, id_in, ids_in
from gateway.core.families.costs import NOTHING, OBJECT, members_of_cost
from gateway.core.families.family import BodyIds, ObjectRules


def names(written: str) -> frozenset[str]:
    """Return the names in a text, where they are separated by blanks."""
    return frozenset(written.split())


_CAMEL_ENDS: Final = ("Id", "Ids", "ID", "IDs", "Uuid", "Uuids", "UUID", "UUIDs")
_CAMEL: Final = re.compile("(?<=[a-z])(?=[A-Z])")
# Ids that callers choose, in any API.
_OF_CALLERS: Final = members_of_cost("all", NOTHING)

# Fields in which the APIs have an `id` that refers to a stored object, in small letters, and the top of a body. In any
# other place such an `id` is judged by its value, unless its object says that it is a reference.
PLACES: Final = frozenset(
    map(
        str.lower, (*OF_EVERY_FAMILY, "audio", "inputs", "items", "requests", "skills", "thread", "voice", "")
    )
)
_REFERENCES: Final = ("reference", "_id")  # end the types of such objects

# A complete object in a request of any API may have an id that refers to no stored object. It is an element of one of
# these lists, with a documented type and the member given here. Items of the API's own tools come back as
# they were sent.
_SAID: Final = {"message": "content"}
_ITEMS: Final = {
    **_SAID,
    "function_call": "arguments", "function_call_output": "output",
    "custom_tool_call": "input", "custom_tool_call_output": "output",
    "computer_call": "action", "computer_call_output": "output",
    "local_shell_call": "action", "local_shell_call_output": "output",
    "shell_call": "action", "shell_call_output": "output",
    "apply_patch_call": "operation", "apply_patch_call_output": "output",
    "reasoning": "encrypted_content", "compaction": "encrypted_content",
    "web_search_call": "status", "file_search_call": "queries", "code_interpreter_call": "status",
    "image_generation_call": "result", "mcp_call": "arguments", "mcp_list_tools": "tools",
    "mcp_approval_request": "arguments", "tool_search_call": "arguments", "tool_search_output": "tools",
}  # fmt: skip
_BLOCKS: Final = dict.fromkeys(("tool_use", "server_tool_use", "mcp_tool_use"), "input")
_WHOLE: Final = {
    "input": _ITEMS, "items": _ITEMS, "messages": _SAID, "content": _BLOCKS,
    "tool_calls": {"function": "function", "custom": "custom"},
}  # fmt: skip
# The type of an element of such a list that states none.
_UNTYPED: Final = {"input": "message", "items": "message", "messages": "message", "tool_calls": "function"}
# The types of each member. A member must not be empty, but for input and output of a function.
_MEMBERS: Final = {
    "content": (str, list), "encrypted_content": (str,), "arguments": (str, dict),
    "output": (str, list, dict), "input": (str, dict), "action": (dict,), "operation": (dict,),
    "function": (dict,), "custom": (dict,), "status": (str,), "queries": (list,),
    "result": (str,), "tools": (list,),
}  # fmt: skip
_MAY_BE_EMPTY: Final = frozenset({"arguments", "output", "input", "queries", "tools"})


@dataclass(frozen=True, slots=True)
class IdFields:
    """The id fields of one API: fields in `named` refer to stored objects, and fields in `others` do not.

    `vendors` returns whether a skill is the vendor's own, by its holder and its id.
    """

    named: frozenset[str]
    others: frozenset[str]
    vendors: Callable[[Document, object], bool]

    def add(self, name: str, inside: object, holder: Document, place: str, ids: BodyIds) -> bool:
        """Add to `ids` the ids in the field `name` with the value `inside` of the object `holder`.

        Return whether the tables know the field. `place` is the list around that object. The case of the name
        does not matter.
        """
        folded = name.lower()
        if folded == "id":
            refers = ids.known and _refers(holder, place)
            if refers:
                ids.named.append(id_in(inside, name))
            return refers
        if folded in self.others or (folded == "skill_id" and self.vendors(holder, inside)):
            return True
        if folded not in self.named or (isinstance(inside, dict) and not folded.endswith(ID_ENDS)):
            return False
        if folded.endswith("ids"):
            ids.named += ids_in(inside, name)
        else:  # a list in a plural has ids, and objects with one
            ids.named += _texts_in(inside) if folded.endswith("s") else [id_in(inside, name)]
        return True


def id_fields(api: str, vendors: Callable[[Document, object], bool]) -> IdFields:
    """Return the id fields of an API by the table of costs."""
    return IdFields(members_of_cost(api, OBJECT), _OF_CALLERS | members_of_cost(api, NOTHING), vendors)


def add_known(  # noqa: PLR0917  # a member, and where it stands
    objects: ObjectRules, name: str, inside: object, holder: Document, place: str, ids: BodyIds
) -> None:
    """Add to `ids` the ids in a field of any API: by the tables of that API, else by its own name.

    A text in a field that ends like an id, and is in no table, is added to `found.unknown` as each id that it
    may stand for.
    """
    folded = name.lower()
    if name.endswith(_CAMEL_ENDS):
        folded = _CAMEL.sub("_", name).lower()
    if folded == "id" and ids.known and _is_whole(holder, place):
        ids.brought.append(id_in(inside, name))
    elif not objects.add(name, inside, holder, place, ids) and (
        folded == "id" or (folded.endswith(ID_ENDS) and folded.replace("-", "_") not in _OF_CALLERS)
    ):
        ids.unknown += [id_ for text in _texts(inside) for id_ in objects.readings(text.strip())]


def _texts_in(value: object) -> list[str]:
    """Return a text, or the texts in a list. Objects in it are searched by their own members."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _texts(value: object) -> list[str]:
    """Return a text, or all texts in a list or an object, at any depth."""
    texts, waiting = list[str](), [value]
    while waiting:
        inside = waiting.pop()
        if isinstance(inside, list):
            waiting += inside
        elif isinstance(inside, dict):
            waiting += inside.values()
        elif isinstance(inside, str):
            texts.append(inside)
    return texts


def _refers(holder: Document, place: str) -> bool:
    """Return whether the `id` of an object at `place` refers to a stored object."""
    kind = holder.get("type")
    return place.rstrip(".").lower() in PLACES or (isinstance(kind, str) and kind.endswith(_REFERENCES))


def _is_whole(holder: Document, place: str) -> bool:
    """Return whether an object with an id is itself complete, and not a reference to a stored object.

    The surrounding list `place`, its type, and a field of that type decide.
    """
    kind = holder.get("type")
    if kind is None:
        kind = _UNTYPED.get(place)
    member = _WHOLE.get(place, {}).get(kind) if isinstance(kind, str) else None
    if member is None or (kind == "message" and not isinstance(holder.get("role"), str)):
        return False
    value = holder.get(member)
    return isinstance(value, _MEMBERS[member]) and (bool(value) or member in _MAY_BE_EMPTY)
