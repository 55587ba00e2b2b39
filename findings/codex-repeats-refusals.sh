#!/bin/sh
# Codex 0.171.0: a refusal that is final is sent six times, and a 402 with Retry-After is slept for.
#
# Expected: 401, 402 and 403 are about the request: the same one is refused again. OpenAI's own SDKs send it once.
# Seen:     `codex exec` shows "Reconnecting... 1/5" to "5/5" and the sentence at last: six requests for each of the three. With
#           `Retry-After: 3600` on the 402 it sends one, says "Reconnecting... 1/5", and sleeps. Only 400, and a 429 whose
#           code is insufficient_quota, end it at once; the sentence of the latter is not shown.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
printf '{"private":true}' > package.json
npm install --no-audit --no-fund --ignore-scripts --loglevel=error @openai/codex@0.171.0
NO_PROXY=127.0.0.1 python3 - <<'PYTHON'
import http.server
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

WATCHED_S, BEGIN_S = 30, 60
refusal, turns = (401, {}), []
SENTENCE = "This is refused for good."


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        turns.append(time.monotonic())
        code = "insufficient_quota" if refusal[0] == 429 else "refused"
        body = json.dumps({"error": {"message": SENTENCE, "type": code, "code": code}}).encode()
        self.send_response(refusal[0])
        for name, value in (refusal[1] | {"content-type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
home = pathlib.Path("home").resolve()
(home / ".codex").mkdir(parents=True)
(home / ".codex/config.toml").write_text(
    'model = "m"\nmodel_provider = "p"\n[model_providers.p]\nname = "p"\n'
    f'base_url = "http://127.0.0.1:{server.server_port}/v1"\nenv_key = "KEY"\nwire_api = "responses"\n'
)


def played(status, **fields):
    """How many requests come while it is watched, whether it ends, and whether it shows the sentence."""
    global refusal
    refusal = (status, {name.replace("_", "-"): value for name, value in fields.items()})
    turns.clear()
    words = [str(pathlib.Path("node_modules/.bin/codex").resolve()), "exec", "--skip-git-repo-check", "Say pong"]
    with open("said", "w+b") as said:
        agent = subprocess.Popen(
            words, cwd=home, env=os.environ | {"HOME": str(home), "KEY": "k"}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=said, start_new_session=True,
        )
        begun = time.monotonic()
        while agent.poll() is None and time.monotonic() < (turns[0] + WATCHED_S if turns else begun + BEGIN_S):
            time.sleep(0.1)
        ended = agent.poll() is not None
        if not ended:
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
        said.seek(0)
        return len(turns), ended, SENTENCE.encode() in said.read()


seen = {status: played(status) for status in (401, 402, 403)}
sleeps, spent, wrong = played(402, retry_after="3600"), played(429), played(400)
print(seen, "402, an hour:", sleeps, "429 insufficient_quota:", spent, "400:", wrong)
assert set(seen.values()) == {(6, True, True)}
assert sleeps == (1, False, False)
assert spent == (1, True, False)
assert wrong == (1, True, True)
PYTHON
