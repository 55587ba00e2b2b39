"""States of batches, videos and background calls as their upstream reports them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.core.accounts.upstream_jobs import (
    EARLY_S_MAX,
    ENDED,
    MARK,
    RUNNING,
    UNANSWERED_S_MAX,
    VIDEO,
    Job,
)

# A date at the end of a model's name.
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


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


def read_operation(raw: bytes) -> BatchState:
    """Return the state of a batch from Google's JSON of a long-running operation, with results if any."""
    return _batch_of(_operation(raw))


def read_operations(raw: bytes) -> BatchList:
    """Return a page of batches from a list of long-running operations."""
    page = _operations(raw)
    listed = [_batch_of(operation) for operation in page.operations]
    return BatchList(listed, bool(page.next_page_token), page.next_page_token)


def _batch_of(operation: _Operation) -> BatchState:
    """Return the state of a batch of Gemini's API."""
    found, output = operation.metadata, operation.response or operation.metadata.output or _Output()
    ended = found.state.rpartition("STATE_")[2].lower()
    if ended not in ENDED:
        ended = "completed" if bytes(operation.error) == b"null" else "failed"
    done, total = found.batch_stats.successful_request_count, found.batch_stats.request_count
    state = BatchState(
        operation.name, ended if operation.done else RUNNING, output_file_id=output.responses_file or None
    )
    state.created_at = found.create_time or 0
    state.request_counts = {"succeeded": done, "others": total - done}
    inlined = (output.inlined_responses, output.inlined_embed_content_responses)
    state.lines = [bytes(line) for lines in inlined for line in lines.inlined_responses]
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
        if self.status == "incomplete":
            return "completed"
        return self.status if self.status in ENDED else ""


class BatchList(msgspec.Struct):
    """A page of an account's batches, newest first."""

    data: list[BatchState] = []
    has_more: bool = False
    token: str = ""


read_state = msgspec.json.Decoder(BatchState).decode
read_call_state = msgspec.json.Decoder(CallState).decode
read_list = msgspec.json.Decoder(BatchList).decode
# In JSON of proto3 counts are strings.
_operation = msgspec.json.Decoder(_Operation, strict=False).decode
_operations = msgspec.json.Decoder(_Operations, strict=False).decode
