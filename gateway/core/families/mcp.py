"""MCP over streamable HTTP: each message is one request, and only tool calls cost something.

Sources: modelcontextprotocol.io, revisions 2025-03-26 to 2026-07-28, "Transports", SEP-2322 (a result that asks
for input) and SEP-2663 (tasks); types of `mcp` 2.3.0. An unknown method is refused, because its effect on a
server is unknown.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from gateway.core.calls.call import Body, CallSpec, McpMessage, UsageBounds
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import ControlledNames, Document, PathParams, id_in, ids_in
from gateway.core.families.family import (
    ID_CHARACTERS_MAX,
    KEPT_NOTHING,
    KEPT_OBJECTS,
    ApiFamily,
    BodyIds,
    CallKind,
    ObjectRules,
    ids_of,
    object_in,
)
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import loose_document
from gateway.core.model import Family
from gateway.errors import InvalidRequest, Refusal

NAME = Family("mcp")
PREFIX: Final = "/mcp/"
SERVICE: Final = "mcp"
CALL: Final = "tools/call"
SESSION: Final = b"mcp-session-id"
METHOD, NAMED, VERSION = "mcp-method", "mcp-name", "mcp-protocol-version"

# Methods about one task, whose call of a tool is charged already. `tasks/list` would tell those of all
# organizations.
TASKS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel", "tasks/result"})
# Methods that cost nothing. A client's answer to its server has no method.
FREE: Final = frozenset(
    {
        "initialize", "ping", "server/discover", "logging/setLevel", "completion/complete", "tools/list",
        "prompts/list", "prompts/get", "resources/list", "resources/templates/list", "resources/read",
        "resources/subscribe", "resources/unsubscribe", "subscriptions/listen",
        "notifications/initialized", "notifications/cancelled", "notifications/progress",
        "notifications/roots/list_changed", *TASKS,
    }
)  # fmt: skip
_NOTIFIES: Final = "notifications/"
# The parameter that a header repeats, by method.
_SUBJECTS: Final = {
    CALL: "name", "prompts/get": "name", "resources/read": "uri", **dict.fromkeys(TASKS, "taskId"),
}  # fmt: skip
_MESSAGE = ControlledNames("jsonrpc", "id", "method", "params", "result", "error")
_PARAMS = ControlledNames(
    "name", "uri", "arguments", "_meta", "taskId", "inputResponses", "requestState", "notifications"
)
# Where a message names tasks, and the members that do so, in small letters and without `_`.
_TASK_PLACES: Final = frozenset({"params.", "notifications.", "io.modelcontextprotocol/related-task."})
_TASK_NAMES: Final = {"taskid": id_in, "taskids": ids_in}
_TOOL = re.compile(r"[A-Za-z0-9_./:-]{1,128}")
_ENCODED = re.compile(r"=\?base64\?([A-Za-z0-9+/=]*)\?=")
_META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
# From this revision on, headers repeat the method and the name in the body.
_BY_HEAD: Final = "2026-07-28"

# JSON-RPC 2.0, 5.1; the last one is MCP's own.
_INVALID, _NO_METHOD, _REFUSED, _MISMATCH = -32600, -32601, -32000, -32020
# By the parameter that a refusal names.
_CODES = {"method": _NO_METHOD, METHOD: _MISMATCH, NAMED: _MISMATCH, VERSION: _MISMATCH}


def routes_of(server: str) -> tuple[Route, ...]:
    """Return the routes of an MCP server's upstream: messages, its event stream, and the end of a session."""
    path = PREFIX + server
    return (
        Route(("POST",), path, server, SERVICE, NAME, "mcp", on_disconnect="abort"),
        Route(("GET", "DELETE"), path, server, family=NAME),
    )


def read_message(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read one JSON-RPC message. `params` are the headers that repeat fields of its body."""
    id_ = document.get("id")
    reply_to = id_ if isinstance(id_, str | int) and not isinstance(id_, bool) else None
    try:
        tool = _read(document, params, reply_to)
    except InvalidRequest as refusal:
        refusal.reply_to = reply_to
        raise
    # Its answer may be a stream, and has no tokens.
    return CallSpec(streamed=True, output_max=0, mcp=McpMessage("", tool, not tool, reply_to))


def _read(document: Document, answer: Mapping[str, str], reply_to: str | int | None) -> str:
    """Return the tool that a message calls; empty for a message that costs nothing."""
    _MESSAGE.check(document)
    strange = next((name for name in document if name not in _MESSAGE.exact), None)
    if strange is not None or document.get("jsonrpc") != "2.0":
        raise _wrong(strange or "jsonrpc", 'a message has jsonrpc "2.0", id, method and params alone')
    if "id" in document and reply_to is None:
        raise _wrong("id", "must be a text or a whole number")
    method, params = document.get("method"), document.get("params", {})
    if method is None and ("result" in document or "error" in document):
        return ""
    if not isinstance(method, str) or (method != CALL and method not in FREE):
        raise _wrong("method", f"{str(method)[:64]!r} is not a method that passes here")
    if not isinstance(params, dict):
        raise _wrong("params", "must be an object")
    if not method.startswith(_NOTIFIES) and reply_to is None:
        raise _wrong("id", f"{method} is a request, and needs one")
    _PARAMS.check(params, "params.")
    subject = params.get(_SUBJECTS.get(method, ""))
    _check_head(method, subject, params, answer)
    if method in TASKS and not (isinstance(subject, str) and 0 < len(subject) <= ID_CHARACTERS_MAX):
        raise _wrong("params.taskId", f"a task's id is a text of 1 to {ID_CHARACTERS_MAX} characters")
    if method != CALL:
        return ""
    if not isinstance(subject, str) or _TOOL.fullmatch(subject) is None:
        raise _wrong("params.name", "a tool's name is of 1 to 128 letters, digits and _ - . / : in ASCII")
    return subject


def _check_head(method: str, subject: object, params: Document, answer: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` if headers and body of a message differ, or if a required header is missing."""
    stated = object_in(params, "_meta").get(_META_VERSION)
    version = answer.get(VERSION)
    if stated is not None and version is not None and stated != version:
        raise _wrong(VERSION, f"the head says {version}, and params._meta another revision")
    by_head = max(version or "", stated if isinstance(stated, str) else "") >= _BY_HEAD
    for name, wanted in ((METHOD, method), (NAMED, subject)):
        value = answer.get(name)
        if value is None:
            # The core's revision does not ask for the name of a task, which is the extension's.
            if by_head and wanted is not None and not (name == NAMED and method in TASKS):
                raise _wrong(name, f"must be in the head, from revision {_BY_HEAD} on")
        elif _decoded(value) != wanted:
            raise _wrong(name, "the head says another one than the body")


def _decoded(value: str) -> str:
    """Return the value of a header, decoded if it is in base64; a NUL character if it cannot be decoded."""
    match = _ENCODED.fullmatch(value)
    if match is None:
        return value
    try:
        return base64.b64decode(match[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "\0"


def _wrong(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {why}.", param=param)


def task_key(server: str, id_: str) -> str:
    """Return the key of a server's task in the store that knows the owners of objects."""
    return f"task {server} {id_}"


def _add_ids(name: str, inside: object, holder: Document, place: str, body: BodyIds) -> bool:
    """Add to `body` the tasks that a member of a message names, and return whether the member is known."""
    if name == "id":  # of a message, which it numbers
        return "jsonrpc" in holder
    read = _TASK_NAMES.get(name.lower().replace("_", "")) if place.lower() in _TASK_PLACES else None
    if read is None:
        return False
    ids = read(inside, name)
    body.named += ids if isinstance(ids, list) else [ids]
    return True


# A tool that ran costs its call, also where its result says `isError`, or where its client cancelled it: the
# server has worked. A tool that goes on as a task costs its call too. Free is an error that says that nothing
# ran, before anything else of the call came, and a result that asks for input: the call with the input costs.
_NOTHING_RAN: Final = frozenset({
    -32700, -32600, -32601, -32602, -32603, -32020, -32021, -32022, -32042,
})  # fmt: skip
_EVENTS: Final = (0, "events")
# The members that a result which asks for input may have (`InputRequiredResult`). It has one of `_ASKING`.
_QUESTION: Final = frozenset({"resultType", "inputRequests", "requestState", "_meta"})
_ASKING: Final = {"inputRequests": dict, "requestState": str}


def _read_whole(meter: Meter, document: bytes) -> None:
    if 200 <= meter.status < 300:
        _end(meter, loose_document(document))


def _end(meter: Meter, message: Document) -> None:
    """Report the end of a call of a tool, unless the tool did not run; note its task."""
    code, result = object_in(message, "error").get("code"), object_in(message, "result")
    nothing_ran = isinstance(code, int) and code in _NOTHING_RAN and not meter.said.get(_EVENTS)
    if nothing_ran or _asks_first(result):
        meter.failed = True
        return
    meter.report_units()
    task = result if result.get("resultType") == "task" else object_in(result, "task")
    meter.told += [task_key(meter.call.spec.mcp.server, id_) for id_ in ids_of(task.get("taskId"))]


def _asks_first(result: Document) -> bool:
    """Return whether a result is a question alone. One that has anything else, such as content, is none."""
    return (
        result.get("resultType") == "input_required"
        and result.keys() <= _QUESTION
        and any(isinstance(result.get(name), kind) for name, kind in _ASKING.items())
    )


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count a message of a stream: an event of the tool, or the end of the call."""
    message = loose_document(data)
    if "method" in message:
        meter.said[_EVENTS] = 1
        return False
    answers, is_end = message.get("id"), "result" in message or "error" in message
    if is_end and (answers is None or answers == meter.call.spec.mcp.reply_to):
        _read_whole(meter, data)
        meter.phase = CLOSED
    return False


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    """Return a refusal as a JSON-RPC error. The function `render` sets the id of its request later."""
    param = refusal.param or ""
    code = _CODES.get(param) or (_INVALID if refusal.status == 400 else _REFUSED)
    data: dict[str, object] = {"reason": refusal.reason, "request_id": request_id}
    if param:
        data["param"] = param
    if refusal.retry_after_s is not None:
        data["retry_after_s"] = refusal.retry_after_s
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": refusal.told, "data": data}}


FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes={
        "mcp": CallKind(
            read_message,
            Dialect(_read_whole, _read_event),
            operation="execute_tool",
            keeps=lambda document: KEPT_OBJECTS if document.get("method") == CALL else KEPT_NOTHING,
            of_tools=True,
        )
    },
    brings=routes_of,
    credit=(),
    prefixes=(PREFIX,),
    provider="mcp",
    session_field=SESSION,
    objects=ObjectRules(
        add=_add_ids,
        key=task_key,
        is_free=lambda name, holder: name == "inputResponses",
        tell=(b'"taskId"',),
    ),
    headers=frozenset({SESSION, METHOD.encode(), NAMED.encode(), VERSION.encode(), b"last-event-id"}),
    said_twice=(METHOD.encode(), NAMED.encode(), VERSION.encode()),
)
