"""Jobs: many calls that an upstream completes later, under one hold that lasts as long as the job may.

Pure. The id of a batch's line is derived from the id of its job. So a line is one request, however often it
is charged.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from typing import Any, Final, TypeVar

import msgspec

from gateway.core.accounts.steps import Substitution
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.weights import Weights
from gateway.core.calls.call import check_names
from gateway.core.metering.reading import UNREADABLE, decoded, integer
from gateway.core.model import Caller
from gateway.errors import InvalidRequest

T = TypeVar("T")
BATCH: Final = "batch"
VIDEO: Final = "video"
RESPONSE: Final = "response"
BATCH_PURPOSE: Final = "batch"
SERVICE_TIER: Final = "batch"
SECONDS: Final = "video_second"
# Limits of a batch.
LINES_MAX: Final = 50_000
LINE_ID_CHARACTERS_MAX: Final = 512
# Most seconds from the creation of a job to its end: providers allow a day, and report late.
JOB_S_MAX: Final = 48 * 3600
# The hold lasts longer, so that the last poll charges the job, and not a reclaim.
HOLD_S_MAX: Final = JOB_S_MAX + 3600
HOLD_MS_MAX: Final = 1000 * HOLD_S_MAX
# Seconds to search the upstream's list for a job that was sent and never confirmed, before giving up.
UNANSWERED_S_MAX: Final = 900.0
# Seconds until a job that was not found is polled again; after the last it is charged as held.
AGAIN_S: Final = (300, 3600)
# Most seconds that an upstream's clock may be behind.
EARLY_S_MAX: Final = 60
# The key in a batch's metadata that names its hold, if its API has metadata; most keys of a caller.
MARK: Final = "tollkeeper_hold"
METADATA_MAX: Final = 15
# Most pages of an account's batches that are searched for one batch.
PAGES_MAX: Final = 20
# Most bytes that are read of a result.
RESULT_BYTES_MAX: Final = 256 << 20

# States of a job: `opening` until its upstream has given it an id. Those in `ENDED` are final.
OPENING, RUNNING = "opening", "in_progress"
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
NO_COST: Final = -1
KINDS: Final = (BATCH, VIDEO, RESPONSE)
STATUSES: Final = (RUNNING, *sorted(ENDED))

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE
)
_NAME = re.compile(rb'content-disposition:[^\r\n]*?[;\s]name="?([A-Za-z_]+)"?', re.IGNORECASE)


# A date at the end of a model's name.
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


class Job(msgspec.Struct):
    """One job as it is stored, from before it is sent to its upstream until its row is written.

    `hold_id` is the request id of its hold. `held` and `cost` are in nano-units of `currency`; the other
    amounts are what its hold reserved of each account. `settled_ms` is 0 until it is settled. The charges of
    its lines are in the late queue between the entries `lines_after` and `lines_until`: the first is set
    before a line is charged, the second once all are. Then the job gets the status `ended`. A single call has
    one line, whose charge replaces the hold; `sent` is the model's name as its upstream got it. A call that
    makes several `videos` was held for their `seconds` in sum. `batches` is the path of a batch at its
    upstream. `misses` counts polls that did not find the job; before `next_look_ms` another miss does not
    count. Times are those of Redis. A `cost` that must not be charged is `NO_COST`. `output_max` (0: none) is
    the call's limit of output tokens, and `tiers` are the service tiers that it requested. `priced_ms` is the
    time of its prices by its gateway's clock, 0 for `created_ms`. Its call, or each of its lines, names the models
    `beside` too.
    """

    hold_id: str
    organization_id: int
    tenant_id: int
    key_id: int
    partition: int
    user: str
    service: str
    upstream: str
    endpoint: str
    model: str
    input_id: str
    lines: int
    created_ms: int
    expires_ms: int
    id: str = ""
    kind: str = BATCH
    status: str = OPENING
    held: int = 0
    tokens: int = 0
    credits: int = 0
    units: int = 0
    money: int = 0
    budget_tokens: int = msgspec.field(default=0, name="raw_tokens")
    currency: str = ""
    cost: int = 0
    settled_ms: int = 0
    accounts: tuple[str, ...] = ()
    columns: str = ""
    session: str = ""
    metadata: str = ""
    own: bool = False
    weights: tuple[tuple[int, ...], int, int] | None = None
    lines_after: str = ""
    lines_until: str = ""
    ended: str = ""
    sent: str = ""
    videos: int = 1
    seconds: int = 0
    batches: str = ""
    misses: int = 0
    next_look_ms: int = 0
    output_max: int = 0
    tiers: tuple[str, ...] = ()
    priced_ms: int = 0
    tags: Tags = ()
    groups: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()
    substitution: Substitution | None = None

    @property
    def is_charged(self) -> bool:
        """Whether the use of the job's calls is charged, or will be charged without further action."""
        return bool(self.lines_until or self.settled_ms)

    @property
    def caller(self) -> Caller:
        return Caller(self.organization_id, self.tenant_id, self.key_id, self.partition)

    @property
    def weighing(self) -> Weights | None:
        """The weight of each kind of token in the tenant's plan when the job began; None without weights."""
        return None if self.weights is None else Weights(*self.weights)


def round_robin(items: Iterable[T], owner_of: Callable[[T], object]) -> Iterator[T]:
    """Yield all items, one of each owner in turn; items of one owner keep their order."""
    waiting: dict[object, deque[T]] = {}
    for item in items:
        waiting.setdefault(owner_of(item), deque()).append(item)
    while waiting:
        for owner, queue in list(waiting.items()):
            yield queue.popleft()
            if not queue:
                del waiting[owner]


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Job).decode


def write_job(job: Job) -> bytes:
    return _encode(job)


def read_job(raw: bytes) -> Job | None:
    """Return the decoded job, or None if the bytes are no job."""
    try:
        return _decode(raw)
    except msgspec.MsgspecError:
        return None


def id_of(name: str, created_ms: int, *, of: str) -> str:
    """Return an id for the part `name` of request `of`: a UUID version 7 (RFC 9562) at `created_ms`.

    The same arguments always give the same id.
    """
    tail = sha256(f"{of}\n{name}".encode()).hexdigest()
    at = f"{created_ms & 0xFFFFFFFFFFFF:012x}"
    variant = f"{0x80 | int(tail[3:5], 16) & 0x3F:02x}"
    return f"{at[:8]}-{at[8:]}-7{tail[:3]}-{variant}{tail[5:7]}-{tail[7:19]}"


# The input of a batch: a file with one call a line.
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


def uploaded(content_type: bytes, body: bytes) -> bytes | None:
    """Return the file of an upload form with purpose `batch`; None for another purpose.

    Raise `InvalidRequest` for a form that is malformed or ambiguous.
    """
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        raise InvalidRequest("The content-type must be multipart/form-data.", param="content-type")
    delimiter = b"\r\n--" + (found[1] or found[2])
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

    return _checked(_numbered(content), read, endpoints, "file")


def inline_lines(calls: object, endpoint: str, field: str) -> Iterator[BatchLine]:
    """Yield the calls of a batch from a list in the body's `field`, checked like `batch_lines`."""

    def read(call: object) -> BatchLine:
        one = msgspec.convert(call, _InlineCall)
        return BatchLine(one.custom_id, "POST", endpoint, msgspec.Raw(msgspec.json.encode(one.params)))

    listed = calls if isinstance(calls, list) else []
    return _checked(enumerate(listed, 1), read, (endpoint,), field)


def calls_of(document: object, endpoint: str, field: str, model: str) -> Iterator[BatchLine]:
    """Yield the calls of a batch in a nested body `field` (dotted path); `InvalidRequest` if one is wrong.

    They are checked like lines of a batch file. Each uses `model`, the model in the request's path, and
    may name no other. Names may have both spellings of proto3 JSON, camelCase and snake_case.
    """

    def read(call: tuple[int, object]) -> BatchLine:
        request = msgspec.convert(call[1], _OperatedCall).request
        check_model(request)
        said = {"model": f"models/{model}"} | request
        return BatchLine(str(call[0]), "POST", endpoint, msgspec.Raw(msgspec.json.encode(said)))

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
    return _checked(((number, (number, call)) for number, call in listed), read, (endpoint,), field)


def _member(place: object, name: str) -> object:
    """Return the value of a field under either spelling (camelCase or snake_case); None if it is missing.

    Raise `InvalidRequest` if both are present.
    """
    there = place if isinstance(place, dict) else {}
    found = [each for each in there if str(each).replace("_", "").lower() == name.lower()]
    if len(found) > 1:
        raise InvalidRequest(f"The field {name} appears twice.", param=name)
    return there[found[0]] if found else None


def _checked(
    found: Iterable[tuple[int, T]], read: Callable[[T], BatchLine], endpoints: Collection[str], field: str
) -> Iterator[BatchLine]:
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


# The result of a batch.
class BatchResult(msgspec.Struct):
    """One line of a batch's result: its id, status and answer's body. A `free` line failed, at no cost."""

    custom_id: str
    status: int
    request_id: str
    body: bytes
    free: bool


class BatchState(msgspec.Struct):
    """The state of a batch or video as its upstream reports it: a status, or counts of calls."""

    id: str = ""
    status: str = ""
    processing_status: str = ""
    input_file_id: str = ""
    output_file_id: str | None = None
    created_at: int | datetime = 0
    request_counts: dict[str, int] | None = None
    metadata: dict[str, Any] | None = None
    lines: list[bytes] = []
    model: str = ""
    seconds: str | int | None = None

    @property
    def made_s(self) -> float:
        """The time at which the upstream created this batch or video, in Unix seconds."""
        return self.created_at if isinstance(self.created_at, int) else self.created_at.timestamp()

    def is_marked(self, job: Job) -> bool:
        """Return whether the metadata of this batch names the hold of `job`, as the gateway sends it."""
        return (self.metadata or {}).get(MARK) == job.hold_id

    @property
    def ended_as(self) -> str:
        """The final status to store for a batch or video; empty while it is running."""
        if not self.processing_status:
            return self.status if self.status in ENDED else ""
        counts = self.request_counts or {}
        if self.processing_status != "ended":
            return ""
        if counts.get("canceled"):
            return "cancelled"
        return "expired" if counts.get("expired") else "completed"

    @property
    def answered(self) -> int:
        counts = self.request_counts or {}
        return counts.get("completed", 0) + counts.get("succeeded", 0)

    def may_be_of(self, job: Job) -> bool:
        """Return whether this batch or video may belong to `job`, whose upstream never confirmed it.

        Compared are the time of creation, and the model and length of a video, or the file or number
        of calls of a batch.
        """
        if not -EARLY_S_MAX <= self.made_s - job.created_ms / 1000 <= UNANSWERED_S_MAX:
            return False
        if job.kind == VIDEO:
            asked = job.sent or job.model
            is_model = self.model == asked or _DATED.sub("", self.model) == asked
            return is_model and (self.seconds is None or str(self.seconds) == str(job.seconds))
        if job.input_id:
            return self.input_file_id == job.input_id
        return sum((self.request_counts or {}).values()) == job.lines


class _Inlined(msgspec.Struct, rename="camel"):
    inlined_responses: list[msgspec.Raw] = []


class _Output(msgspec.Struct, rename="camel"):
    responses_file: str = ""
    inlined_responses: _Inlined = msgspec.field(default_factory=_Inlined)
    inlined_embed_content_responses: _Inlined = msgspec.field(default_factory=_Inlined)


class _Counts(msgspec.Struct, rename="camel"):
    request_count: int = 0
    successful_request_count: int = 0


class _Operated(msgspec.Struct, rename="camel"):
    state: str = ""
    create_time: datetime | None = None
    batch_stats: _Counts = msgspec.field(default_factory=_Counts)
    output: _Output | None = None


class _Operation(msgspec.Struct):
    name: str = ""
    done: bool = False
    error: msgspec.Raw = msgspec.Raw(b"null")
    metadata: _Operated = msgspec.field(default_factory=_Operated)
    response: _Output | None = None


class _Operations(msgspec.Struct, rename="camel"):
    operations: list[_Operation] = []
    next_page_token: str = ""


# Wanted fields of a list of operations: by default it includes all calls and results.
OPERATIONS: Final = "fields=nextPageToken,operations(name,done,error,metadata)"


def read_operation(said: bytes) -> BatchState:
    """Return the state of a batch from Google's JSON of a long-running operation, with results if any."""
    return _batch_of(_operation(said))


def read_operations(said: bytes) -> BatchList:
    """Return a page of batches from a list of long-running operations."""
    page = _operations(said)
    listed = [_batch_of(one) for one in page.operations]
    return BatchList(listed, bool(page.next_page_token), page.next_page_token)


def _batch_of(one: _Operation) -> BatchState:
    found, output = one.metadata, one.response or one.metadata.output or _Output()
    ended = found.state.rpartition("STATE_")[2].lower()
    if ended not in ENDED:
        ended = "completed" if bytes(one.error) == b"null" else "failed"
    done, total = found.batch_stats.successful_request_count, found.batch_stats.request_count
    state = BatchState(one.name, ended if one.done else RUNNING, output_file_id=output.responses_file or None)
    state.created_at = found.create_time or 0
    state.request_counts = {"succeeded": done, "others": total - done}
    inlined = (output.inlined_responses, output.inlined_embed_content_responses)
    state.lines = [bytes(line) for each in inlined for line in each.inlined_responses]
    return state


class CallState(msgspec.Struct):
    """The state of a background call as its upstream reports it: a status, or whether it is done."""

    status: str = ""
    done: bool = False
    error: msgspec.Raw = msgspec.Raw(b"null")
    id: str = ""
    name: str = ""

    @property
    def ended_as(self) -> str:
        """The final status to store for a background call; empty while it is running."""
        if self.done:
            return "completed" if bytes(self.error) == b"null" else "failed"
        return "completed" if self.status == "incomplete" else self.status if self.status in ENDED else ""


class BatchList(msgspec.Struct):
    """A page of an account's batches, newest first."""

    data: list[BatchState] = []
    has_more: bool = False
    token: str = ""


_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Types of result lines that the upstream did not complete.
_UNDONE: Final = frozenset({"errored", "canceled", "expired"})
read_state = msgspec.json.Decoder(BatchState).decode
read_call_state = msgspec.json.Decoder(CallState).decode
read_list = msgspec.json.Decoder(BatchList).decode
# In JSON of proto3 counts are strings.
_operation = msgspec.json.Decoder(_Operation, strict=False).decode
_operations = msgspec.json.Decoder(_Operations, strict=False).decode


def results(content: bytes | Sequence[bytes]) -> Iterator[BatchResult]:
    """Yield the parsed lines of a batch's result."""
    for _, raw in _numbered(content) if isinstance(content, bytes) else enumerate(content):
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
    found = _value(raw)
    return found if isinstance(found, str) else ""
