"""Whatever a body says, it is refused naming the field, or forwarded as the document it was read into.

What is refused of a body, `core/calls/test_call.py` and `test_document.py` have; one of each API is here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests import plain_http
from tests.stage import Stage

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
GEMINI = "/v1beta/models/demo-small:streamGenerateContent"


def chat(extra: bytes) -> bytes:
    """A chat body with more members in front."""
    return b'{%b"model":"demo-small","messages":[{"role":"user","content":"hi"}]}' % (extra and extra + b",")


REFUSED: tuple[tuple[str, bytes, str], ...] = (
    (CHAT, chat(b'"max_tokens":1,"max\\u005ftokens":9'), "max_tokens"),
    (CHAT, chat(b"") * 2, ""),
    ("/v1/responses", b'{"model":"demo-small","input":"x","background":true,"stream":true}', "background"),
    (MESSAGES, b'{"model":"demo-small","max_tokens":-1,"messages":[]}', "max_tokens"),
    (
        GEMINI, b'{"contents":[],"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9}}',
        "generationConfig.maxOutputTokens",
    ),
)  # fmt: skip
FORWARDED = (
    (CHAT, b' \r\n{ "m\\u006fdel" : "demo-small" , "messages" : [ ] }\n'),
    (CHAT, chat(b'"x":"' + b"word " * 2_000_000 + b'"')),
    (MESSAGES, '{"model":"demo-small","max_tokens":9,"messages":[],"x":"\\u0000 𝕏 \\u202e"}'.encode()),
)


def test_a_body_is_refused_by_its_field_or_forwarded_as_it_was_read(stage: Stage) -> None:
    tenant, key = stage.tenant(None)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def post(path: str, body: bytes, **more: str) -> Any:
        return plain_http.post(stage.gateway_url + path, content=body, headers=headers | more, timeout=60)

    refused = []
    for path, body, field in REFUSED:
        answer = post(path, body)
        assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (400, "invalid_request")
        assert field in answer.text
        refused.append(answer)
    refused.append(post(CHAT, chat(b""), **{"x-tollkeeper-metadata": "{"}))
    assert (refused[-1].status_code, refused[-1].json()["error"]["param"]) == (400, "x-tollkeeper-metadata")
    read = {}
    for path, body in FORWARDED:
        answer = post(path, body)
        assert answer.status_code == 200, answer.text
        as_read = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
        read[answer.headers["x-request-id"]] = hashlib.sha256(as_read).hexdigest()
    calls = plain_http.get(f"{stage.upstream_url}/demo/calls", timeout=60).json()["calls"]
    heard = {one["request_id"]: one["body_sha256"] for one in calls}
    assert {name: heard.get(name) for name in read} == read
    assert not {one.headers["x-request-id"] for one in refused} & heard.keys()
    charged = {row["request_id"] for row in stage.settled(tenant, 1 + len(FORWARDED))[1:]}
    assert charged == read.keys()
