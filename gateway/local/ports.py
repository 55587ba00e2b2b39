"""TCP ports on this machine: finding and holding them, and asking whether somebody listens.

A supervisor holds the port of its workers, so that clients who connect while one is dead wait a moment and
are not refused. Each worker has its own socket of the port (SO_REUSEPORT): the kernel divides clients evenly.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Sequence
from typing import Self

from gateway.errors import StartError

# Where a worker finds the descriptors of its own sockets, and behind a slash those of the other workers.
VARIABLE = "LISTENING_DESCRIPTORS"
# The first that a service manager hands over: sd_listen_fds(3).
FIRST_HANDED_OVER = 3
# An address of a name that this machine does not have.
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class HeldPort:
    """A port that this process holds and never accepts at: its workers do.

    It is listened on from the moment the first of them does, until it is closed.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = sockets
        self.number: int = sockets[0].getsockname()[1]

    def given(self, worker: int, workers: int) -> tuple[tuple[int, ...], dict[str, str]]:
        """The descriptors that one of so many workers is started with, and what tells it so.

        Each socket is somebody's own. Where there are fewer than workers, several share one.
        """
        every = [one.fileno() for one in self.sockets]
        own = [one for at, one in enumerate(every) if at % workers == worker] or [every[worker % len(every)]]
        parts = own, [one for one in every if one not in own]
        return tuple(every), {VARIABLE: "/".join(",".join(map(str, part)) for part in parts)}

    def close(self) -> None:
        """Hold it no more; what workers have is theirs."""
        for one in self.sockets:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def held(host: str, port: int, what: str, workers: int = 1) -> HeldPort:
    """Hold a port with a socket for each worker; 0 finds a free one. `StartError` if it is taken.

    What a service manager listens with on that port is taken where there is something.
    """
    if port and (sockets := handed_over(port)):
        return HeldPort(sockets)
    found: list[socket.socket] = []
    try:
        number, absent = port, None
        for family, place in _addresses(host):
            try:
                if port:
                    _refuse_taken(family, place, port)
                for _ in range(workers):
                    found.append(_bound(family, place, number, ends_there=bool(port)))
                    number = found[-1].getsockname()[1]
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if absent is not None and not found:
            raise absent
    except OSError as error:
        for one in found:
            one.close()
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} on {host} is in use; choose another for the {what} (0 = any free port)"
            raise StartError(said) from error
        raise StartError(f"cannot listen on {host}:{port} for the {what}: {error.strerror}") from error
    return HeldPort(found)


def given() -> tuple[list[socket.socket], list[socket.socket]]:
    """The sockets that our supervisor holds for us, and those of other workers; none without one."""
    own, _, others = os.environ.pop(VARIABLE, "").partition("/")
    found = [[socket.socket(fileno=int(one)) for one in part.split(",") if one] for part in (own, others)]
    return found[0], found[1]


def handed_over(port: int) -> list[socket.socket]:
    """Sockets of a port that a service manager listens with for us: systemd's `.socket` units."""
    return [socket.socket(fileno=os.dup(at)) for at, number in _handed_over() if number == port]


def refuse_unknown(ports: Collection[int]) -> None:
    """`StartError` where a service manager listens for us on a port that is none of these."""
    for _, number in _handed_over():
        if number not in ports:
            ours = " and ".join(map(str, sorted(ports)))
            said = f"the service manager handed over a socket of port {number or 'none'}"
            raise StartError(f"{said}, and this process serves {ours}: its .socket unit must name these")


def _handed_over() -> list[tuple[int, int]]:
    """Each descriptor and its port; 0 where it is none of TCP."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for at in range(FIRST_HANDED_OVER, FIRST_HANDED_OVER + int(count)):
        os.set_inheritable(at, False)
        with socket.socket(fileno=os.dup(at)) as one:
            name = one.getsockname()
        found.append((at, name[1] if isinstance(name, tuple) else 0))
    return found


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Where to listen; at all addresses there are where none is said."""
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(place[0])) for family, *_, place in found))


def _refuse_taken(family: socket.AddressFamily, place: str, port: int) -> None:
    """Without SO_REUSEPORT it fails to listen if anybody does, even a sharer of the port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, place, port)
        probe.listen(1)


def _bound(family: socket.AddressFamily, place: str, port: int, *, ends_there: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if ends_there:  # connections of who listened there before; on a free port there are none
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setblocking(False)
        _bind(made, place, port)
    except OSError:
        made.close()
        raise
    return made


def _bind(made: socket.socket, place: str, port: int) -> None:
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((place, port))


def free(wish: int, host: str = "127.0.0.1") -> int:
    """The wished port if nobody has it, else any free one."""
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


async def answers(host: str, port: int, within_s: float) -> bool:
    """Whether somebody accepts a connection there; a host with a slash is a Unix socket."""
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
    """The address by which this machine reaches a server listening on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared only
