#!/bin/sh
# LiteLLM 1.108.7: a streamed completion of two prompts has one choice for its reader.
#
# Expected: text_completion(prompt=["x", "y"], stream=True) hands on the index of each piece, as the server wrote it and
#           as OpenAI documents it: 0 for the first prompt, 1 for the second.
# Seen:     every piece has index 0, those of both prompts mixed, and the two ends are one, behind all the text. So nobody can
#           separate the two texts, and a reader has one. Without `stream` both choices come, 0 and 1.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check litellm==1.108.7
LITELLM_LOCAL_MODEL_COST_MAP=True NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON'
import http.server
import json
import threading

import litellm

PIECES = [(0, "a0 ", None), (1, "b0 ", None), (0, "a1", None), (1, "b1", None), (0, "", "stop"), (1, "", "length")]
TEXTS = [(0, "a0 a1", "stop"), (1, "b0 b1", "length")]


def answer(choices):
    made = [
        {"index": index, "text": text, "finish_reason": end, "logprobs": None} for index, text, end in choices
    ]
    said = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": made}
    return json.dumps(said)


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        streamed = json.loads(self.rfile.read(int(self.headers["content-length"]))).get("stream")
        events = "".join(f"data: {answer([piece])}\n\n" for piece in PIECES) + "data: [DONE]\n\n"
        body = (events if streamed else answer(TEXTS)).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if streamed else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
call = {
    "model": "text-completion-openai/m", "prompt": ["x", "y"], "max_tokens": 2, "api_key": "none",
    "api_base": f"http://127.0.0.1:{server.server_port}/v1",
}
whole = [(one.index, one.text) for one in litellm.text_completion(**call).choices]
stream = [
    (one.index, one.text, one.finish_reason)
    for chunk in litellm.text_completion(**call, stream=True)
    for one in chunk.choices
]
print("whole", whole, "streamed", stream)
assert whole == [(0, "a0 a1"), (1, "b0 b1")]
assert {index for index, _, _ in stream} == {0}
assert [text for _, text, _ in stream if text] == ["a0 ", "b0 ", "a1", "b1"]
assert len([end for _, _, end in stream if end]) == 1
PYTHON
