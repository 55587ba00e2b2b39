"""What a user of Redis must be able to do, and what only a keeper's may: asked without doing any of it.

Commands are queued behind MULTI on a connection that is then closed; Redis refuses, as it queues it, what a
user may not do. deploy/users.acl gives what is asked for here, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.wait import in_task
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersRefused

# What servers and services say of a command they do not have, or that nobody may give there.
_LACKED = ("unknown command", "unknown subcommand", "is not allowed", "not supported", "unsupported")

# A key nothing is ever kept in, of each kind that rights are given by.
OF_A_PARTITION, IDENTITY = "tk:{p0}:doctor", "tk:id:{p0}:doctor"

BOTH = (
    "PING", "INFO", "TIME", "FUNCTION LIST", "HELLO", "CLIENT TRACKING OFF",
    *(
        f"{verb} {OF_A_PARTITION} {rest}".rstrip()
        for verb, rest in (
            ("FCALL f 1", ""), ("GET", ""), ("SET", "0"), ("SETRANGE", "0 0"), ("DEL", ""), ("EXPIRE", "1"),
            ("MGET", ""), ("MSET", "0"), ("HEXISTS", "f"), ("HSET", "f 0"), ("HDEL", "f"), ("HINCRBY", "f 1"),
            ("XADD", "* f 0"), ("XDEL", "0-1"), ("XINFO STREAM", ""), ("XLEN", ""), ("XRANGE", "- +"),
            ("ZADD", "0 m"), ("ZCARD", ""), ("ZCOUNT", "0 0"), ("ZMSCORE", "m"), ("ZRANGE", "0 0"),
            ("ZREM", "m"), ("ZREMRANGEBYRANK", "0 0"), ("ZREMRANGEBYSCORE", "0 0"), ("ZSCORE", "m"),
        )
    ),
    "ZREM tk:workers:{p0} m", "ZREM tk:pulses:{p0} m", "ZREM tk:history:{p0} m", "ZREM tk:busy:doctor m",
    "SET tk:cooling 0", "ZREM tk:programs m", "XLEN tk:refused",
    f"GET {IDENTITY}", "GET tk:org:{p0}:doctor", "GET tk:catalogue", "GET tk:prices", "GET tk:verified:{p0}",
    "GET tk:promotion:{p0}", "GET tk:keepers",
)  # fmt: skip
OF_A_DATABASE = ("SELECT 0",)
OF_A_CLUSTER = ("CLUSTER INFO", "CLUSTER SLOTS", "ASKING")
KEEPER = (
    "FUNCTION LOAD text",
    *(
        f"{verb} {OF_A_PARTITION} {rest}".rstrip()
        for verb, rest in (
            ("TYPE", ""), ("HGETALL", ""), ("HMGET", "f"), ("XREVRANGE", "+ -"), ("EXISTS", ""),
        )
    ),
    f"XREAD STREAMS {OF_A_PARTITION} 0",
    f"ZREM {IDENTITY} m", "ZREM tk:org:{p0}:doctor m", "ZREM tk:catalogue m", "ZREM tk:prices m",
    "ZREM tk:verified:{p0} m", "ZREM tk:promotion:{p0} m", "ZREM tk:keepers m",
)  # fmt: skip
# What a server may lack, and what is so without it.
WITHOUT = {
    "HELLO": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "CLIENT TRACKING OFF": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "ASKING": "so calls of a slot are refused while it moves key by key",
}
# What tells a keeper's user, and one who may do anything, from a gateway's. No service refuses the last.
KEEPERS_ALONE, NOBODYS = f"ZREM {IDENTITY} m", "DBSIZE"


def needed(role: str, *, clustered: bool, database: int) -> tuple[str, ...]:
    """What a process of this role asks of one server."""
    of_it = OF_A_CLUSTER if clustered else ()
    return (
        *BOTH, *of_it, *(OF_A_DATABASE if database else ()), *(() if role == "serve" else KEEPER),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refused:
    """Those of some commands that a user may not give, and those that its server does not have."""

    by_rights: list[str]
    by_server: list[str]

    def __bool__(self) -> bool:
        return bool(self.by_rights or self.by_server)


async def refused(wire: Wire, *commands: str) -> Refused:
    """Which of the commands are refused on this connection, and by whom; it must be closed afterwards."""
    asked = wire.send_together(encode(b"MULTI"), *(encode(*line.encode().split()) for line in commands))
    found = Refused([], [])
    for line, answer in zip(("MULTI", *commands), asked, strict=True):
        try:
            await in_task(answer)
        except CountersRefused as error:
            if "NOPERM" in error.message:
                found.by_rights.append(line)
            elif any(word in error.message for word in _LACKED):
                found.by_server.append(line)
    return found
