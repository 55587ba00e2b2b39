#!/bin/sh
# LiteLLM 1.110.2: `num_retries` repeats what is refused for good, a wrong key too.
#
# Expected: retries are for what may pass. 401, 402 and 403 are refused again, and the answer says `x-should-retry: false`,
#           by which the SDK of OpenAI beneath sends each once.
# Seen:     completion(num_retries=3) sends each of them four times. Without `num_retries` each is sent once. So whoever sets it
#           against overload has a revoked key sent four times as often.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check litellm==1.110.2 tenacity==9.1.2
LITELLM_LOCAL_MODEL_COST_MAP=True NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON' 2>/dev/null
import http.server
import threading

import litellm

litellm.suppress_debug_info = True
requests, status = [], 401


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        requests.append(self.path)
        body = b'{"error": {"message": "This is refused for good.", "type": "refused", "code": "refused"}}'
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("x-should-retry", "false")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
call = {
    "model": "openai/m", "api_base": f"http://127.0.0.1:{server.server_port}/v1", "api_key": "k",
    "messages": [{"role": "user", "content": "x"}],
}


def sent(**more):
    requests.clear()
    try:
        litellm.completion(**call, **more)
    except Exception as error:
        return len(requests), type(error).__name__
    return len(requests), "answered"


seen = {}
for status in (401, 402, 403):
    seen[status] = (sent()[0], sent(num_retries=3)[0])
print(seen)
assert seen == dict.fromkeys((401, 402, 403), (1, 4))
PYTHON
