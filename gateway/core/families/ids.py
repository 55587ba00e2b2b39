"""Ids in the bodies of APIs that name what they keep by fields called id: which of them name something."""

from __future__ import annotations

from gateway.core.families.controlled import Document
from gateway.core.names import Names

# These name an object where a text stands; an object with an id names it as any id does.
_NAMES = frozenset({"conversation", "container", "training_file", "validation_file"})
# What ends like the name of an object and is none: what callers number themselves, and what is public.
_OTHER_IDS = frozenset(
    {"call_id", "tool_call_id", "tool_use_id", "user_id", "request_id", "trace_id", "connector_id"}
)
# What stands whole in a request has an id of its own that names nothing: by its type, the member without
# which it is only a reference to what the upstream keeps.
_WHOLE = {
    "message": "content", "function": "function", "custom": "custom",
    "function_call": "arguments", "function_call_output": "output",
    "custom_tool_call": "input", "custom_tool_call_output": "output",
    "computer_call": "action", "computer_call_output": "output",
    "local_shell_call": "action", "local_shell_call_output": "output",
    "shell_call": "action", "shell_call_output": "output",
    "apply_patch_call": "operation", "apply_patch_call_output": "output",
    "reasoning": "encrypted_content", "compaction": "encrypted_content",
    "tool_use": "input", "server_tool_use": "input", "mcp_tool_use": "input",
}  # fmt: skip
_UNTYPED = ("content", "function")  # a message, or a call of a function, that does not say its type


def may_name_ids(body: bytes, names: Names) -> bool:
    """Whether a body has a name that ends like an id's."""
    return names.ids


def add_ids(name: str, inside: object, holder: Document, found: list[object]) -> None:
    """Add what a field names: any that ends like an id, unless it is known to name nothing."""
    folded = name.lower()
    if folded == "id":
        if not _is_whole(holder):
            found.append(inside)
    elif folded.endswith("_id"):
        if folded not in _OTHER_IDS:
            found.append(inside)
    elif folded.endswith("_ids"):
        found += inside if isinstance(inside, list) else (inside,)
    elif folded in _NAMES:
        found.append(inside)


def _is_whole(holder: Document) -> bool:
    """Whether something with an id is all there, and not a reference to what an upstream keeps."""
    kind = holder.get("type")
    if kind is None:
        return any(holder.get(name) is not None for name in _UNTYPED)
    return isinstance(kind, str) and holder.get(_WHOLE.get(kind, "")) is not None
