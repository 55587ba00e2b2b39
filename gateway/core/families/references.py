"""Fields of requests that refer to stored objects, and fields that end like an id and do not.

Both are tables by API. A name in neither table is judged by its value: it must be no object that another
organization owns. A test reads the request types of the vendors' SDKs, and fails for a name that no table has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.families.controlled import ID_ENDS, Document, id_in, ids_in
from gateway.core.families.family import BodyIds, ObjectRules


def names(written: str) -> frozenset[str]:
    """Return the names in a text, where they are separated by blanks."""
    return frozenset(written.split())


_ENDS: Final = ID_ENDS
_CAMEL_ENDS: Final = ("Id", "Ids", "ID", "IDs", "Uuid", "Uuids", "UUID", "UUIDs")
_CAMEL: Final = re.compile("(?<=[a-z])(?=[A-Z])")
# Ids that callers choose, in any API: of tool calls, users, requests, and lines of a file.
OF_CALLERS: Final = names(
    "call_id tool_call_id tool_use_id user_id request_id session_id trace_id custom_id connector_id"
)

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

    def add(self, name: str, inside: object, holder: Document, place: str, found: BodyIds) -> bool:
        """Add to `found` the ids in the field `name` with the value `inside` of the object `holder`.

        Return whether the tables know the field. `place` is the list around that object. The case of the name
        does not matter.
        """
        folded = name.lower()
        if folded == "id":
            if found.known:
                found.named.append(id_in(inside, name))
            return found.known
        if folded in self.others or (folded == "skill_id" and self.vendors(holder, inside)):
            return True
        if folded not in self.named or (isinstance(inside, dict) and not folded.endswith(_ENDS)):
            return False
        found.named += ids_in(inside, name) if folded.endswith("_ids") else [id_in(inside, name)]
        return True


def add_known(  # noqa: PLR0917  # a member, and where it stands
    objects: ObjectRules, name: str, inside: object, holder: Document, place: str, found: BodyIds
) -> None:
    """Add to `found` the ids in a field of any API: by the tables of that API, else by its own name.

    A text in a field that ends like an id, and is in no table, is added to `found.unknown` as each id that it
    may stand for.
    """
    folded = name.lower()
    if name.endswith(_CAMEL_ENDS):
        folded = _CAMEL.sub("_", name).lower()
    if folded == "id" and found.known and _is_whole(holder, place):
        found.brought.append(id_in(inside, name))
    elif not objects.add(name, inside, holder, place, found) and (
        folded == "id" or (folded.endswith(_ENDS) and folded.replace("-", "_") not in OF_CALLERS)
    ):
        found.unknown += [id_ for text in _texts(inside) for id_ in objects.readings(text.strip())]


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
