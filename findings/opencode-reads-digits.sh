#!/bin/sh
# opencode 1.18.33: a 402 is final, unless its text has the digits 500 anywhere.
#
# Expected: a refusal is judged by its status. 402 says that money is missing, so that the same request is refused again.
# Seen:     `credits: 600 of 600 are used` ends it at once. `credits: 500 of 500 are used` has it ask again, and again: it
#           looks for 429, 500, 502, 503, 504 and 524 in the sentence and in the whole body, amounts and ids of requests
#           too. So whoever has a limit of 500 sees an agent that hangs, and whoever has one of 600 sees why.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
printf '{"private":true}' > package.json
npm install --no-audit --no-fund --ignore-scripts --loglevel=error opencode-ai@1.18.33
node node_modules/opencode-ai/postinstall.mjs > /dev/null
NO_PROXY=127.0.0.1 OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_MODELS_FETCH=1 python3 - <<'PYTHON'
import http.server
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

WATCHED_S, BEGIN_S = 20, 90
amount, turns = 0, []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("tools"):  # a title has none
            turns.append(time.monotonic())
        error = {"message": f"credits: {amount} of {amount} are used", "type": "billing", "code": "spent"}
        body = json.dumps({"error": error}).encode()
        self.send_response(402)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {"baseURL": f"http://127.0.0.1:{server.server_port}/v1", "apiKey": "k"}
provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"m": {}}}


def played(number):
    """How many turns come while it is watched, and whether it ends by itself."""
    global amount
    amount, place = number, pathlib.Path(f"home-{number}").resolve()
    turns.clear()
    settings = place / ".config/opencode/opencode.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"provider": {"p": provider}}))
    words = [str(pathlib.Path("node_modules/.bin/opencode").resolve()), "run", "-m", "p/m", "Say pong"]
    environ = os.environ | {"HOME": str(place)}
    agent = subprocess.Popen(
        words, cwd=place, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )
    begun = time.monotonic()
    while agent.poll() is None and time.monotonic() < (turns[0] + WATCHED_S if turns else begun + BEGIN_S):
        time.sleep(0.1)
    ended = agent.poll() is not None
    if not ended:
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    return len(turns), ended


six, five = played(600), played(500)
print("600:", six, "500:", five)
assert six == (1, True)
assert five[0] > 1
PYTHON
