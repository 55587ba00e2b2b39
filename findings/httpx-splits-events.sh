#!/bin/sh
# httpx 0.28.1 and requests 2.34.2: iter_lines cuts one line of a server-sent event in two.
#
# Expected: a line of text/event-stream ends at CR, LF or both, as its specification has it. JSON may have U+2028 as it
#           is within a string, and models write it.
# Seen:     Response.iter_lines() of httpx gives `data: {"text": "line` and `two"}`: it splits as str.splitlines does.
#           requests does so with decode_unicode=True, and gives one line without. httpx-sse 0.4.3, made for this,
#           gives the whole event. So a reader of events by iter_lines fails on a valid answer now and then.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check httpx==0.28.1 httpx-sse==0.4.3 requests==2.34.2
NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON'
import http.server
import json
import threading

import httpx
import httpx_sse
import requests

WHOLE = 'data: {"text": "line\u2028two"}'
BODY = f"{WHOLE}\n\n".encode()


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
with httpx.Client() as client:
    with client.stream("GET", url) as answer:
        by_httpx = [line for line in answer.iter_lines() if line]
    with httpx_sse.connect_sse(client, "GET", url) as source:
        [event] = source.iter_sse()
as_bytes = [line for line in requests.get(url, stream=True, timeout=9).iter_lines() if line]
as_text = [x for x in requests.get(url, stream=True, timeout=9).iter_lines(decode_unicode=True) if x]
print("httpx", by_httpx, "requests", as_bytes, as_text, "httpx-sse", [event.data])
halves = ['data: {"text": "line', 'two"}']
assert by_httpx == halves
assert as_text == halves
assert as_bytes == [WHOLE.encode()]
assert json.loads(event.data) == {"text": "line\u2028two"}
PYTHON
