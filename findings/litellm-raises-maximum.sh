#!/bin/sh
# LiteLLM 1.108.7: a maximum of 4 tokens is sent as 16 by two of its three APIs.
#
# Expected: the maximum that a caller states is the one that the server gets, or an error says that it is too low.
# Seen:     for the same `openai/` model, completion(max_tokens=4) sends 4; responses(max_output_tokens=4) and
#           anthropic.messages(max_tokens=4) send 16 without a word: up to 12 tokens more than a budget was asked for.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check litellm==1.108.7
LITELLM_LOCAL_MODEL_COST_MAP=True NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import json
import threading

import litellm

SENT = {}
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
TEXT = {"type": "output_text", "text": "ok", "annotations": []}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [TEXT]}
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": [MESSAGE],
    "usage": USAGE, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None,
}
CHAT = {
    "id": "c-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        stated = [body[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in body]
        SENT[asking] = (self.path, stated)
        answer = json.dumps(RESPONSE if self.path.endswith("/responses") else CHAT).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
to = {"model": "openai/m", "api_key": "none", "api_base": f"http://127.0.0.1:{server.server_port}/v1"}
hello = [{"role": "user", "content": "Hello"}]
asking = "completion"
litellm.completion(**to, messages=hello, max_tokens=4)
asking = "responses"
litellm.responses(**to, input="Hello", max_output_tokens=4)
asking = "messages"
asyncio.run(litellm.anthropic.messages.acreate(**to, messages=hello, max_tokens=4))
for name, (path, stated) in SENT.items():
    print(f"{name}: POST {path} with a maximum of {stated}")
assert SENT["completion"][1] == [4], SENT
assert SENT["responses"][1] == [16], SENT
assert SENT["messages"][1] == [16], SENT
PYTHON
