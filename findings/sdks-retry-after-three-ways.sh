#!/bin/sh
# openai 3.57.0 and anthropic 2.14.0 for Python, openai 7.59.0 for Node: three readings of one `Retry-After: 3600`.
#
# Expected: clients of one generator, whose code of retries is the same text but for names, do the same at a 429 that says
#           when to come back.
# Seen:     openai for Python gives up at once, since an hour is more than it would wait: one request. openai for Node
#           does not believe an hour, and asks twice more within seconds: three requests. anthropic for Python sleeps
#           the hour, without a word. So what a server should send depends on whose client it is; `x-should-retry: false`
#           ends all three behind one request.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check openai==3.57.0 anthropic==2.14.0
cd "$place"
printf '{"private":true,"type":"module"}' > package.json
npm install --no-audit --no-fund --ignore-scripts --loglevel=error openai@7.59.0
cat > python_openai.py <<'PYTHON'
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="k")
client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
PYTHON
cat > python_anthropic.py <<'PYTHON'
import sys, anthropic
client = anthropic.Anthropic(base_url=sys.argv[1], api_key="k")
client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
PYTHON
cat > node_openai.mjs <<'NODE'
import { OpenAI } from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "k" });
await client.chat.completions.create({ model: "m", messages: [{ role: "user", content: "x" }] });
NODE
NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON'
import http.server
import subprocess
import sys
import threading

FIELDS, REQUESTS = {}, []
BEGIN_S, WATCHED_S = 120, 15


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        REQUESTS.append(self.path)
        body = b'{"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}'
        self.send_response(429)
        for name, value in (FIELDS | {"content-type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        BEGUN.set()

    def log_message(self, *words):
        pass


BEGUN = threading.Event()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def played(*command):
    """How many requests come until the client ends, and whether it does."""
    REQUESTS.clear()
    BEGUN.clear()
    url = f"http://127.0.0.1:{server.server_port}"
    client = subprocess.Popen([*command, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert BEGUN.wait(BEGIN_S)
    try:
        client.wait(WATCHED_S)
        return len(REQUESTS), "ends"
    except subprocess.TimeoutExpired:
        client.kill()
        client.wait()
        return len(REQUESTS), "sleeps"


clients = [(sys.executable, "python_openai.py"), ("node", "node_openai.mjs"), (sys.executable, "python_anthropic.py")]
FIELDS["retry-after"] = "3600"
seen = [played(*client) for client in clients]
print("an hour:", seen)
FIELDS["x-should-retry"] = "false"
final = [played(*client) for client in clients]
print("x-should-retry: false:", final)
assert seen == [(1, "ends"), (3, "ends"), (1, "sleeps")]
assert final == [(1, "ends")] * 3
PYTHON
