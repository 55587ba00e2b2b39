"""TCP ports of this machine: finding and reserving them, and checking for a listener.

A supervisor holds the ports of its workers, so that clients who connect while a worker is dead wait a moment
instead of being refused. Each worker has a socket of its own at the port (SO_REUSEPORT): the kernel divides
clients evenly.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self

from gateway.errors import StartError

# The environment variable with the descriptors of a worker's sockets, and after a slash those of the others.
VARIABLE = "LISTENING_DESCRIPTORS"
# The first descriptor from a service manager: sd_listen_fds(3).
FIRST_HANDED_OVER = 3
# Errors of an address that this machine does not have.
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class ReservedPort:
    """A port whose sockets this process holds, but at which only its workers accept.

    It listens from the first worker's start until `close`.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = sockets
        self.number: int = sockets[0].getsockname()[1]

    def given(self, worker: int, workers: int) -> tuple[tuple[int, ...], dict[str, str]]:
        """Return the descriptors to pass to the worker of index `worker`, and an environment variable.

        The variable says which descriptors are the worker's own. If there are fewer sockets than `workers`,
        they share sockets.
        """
        every = [descriptor.fileno() for descriptor in self.sockets]
        own = [descriptor for at, descriptor in enumerate(every) if at % workers == worker] or [
            every[worker % len(every)]
        ]
        parts = own, [descriptor for descriptor in every if descriptor not in own]
        return tuple(every), {VARIABLE: "/".join(",".join(map(str, part)) for part in parts)}

    def close(self) -> None:
        """Close this process's sockets; those of the workers stay open."""
        for listener in self.sockets:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def held_port(host: str, port: int, what: str, workers: int = 1) -> ReservedPort:
    """Reserve a port with a socket for each worker; port 0 finds a free one.

    Raise `StartError` if the port is taken; `what` names it in the message. Sockets that a service manager
    passed for this port are used if there are any.
    """
    if port and (sockets := handed_over(port)):
        return ReservedPort(sockets)
    listeners: list[socket.socket] = []
    try:
        number, absent = port, None
        for family, place in _addresses(host):
            try:
                if port:
                    with socket.socket(family, socket.SOCK_STREAM) as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        _bind(probe, place, port)
                        probe.listen(1)
                for _ in range(workers):
                    listeners.append(_bind_socket(family, place, number, ends_there=bool(port)))
                    number = listeners[-1].getsockname()[1]
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if absent is not None and not listeners:
            raise absent
    except OSError as error:
        for listener in listeners:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use; choose another for the {what} (0 = any free port)"
            raise StartError(message) from error
        raise StartError(f"cannot listen on {host}:{port} for the {what}: {error.strerror}") from error
    return ReservedPort(listeners)


def supervisor_port() -> tuple[list[socket.socket], list[socket.socket]]:
    """Return this worker's own sockets of the port, and those of other workers, passed by the supervisor."""
    own, _, others = os.environ.pop(VARIABLE, "").partition("/")
    sockets = [
        [socket.socket(fileno=int(descriptor)) for descriptor in part.split(",") if descriptor]
        for part in (own, others)
    ]
    return sockets[0], sockets[1]


def handed_over(port: int) -> list[socket.socket]:
    """Return the sockets of a port that a service manager passed, as systemd's `.socket` units do."""
    return [socket.socket(fileno=os.dup(at)) for at, number in _handed_over() if number == port]


def refuse_unknown(ports: Collection[int]) -> None:
    """Raise `StartError` if a service manager passed a socket of a port that is not in `ports`."""
    for _, number in _handed_over():
        if number not in ports:
            ours = " and ".join(map(str, sorted(ports)))
            message = f"the service manager handed over a socket of port {number or 'none'}"
            raise StartError(f"{message}, and this process serves {ours}: its .socket unit must name these")


def _handed_over() -> list[tuple[int, int]]:
    """Return each passed descriptor with its port, 0 if it is not a TCP socket."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors = []
    for at in range(FIRST_HANDED_OVER, FIRST_HANDED_OVER + int(count)):
        os.set_inheritable(at, False)
        with socket.socket(fileno=os.dup(at)) as handed:
            name = handed.getsockname()
        descriptors.append((at, name[1] if isinstance(name, tuple) else 0))
    return descriptors


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return the addresses to listen at for a host; without one, those for all interfaces."""
    places = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(place[0])) for family, *_, place in places))


def _bind_socket(family: socket.AddressFamily, place: str, port: int, *, ends_there: bool) -> socket.socket:
    """Return a socket that is bound to a place and a port."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if ends_there:  # earlier connections of this port may still be closing; a free port has none
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setblocking(False)  # noqa: FBT003  # as `socket` names it
        _bind(made, place, port)
    except OSError:
        made.close()
        raise
    return made


def _bind(made: socket.socket, place: str, port: int) -> None:
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((place, port))


def free_port(wish: int, host: str = "127.0.0.1") -> int:
    for port in (wish, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise StartError(f"no free port on {host}")


async def port_answers(host: str, port: int, within_s: float) -> bool:
    """Return whether a server accepts connections at a port; a host with a slash is a Unix socket."""
    try:
        async with asyncio.timeout(within_s):
            if "/" in host:
                _, writer = await asyncio.open_unix_connection(host)
            else:
                _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def reachable_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared only


# The output of `up`: progress and news on standard error, the result on standard output.
#
# With JSON, standard output is exactly one line, and news are JSON lines like the other processes' logs.
# Without, both are sentences for a person.

# The default data directory of the commands.
DATA_DIR = ".tollkeeper"


class Voice:
    """Output as sentences for a person; steps show the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, sentence: str) -> None:
        """Print a step of the start with the elapsed seconds."""
        _news(f"tollkeeper [{time.monotonic() - self._began:4.1f} s] {sentence}")

    def say(self, sentence: str) -> None:
        _news(f"tollkeeper: {sentence}")

    def warn(self, sentence: str) -> None:
        self.say(sentence)

    def ready(self, facts: dict[str, Any], first_call: str) -> None:
        """Print the addresses in `facts`, as JSON or as text with the command `first_call`."""
        self.step("ready")
        print(self._result(facts, first_call), flush=True)  # noqa: T201  # standard output is the result

    def _result(self, facts: dict[str, Any], first_call: str) -> str:
        return _lines_for_person(facts, first_call)


class JsonVoice(Voice):
    """Output as JSON lines for a program; news go to `log`."""

    def __init__(self, log: Callable[..., None]) -> None:
        super().__init__()
        self._log = log

    def step(self, sentence: str) -> None:
        self._log(sentence, after_s=round(time.monotonic() - self._began, 1))

    def say(self, sentence: str) -> None:
        self._log(sentence)

    def warn(self, sentence: str) -> None:
        self._log(sentence, level="warning")

    def _result(self, facts: dict[str, Any], first_call: str) -> str:
        return json.dumps(facts, separators=(",", ":"))


def _news(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # standard error is where news go


def _lines_for_person(facts: dict[str, Any], first_call: str) -> str:
    """Return the addresses and keys as lines for a person."""
    key = facts["api_key"]
    lines = [
        "",
        f"  Console      {facts['admin_url']}",
        f"  Admin token  {facts['admin_token']}",
        f"  Gateway      {facts['gateway_url']}",
        *([f"  API key      {key}"] if key else []),
        f"  Admin API    {facts['admin_url']}/admin/docs",
    ]
    if key:
        usage = usage_line(Path(facts["data_dir"]), Path(sys.executable).with_name("tollkeeper"), Path.cwd())
        lines += ["", "  Try it:", "", first_call, usage]
    return "\n".join([*lines, "", "  Ctrl-C stops everything in order; the next start keeps every row.", ""])


def usage_line(data_dir: Path, program: Path, here: Path) -> str:
    """Return the command that shows usage, as typed in the directory `here`."""
    shown = program.relative_to(here) if program.is_relative_to(here) else program
    words = f"{shlex.quote(str(shown))} usage" if program.exists() else "tollkeeper usage"
    return (
        words if data_dir == here / DATA_DIR else f"TOLLKEEPER_DATA_DIR={shlex.quote(str(data_dir))} {words}"
    )


def curl_line(gateway_url: str, key: str, model: str = "gpt-4o-mini") -> str:
    """Return a shell command that sends a chat to a model."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    return (
        f"curl -s {gateway_url}/v1/chat/completions -H 'Authorization: Bearer {key}'"
        f" -H 'Content-Type: application/json' -d '{body}'"
    )
