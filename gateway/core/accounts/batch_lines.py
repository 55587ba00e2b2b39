"""Lines of a batch: the calls of its input, in a file or a body, and the lines of its result.

Pure. All calls of a batch name one model and one endpoint, and each has its own id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any, Final, TypeVar

import msgspec

from gateway.core.calls.call import check_names
from gateway.core.metering.reading import UNREADABLE, decoded, integer
from gateway.errors import InvalidRequest

BATCH_PURPOSE: Final = "batch"
T = TypeVar("T")
# Limits of a batch.
LINES_MAX: Final = 50_000
LINE_ID_CHARACTERS_MAX: Final = 512
_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE
)
_NAME = re.compile(rb'content-disposition:[^\r\n]*?[;\s]name="?([A-Za-z_]+)"?', re.IGNORECASE)


class BatchLine(msgspec.Struct, forbid_unknown_fields=True):
    """One call of a batch as its input file has it. Other fields are refused."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _InlineCall(msgspec.Struct, forbid_unknown_fields=True):
    """One call of a batch in the body that creates the batch."""

    custom_id: str
    params: dict[str, Any]


class _OperatedCall(msgspec.Struct, forbid_unknown_fields=True):
    """One call of a batch whose model is in the path; `metadata` is returned with its result."""

    request: dict[str, Any]
    metadata: dict[str, Any] | None = None


class _NamedModel(msgspec.Struct):
    model: str


_decode_line, _encode_line = msgspec.json.Decoder(BatchLine).decode, msgspec.json.Encoder().encode
_model = msgspec.json.Decoder(_NamedModel).decode


def uploaded_batch(content_type: bytes, body: bytes) -> bytes | None:
    """Return the file of an upload form with purpose `batch`; None for another purpose.

    Raise `InvalidRequest` for a form that is malformed or ambiguous.
    """
    match = _BOUNDARY.match(content_type.strip())
    if match is None:
        raise InvalidRequest("The content-type must be multipart/form-data.", param="content-type")
    delimiter = b"\r\n--" + (match[1] or match[2])
    parts = (b"\r\n" + body).split(delimiter)
    if len(parts) < 2 or not parts[-1].startswith(b"--") or parts[0]:
        raise InvalidRequest("The form does not end, or begins with something else.")
    fields: dict[bytes, bytes] = {}
    for part in parts[1:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not blank or name is None or name[1].lower() in fields:
            raise InvalidRequest("Each part of the form needs a name of its own.")
        if b"content-transfer-encoding" in head.lower():
            raise InvalidRequest("A part of the form must not be encoded.")
        fields[name[1].lower()] = content
    if fields.get(b"purpose", b"").strip() != BATCH_PURPOSE.encode():
        return None
    if b"file" not in fields:
        raise InvalidRequest("The form has no file.", param="file")
    return fields[b"file"]


def batch_lines(content: bytes, endpoints: Collection[str]) -> Iterator[BatchLine]:
    """Yield the calls of a batch file: of one model, for one of `endpoints`, each with a unique id.

    Raise `InvalidRequest` with the number of a wrong line.
    """

    def read(raw: bytes) -> BatchLine:
        line = _decode_line(raw)
        check_names(raw.strip(), _encode_line(line), 0)
        return line

    return _check_lines(_numbered(content), read, endpoints, "file")


def inline_lines(calls: object, endpoint: str, field: str) -> Iterator[BatchLine]:
    """Yield the calls of a batch from a list in the body's `field`, checked like `batch_lines`."""

    def read(call: object) -> BatchLine:
        inline = msgspec.convert(call, _InlineCall)
        return BatchLine(inline.custom_id, "POST", endpoint, msgspec.Raw(msgspec.json.encode(inline.params)))

    listed = calls if isinstance(calls, list) else []
    return _check_lines(enumerate(listed, 1), read, (endpoint,), field)


def calls_of(document: object, endpoint: str, field: str, model: str) -> Iterator[BatchLine]:
    """Yield the calls of a batch in a nested body `field` (dotted path); `InvalidRequest` if one is wrong.

    They are checked like lines of a batch file. Each uses `model`, the model in the request's path, and
    may name no other. Names may have both spellings of proto3 JSON, camelCase and snake_case.
    """

    def read(call: tuple[int, object]) -> BatchLine:
        request = msgspec.convert(call[1], _OperatedCall).request
        check_model(request)
        body = {"model": f"models/{model}"} | request
        return BatchLine(str(call[0]), "POST", endpoint, msgspec.Raw(msgspec.json.encode(body)))

    def check_model(holder: object) -> None:
        if _member(holder, "model") not in (None, f"models/{model}"):
            raise InvalidRequest(f"The field model must be that of the path: models/{model}.", param="model")

    place = document
    for name in field.split("."):
        if _member(place, "fileName") is not None:
            raise InvalidRequest(f"fileName is not accepted: send the calls in {field}.", param="fileName")
        check_model(place)
        place = _member(place, name)
    listed = enumerate(place if isinstance(place, list) else (), 1)
    return _check_lines(((number, (number, call)) for number, call in listed), read, (endpoint,), field)


def _member(place: object, name: str) -> object:
    """Return the value of a field under either spelling (camelCase or snake_case); None if it is missing.

    Raise `InvalidRequest` if both are present.
    """
    there = place if isinstance(place, dict) else {}
    names = [member for member in there if str(member).replace("_", "").lower() == name.lower()]
    if len(names) > 1:
        raise InvalidRequest(f"The field {name} appears twice.", param=name)
    return there[names[0]] if names else None


def _check_lines(
    found: Iterable[tuple[int, T]], read: Callable[[T], BatchLine], endpoints: Collection[str], field: str
) -> Iterator[BatchLine]:
    """Yield the lines of a batch, read by `read`; raise InvalidRequest at the first line that is wrong."""
    seen: set[str] = set()
    url = first = ""
    for number, raw in found:
        if len(seen) == LINES_MAX:
            raise InvalidRequest(f"Line {number}: a batch has at most {LINES_MAX} lines.", param=field)
        try:
            line = read(raw)
            model = _model(line.body).model
        except InvalidRequest as error:
            raise InvalidRequest(f"Line {number}: {error.told}", param=error.param) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _wrong(field, number, f"it cannot be read: {error}") from error
        if not 0 < len(line.custom_id) <= LINE_ID_CHARACTERS_MAX or line.custom_id in seen:
            raise _wrong(field, number, "custom_id must be there, and be another one on each line")
        if line.method != "POST" or line.url not in endpoints:
            raise _wrong(field, number, f"method must be POST, and url one of {', '.join(sorted(endpoints))}")
        if not model:
            raise _wrong(field, number, "body.model must name a model")
        url, first = url or line.url, first or model
        if line.url != url:
            raise _wrong(field, number, f"url must be {url}, as on the first line")
        if model != first:
            raise _wrong(field, number, f"body.model must be {first}, as on the first line")
        seen.add(line.custom_id)
        yield line
    if not seen:
        raise InvalidRequest(f"There is no line in {field}.", param=field)


def model_of(line: BatchLine) -> str:
    return _model(line.body).model


def _numbered(content: bytes) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(BytesIO(content), 1):
        if raw.strip():
            yield number, raw


def _wrong(field: str, number: int, why: str) -> InvalidRequest:
    return InvalidRequest(f"Line {number}: {why}."[:500], param=field)


class BatchResult(msgspec.Struct):
    """One line of a batch's result: its id, status and answer's body. A `free` line failed, at no cost."""

    custom_id: str
    status: int
    request_id: str
    body: bytes
    free: bool


_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Types of result lines that the upstream did not complete.
_UNDONE: Final = frozenset({"errored", "canceled", "expired"})


def results(content: bytes | Sequence[bytes]) -> Iterator[BatchResult]:
    """Yield the parsed lines of a batch's result."""
    lines = (raw for _, raw in _numbered(content)) if isinstance(content, bytes) else content
    for raw in lines:
        line = _members_of(raw)
        response, result = _members_of(line.get("response", b"")), _members_of(line.get("result", b""))
        status = integer(_value(response.get("status_code", b""))) or 200
        body = result.get("message", response.get("body", b""))
        if response and response.keys().isdisjoint(("body", "status_code")):  # the answer itself
            body = line["response"]
        failed = not body and line.get("error", b"null") != b"null"
        free = failed or status >= 400 or _text(result.get("type", b"")) in _UNDONE
        yield BatchResult(
            _text(line.get("custom_id", b"")), status, _text(response.get("request_id", b"")), body, free
        )


def _members_of(raw: bytes) -> dict[str, bytes]:
    """Return the members of a JSON object as raw JSON; none if it is no object."""
    try:
        return {name: bytes(value) for name, value in decoded(_members, raw).items()}
    except UNREADABLE:
        return {}


def _value(raw: bytes) -> object:
    try:
        return decoded(msgspec.json.decode, raw)
    except UNREADABLE:
        return None


def _text(raw: bytes) -> str:
    value = _value(raw)
    return value if isinstance(value, str) else ""
