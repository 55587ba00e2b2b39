"""Files, batches, videos and background responses of the demo upstream, stored in memory, for tests.

The `metadata` of a batch (with Anthropic, of its first call) may set its outcome: `demo_status` is the final
status (`completed`, `failed`, `expired`), `demo_after_s` the seconds until then, `demo_lines` the number of
lines with results (of a cancelled batch: half). A video's prompt may contain the first two as `NAME=VALUE`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

# Maximum of each kind; the oldest are deleted.
KEPT_MAX: Final = 1_000
_PATH = re.compile(
    r"/v1/(files|batches|messages/batches|responses|videos)(?:/([^/]+))?(?:/(content|cancel|results|remix))?"
)
_NAME = re.compile(rb'name="?([a-z_]+)"?', re.IGNORECASE)

_LONG_RUNNING = re.compile(r"/v1beta/models/([^/:]+)(?::predictLongRunning|/operations/([^/]+))")
_OPERATIONS = re.compile(
    r"/v1beta/(?:models/([^/:]+):(?:batchGenerateContent|asyncBatchEmbedContent)|batches(?:/([^/:]+)(?::(cancel))?)?)"
)
_WISH = re.compile(r"(demo_\w+)=(\S+)")

_MESSAGES = "https://api.anthropic.com/v1/messages/batches"

# Answers one call of a batch: takes path and body, returns status and answer.
Work = Callable[[str, bytes], tuple[int, Any]]
# The status and content of an answer: JSON, or the bytes of a file.
Told = tuple[int, Any]


@dataclass(slots=True)
class _DemoBatch:
    """A batch or video: its object as shown, its calls, and the time and status of its end."""

    document: dict[str, Any]
    lines: list[dict[str, Any]]
    ends_at: float
    end: str


@dataclass(slots=True)
class Batches:
    """The stored objects of one demo upstream."""

    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, _DemoBatch] = field(default_factory=dict)
    videos: dict[str, _DemoBatch] = field(default_factory=dict)

    def answer(  # a request, and who answers its calls
        self, method: str, path: str, query: dict[str, list[str]], content: bytes, work: Work
    ) -> Told | None:
        """Return the answer to a request for a file, batch or video, or None for another path.

        `work` answers one call of a batch.
        """
        long_running = _LONG_RUNNING.fullmatch(path)
        if long_running is not None:
            return self._operation(long_running[1], long_running[2], content)
        operation = _OPERATIONS.fullmatch(path)
        if operation is not None:
            model, id_, cancel = operation.groups()
            return self._batch_operation(method, model, id_, cancel, query, content, work)
        place = _PATH.fullmatch(path)
        if place is None:
            return None
        kind, id_, more = place.groups()
        if kind == "responses":
            return self._response(method, id_ or "", more, content, work)
        if kind == "videos":
            return self._video(method, id_ or "", more, query, content)
        if kind == "messages/batches":
            return self._messages(method, id_ or "", more, query, content, work)
        if method == "POST" and not id_:
            return self._store(content) if kind == "files" else self._create(json.loads(content))
        if kind == "files" and id_:
            return self._file(method, id_, more)
        if not id_:
            there = [{"id": file, "object": "file"} for file in self.files]
            if kind == "batches":
                there = [self._now(batch, work) for batch in self.batches.values()]
            return 200, {"object": "list"} | _page(there, query, "after")
        batch = self.batches.get(id_)
        if batch is None:
            return _missing()
        return 200, self._now(batch, work, more)

    def _messages(  # noqa: PLR0917  # as `answer`
        self, method: str, id_: str, more: str | None, query: dict[str, list[str]], content: bytes, work: Work
    ) -> Told:
        """Return the answer to a request about batches of Anthropic's API."""
        if method == "POST" and not id_:
            calls = json.loads(content)["requests"]
            lines = [{**call, "url": "/v1/messages", "body": call["params"]} for call in calls]
            return 200, _render_messages(self._make_batch(lines, calls[0]["params"].get("metadata") or {}))
        if not id_:
            there = [_render_messages(self._now(batch, work)) for batch in self.batches.values()]
            return 200, _page(there, query, "after_id")
        batch = self.batches.get(id_)
        if batch is None:
            return _missing()
        document = self._now(batch, work, more)
        if method == "DELETE":
            del self.batches[id_]
            return 200, {"id": id_, "type": "message_batch_deleted"}
        if more != "results":
            return 200, _render_messages(document)
        if document["status"] == "in_progress":
            return _missing()
        done = map(json.loads, self.files.get(document["output_file_id"] or "", b"").splitlines())
        results = [
            (answer["custom_id"], {"type": "succeeded", "message": answer["response"]["body"]})
            for answer in done
        ]
        left = "canceled" if document["status"] == "cancelled" else "expired"
        results += [(line["custom_id"], {"type": left}) for line in batch.lines[len(results) :]]
        texts = [json.dumps({"custom_id": custom_id, "result": result}) for custom_id, result in results]
        return 200, "\n".join(texts).encode()

    def _response(self, method: str, id_: str, more: str | None, content: bytes, work: Work) -> Told | None:
        """Return the answer to a request for a background response, or None if the request is no such.

        The response is stored as a batch of one call, which `work` answers. `more` is the rest of the path.
        """
        if method == "POST" and not id_:
            try:
                asked = json.loads(content)
            except ValueError:
                return None
            if not asked.get("background"):
                return None
            line = {"custom_id": "", "url": "/v1/responses", "body": asked | {"background": False}}
            return 200, _render_response(self._make_batch([line], asked.get("metadata") or {}))
        batch = self.batches.get(f"batch_{id_.removeprefix('resp_')}")
        if batch is None:
            return None
        if method == "DELETE":
            del self.batches[batch.document["id"]]
            return 200, {"id": id_, "object": "response", "deleted": True}
        document = self._now(batch, work, more)
        done = self.files.get(document["output_file_id"] or "")
        return 200, (json.loads(done)["response"]["body"] if done else {}) | _render_response(document)

    def _video(
        self, method: str, id_: str, more: str | None, query: dict[str, list[str]], content: bytes
    ) -> Told:
        """Return the answer to a request about videos of OpenAI's API.

        The content of a finished video is its prompt as text.
        """
        video = self.videos.get(id_)
        if id_ and video is None:
            return _missing()
        if video is not None and time.time() >= video.ends_at and video.document["status"] == "queued":
            video.document["status"] = video.end
        if method == "POST":
            fields = _fields(content) if content.startswith(b"--") else {}
            sent = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
            before = {"model": "sora-2", "seconds": "4"} if video is None else video.document
            return 200, self._begin({**before, **(sent or json.loads(content))})
        if video is None:
            return 200, {"object": "list"} | _page(
                [video.document for video in self.videos.values()], query, "after"
            )
        if method == "DELETE":
            del self.videos[id_]
            return 200, {"id": id_, "object": "video.deleted", "deleted": True}
        if more != "content":
            return 200, video.document
        return (
            (200, video.document["prompt"].encode())
            if video.document["status"] == "completed"
            else _missing()
        )

    def _batch_operation(  # noqa: PLR0917  # as `answer`
        self, method: str, model: str | None, id_: str | None, more: str | None,
        query: dict[str, list[str]], content: bytes, work: Work,
    ) -> Told:  # fmt: skip
        """Return the answer to a request for batches of Gemini's API; `work` answers one call of a batch.

        The batch's `displayName` can set its outcome. `more` is the rest of the path, such as `:cancel`.
        """
        if model is not None:
            batch = json.loads(content)["batch"]
            calls = batch["inputConfig"]["requests"]["requests"]
            url = f"/v1beta/models/{model}:generateContent"
            lines = [{"custom_id": "", "url": url, "body": call["request"]} for call in calls]
            return 200, self._render_operation(
                self._make_batch(lines, dict(_WISH.findall(batch.get("displayName", ""))))
            )
        if id_ is None:
            size = int(query.get("pageSize", ["20"])[0])
            there = [self._now(batch, work) for batch in [*self.batches.values()][::-1][:size]]
            return 200, {"operations": [self._render_operation(document) for document in there]}
        known = self.batches.get(f"batch_{id_}")
        if known is None:
            return _missing()
        operation = self._render_operation(self._now(known, work, more))
        if method == "DELETE":
            del self.batches[f"batch_{id_}"]
            return 200, {}
        return 200, operation

    def _render_operation(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a batch in the format of Gemini's API."""
        total, done, over = *map(document["request_counts"].get, ("total", "completed")), document["status"]
        state = {"in_progress": "RUNNING", "completed": "SUCCEEDED"}.get(over, over.upper())
        stats = {"requestCount": str(total), "successfulRequestCount": str(done)}
        created = datetime.fromtimestamp(document["created_at"], UTC).isoformat()
        metadata = {"state": f"BATCH_STATE_{state}", "batchStats": stats, "createTime": created}
        operation = {"name": f"batches/{document['id'].removeprefix('batch_')}", "metadata": metadata}
        if over == "in_progress":
            return operation
        written = self.files.get(document["output_file_id"] or "", b"").splitlines()
        inlined = [{"response": json.loads(line)["response"]["body"]} for line in written]
        inlined += [{"error": {"code": 13, "message": over}}] * (total - done)
        return operation | {"done": True, "response": {"inlinedResponses": {"inlinedResponses": inlined}}}

    def _operation(self, model: str, id_: str | None, content: bytes) -> Told:
        """Return the answer to a request about videos of Gemini's API."""
        if id_ is None:
            asked = json.loads(content)
            wish = {"prompt": asked["instances"][0]["prompt"], "seconds": 8, "model": model}
            video = self._begin(wish | asked.get("parameters", {}))
            return 200, {"name": f"models/{model}/operations/{video['id']}"}
        status, video = self._video("GET", id_, None, {}, b"")
        operation = {"name": f"models/{model}/operations/{id_}", "done": video.get("status") != "queued"}
        if video.get("status") == "failed":
            operation["error"] = {"code": 13, "message": "failed"}
        elif operation["done"]:
            operation["response"] = {
                "generateVideoResponse": {"generatedSamples": [{}] * video.get("sampleCount", 1)}
            }
        return status, operation

    def _begin(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Store a new video, whose prompt can set its outcome."""
        wishes, now = dict(_WISH.findall(asked["prompt"])), time.time()
        video = {"size": "720x1280", **asked} | {
            "id": f"video_{uuid4().hex}", "object": "video", "status": "queued", "progress": 0, "error": None,
            "created_at": int(now), "seconds": str(asked["seconds"]),
        }  # fmt: skip
        ends_at = now + float(wishes.get("demo_after_s", 0))
        self.videos[video["id"]] = _DemoBatch(video, [], ends_at, wishes.get("demo_status", "completed"))
        while len(self.videos) > KEPT_MAX:
            del self.videos[next(iter(self.videos))]
        return video

    def _store(self, form: bytes) -> Told:
        fields = _fields(form)
        return 200, self._store_file(fields.get(b"file", b""), fields.get(b"purpose", b"").decode())

    def _store_file(self, content: bytes, purpose: str) -> dict[str, Any]:
        id_ = f"file-{uuid4().hex}"
        self.files[id_] = content
        while len(self.files) > KEPT_MAX:
            del self.files[next(iter(self.files))]
        return {"id": id_, "object": "file", "bytes": len(content), "purpose": purpose, "status": "processed"}

    def _file(self, method: str, id_: str, more: str | None) -> Told:
        content = self.files.get(id_)
        if content is None:
            return _missing()
        if method == "DELETE":
            del self.files[id_]
            return 200, {"id": id_, "object": "file", "deleted": True}
        return 200, content if more == "content" else {"id": id_, "object": "file", "bytes": len(content)}

    def _create(self, asked: dict[str, Any]) -> Told:
        content = self.files.get(asked["input_file_id"])
        if content is None:
            return 400, {"error": {"message": "no such file", "type": "invalid_request_error"}}
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        more = {
            "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "completion_window": asked.get("completion_window", "24h"), "error_file_id": None,
        }  # fmt: skip
        return 200, self._make_batch(lines, asked.get("metadata") or {}, **more)

    def _make_batch(self, lines: list[dict[str, Any]], wishes: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Store a new batch of these lines; `wishes` can set its outcome."""
        now = time.time()
        batch = more | {
            "id": f"batch_{uuid4().hex}", "object": "batch", "status": "in_progress", "created_at": int(now),
            "expires_at": int(now) + 86_400, "output_file_id": None,
            "metadata": wishes, "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        ends_at = now + float(wishes.get("demo_after_s", 0))
        self.batches[batch["id"]] = _DemoBatch(batch, lines, ends_at, wishes.get("demo_status", "completed"))
        while len(self.batches) > KEPT_MAX:
            del self.batches[next(iter(self.batches))]
        return batch

    def _now(self, batch: _DemoBatch, work: Work, more: str | None = None) -> dict[str, Any]:
        if more == "cancel" and batch.document["status"] == "in_progress":
            self._finish(batch, work, "cancelled", len(batch.lines) // 2)
        if batch.document["status"] == "in_progress" and time.time() >= batch.ends_at:
            wished = int(batch.document["metadata"].get("demo_lines", len(batch.lines)))
            self._finish(batch, work, batch.end, 0 if batch.end == "failed" else wished)
        return batch.document

    def _finish(self, batch: _DemoBatch, work: Work, status: str, done: int) -> None:
        """End a batch with the answers to its first `done` lines."""
        written = []
        for line in batch.lines[:done]:
            code, body = work(line["url"], json.dumps(line["body"]).encode())
            response = {"status_code": code, "request_id": f"req_{uuid4().hex}", "body": body}
            answer = {"id": f"batch_req_{uuid4().hex}", "custom_id": line["custom_id"], "response": response}
            written.append(json.dumps({**answer, "error": None}))
        batch.document["status"] = status
        batch.document["request_counts"]["completed"] = done
        if written:
            kept = self._store_file("\n".join(written).encode(), "batch_output")
            batch.document["output_file_id"] = kept["id"]


def _fields(form: bytes) -> dict[bytes, bytes]:
    """Return the values of a multipart form by field name."""
    fields: dict[bytes, bytes] = {}
    for part in form.split(form.partition(b"\r\n")[0])[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is not None:
            fields[name[1]] = body.removesuffix(b"\r\n")
    return fields


def _page(there: list[dict[str, Any]], query: dict[str, list[str]], after: str) -> dict[str, Any]:
    """Return one page of the list `there`, with the newest object first.

    `after` is the name of the query parameter with the id of the last object before the page.
    """
    newest, limit = there[::-1], int(query.get("limit", ["20"])[0])
    begins = next((at + 1 for at, item in enumerate(newest) if [item["id"]] == query.get(after)), 0)
    data = newest[begins : begins + limit]
    return {"data": data, "has_more": begins + limit < len(newest)}


def _render_response(document: dict[str, Any]) -> dict[str, Any]:
    id_ = document["id"].replace("batch_", "resp_")
    return {"id": id_, "object": "response", "status": document["status"], "background": True}


def _render_messages(document: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in the format of Anthropic's API."""
    total, done, over = *map(document["request_counts"].get, ("total", "completed")), document["status"]
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    counts["succeeded"] = done
    counts[{"in_progress": "processing", "cancelled": "canceled"}.get(over, "expired")] = total - done
    return {
        "id": document["id"], "type": "message_batch", "request_counts": counts,
        "processing_status": over if over == "in_progress" else "ended",
        "created_at": datetime.fromtimestamp(document["created_at"], UTC).isoformat(),
        "expires_at": datetime.fromtimestamp(document["expires_at"], UTC).isoformat(), "ended_at": None,
        "archived_at": None, "cancel_initiated_at": None,
        "results_url": None if over == "in_progress" else f"{_MESSAGES}/{document['id']}/results",
    }  # fmt: skip


def _missing() -> Told:
    return 404, {"error": {"message": "no such object", "type": "invalid_request_error"}}
