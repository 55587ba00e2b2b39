"""What is said first on a connection to Redis, and what the server says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.counters.redis.address import Address
from gateway.counters.redis.scripts import library
from gateway.errors import CountersUnavailable

# Send one command by its parts, and wait for its answer.
Ask = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers. `run_id` is the process; `promoted` says when it last began a history of its own behind
    another server's (empty: never), `eviction` is its policy. `is_one`: keys of any slots may be in one call.
    """

    run_id: bytes
    promoted: bytes
    eviction: str
    is_one: bool


def why_evicts(policy: str) -> str:
    """Why a server with this maxmemory-policy is not to be used; empty where it deletes nothing."""
    if policy in ("", "noeviction"):
        return ""
    return f"Redis has maxmemory-policy {policy}, which deletes counters: set it to noeviction"


def refuse_evicting(server: Server) -> None:
    """CountersUnavailable where it would delete counters."""
    if why := why_evicts(server.eviction):
        raise CountersUnavailable(why)


async def greet(address: Address, ask: Ask) -> Server:
    """Authenticate, choose the database, bring the library; CountersUnavailable where it cannot be ours."""
    login = address.now()
    if login.password:
        user = [login.username.encode()] if login.username else []
        await ask(b"AUTH", *user, login.password.encode())
    if address.database:
        await ask(b"SELECT", b"%d" % address.database)
    # All at once: on a busy machine each answer that is waited for takes its time.
    server, replication, memory, loaded = await asyncio.gather(
        ask(b"INFO", b"server"),
        ask(b"INFO", b"replication"),
        ask(b"INFO", b"memory"),
        ask(b"FUNCTION", b"LIST", b"LIBRARYNAME", library().name.encode()),
    )
    run_id = said(server, b"run_id")
    if not run_id:
        raise CountersUnavailable("Redis does not say its run_id")
    if (address.sentinels or address.members) and not is_primary(replication):
        who = "the sentinels name" if address.sentinels else "the cluster names"
        raise CountersUnavailable(f"{who} a primary that is not one (yet)")
    policy = said(memory, b"maxmemory_policy")
    behind, offset = (said(replication, name) for name in (b"master_replid2", b"second_repl_offset"))
    promoted = b"" if offset in (b"", b"-1") else behind + b":" + offset
    # A full server refuses to load, but has what was loaded before.
    if not loaded:
        await ask(b"FUNCTION", b"LOAD", b"REPLACE", library().text.encode())
    mode = said(server, b"redis_mode") or said(server, b"server_mode")
    return Server(run_id, promoted, policy.decode(), mode == b"standalone")


def is_primary(replication: object) -> bool:
    """Whether a server is one by its `INFO replication`; ROLE says the same, and some services refuse it."""
    return said(replication, b"role") == b"master"


def said(info: object, name: bytes) -> bytes:
    """One line of what INFO says; empty where it is not there."""
    if not isinstance(info, bytes):
        return b""
    return info.partition(name + b":")[2].partition(b"\r")[0]
