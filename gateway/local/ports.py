"""TCP ports on this machine: finding, reserving and asking whether somebody listens."""

from __future__ import annotations

import asyncio
import errno
import socket

import psutil

from gateway.errors import StartError


def reserved(host: str, port: int, what: str) -> socket.socket:
    """A socket bound to the port but not listening, so that workers can share it.

    Port 0 finds a free one. Workers bind the same port with SO_REUSEPORT; as long as the
    returned socket is open nobody else is given the port. `StartError` if it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # Without SO_REUSEPORT this fails if anybody, even a sharer of the port, listens.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                probe.listen(1)
            # Connections of who listened there before may still be ending; on a free port there are none.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use; choose another for the {what} (0 = any free port)"
            ) from error
        raise StartError(f"cannot listen on {host}:{port} for the {what}: {error.strerror}") from error
    return holder


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


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on the port; others may share it."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)


def reachable_host(host: str) -> str:
    """The address by which this machine reaches a server listening on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared only
