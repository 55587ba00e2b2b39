"""Ids in the bodies of APIs that name what they keep by fields called id: which of them name something."""

from __future__ import annotations

from gateway.core.families.controlled import Document, id_in, ids_in
from gateway.core.families.family import Found
from gateway.core.names import Names

# These name an object where a text stands; an object with an id names it as any id does.
_NAMES = frozenset({"conversation", "container", "training_file", "validation_file"})
# What ends like the name of an object and is none: what callers number themselves, and what is public.
_OTHER_IDS = frozenset(
    {"call_id", "tool_call_id", "tool_use_id", "user_id", "request_id", "trace_id", "connector_id"}
)
# What stands whole in a request has an id of its own that names nothing. It is an element of such a list, of
# a type that the list's API documents: by both, the member that makes it whole.
_SAID = {"message": "content"}
_ITEMS = {
    **_SAID,
    "function_call": "arguments", "function_call_output": "output",
    "custom_tool_call": "input", "custom_tool_call_output": "output",
    "computer_call": "action", "computer_call_output": "output",
    "local_shell_call": "action", "local_shell_call_output": "output",
    "shell_call": "action", "shell_call_output": "output",
    "apply_patch_call": "operation", "apply_patch_call_output": "output",
    "reasoning": "encrypted_content", "compaction": "encrypted_content",
}  # fmt: skip
_BLOCKS = dict.fromkeys(("tool_use", "server_tool_use", "mcp_tool_use"), "input")
_WHOLE = {
    "input": _ITEMS, "items": _ITEMS, "messages": _SAID, "content": _BLOCKS,
    "tool_calls": {"function": "function", "custom": "custom"},
}  # fmt: skip
# What an element of such a list is that does not say its type.
_UNTYPED = {"input": "message", "items": "message", "messages": "message", "tool_calls": "function"}
# What a member is: a text, a list or an object that says something. What a function is given and what it
# gives may be nothing.
_MEMBERS = {
    "content": (str, list), "encrypted_content": (str,), "arguments": (str,), "output": (str, list, dict),
    "input": (str, dict), "action": (dict,), "operation": (dict,), "function": (dict,), "custom": (dict,),
}  # fmt: skip
_MAY_BE_EMPTY = frozenset({"arguments", "output", "input"})


def may_name_ids(body: bytes, names: Names) -> bool:
    """Whether a body has a name that ends like an id's."""
    return names.ids


def add_ids(name: str, inside: object, holder: Document, place: str, found: Found) -> None:
    """Add what a field names: any that ends like an id, unless it is known to name nothing."""
    folded = name.lower()
    if folded == "id":
        id_in(inside, name)
        (found.brought if _is_whole(holder, place) else found.named).append(inside)
    elif folded.endswith("_id"):
        if folded not in _OTHER_IDS:
            found.named.append(id_in(inside, name))
    elif folded.endswith("_ids"):
        found.named += ids_in(inside, name)
    elif folded in _NAMES and not isinstance(inside, dict):
        found.named.append(id_in(inside, name))


def _is_whole(holder: Document, place: str) -> bool:
    """Whether something with an id is all there, and not a reference to what an upstream keeps.

    Its place and its type say so, and no member that its caller could add.
    """
    kind = holder.get("type")
    if kind is None:
        kind = _UNTYPED.get(place)
    member = _WHOLE.get(place, {}).get(kind) if isinstance(kind, str) else None
    if member is None or (kind == "message" and not isinstance(holder.get("role"), str)):
        return False
    value = holder.get(member)
    return isinstance(value, _MEMBERS[member]) and (bool(value) or member in _MAY_BE_EMPTY)
