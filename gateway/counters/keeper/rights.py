"""What a user of Redis must be able to do, and what only a keeper's may: asked without doing any of it.

Commands are queued behind MULTI on a connection that is then closed; Redis refuses, as it queues it, what a
user may not do. deploy/users.acl gives what is asked for here, and a test compares the two.
"""

from __future__ import annotations

from gateway.core.wait import in_task
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersRefused

# A key nothing is ever kept in, of each kind that rights are given by.
OF_A_PARTITION, IDENTITY = "tk:{p0}:doctor", "tk:id:{p0}:doctor"

BOTH = (
    "PING", "ROLE", "SELECT 0", "INFO", "TIME", "FUNCTION LIST", "HELLO", "CLIENT TRACKING OFF",
    "CLUSTER INFO", "CLUSTER SLOTS", "ASKING",
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
    "GET tk:keepers",
)  # fmt: skip
KEEPER = (
    "FUNCTION LOAD text",
    *(
        f"{verb} {OF_A_PARTITION} {rest}".rstrip()
        for verb, rest in (
            ("TYPE", ""), ("HGETALL", ""), ("HMGET", "f"), ("XREVRANGE", "+ -"),
        )
    ),
    f"ZREM {IDENTITY} m", "ZREM tk:org:{p0}:doctor m", "ZREM tk:catalogue m", "ZREM tk:prices m",
    "ZREM tk:verified:{p0} m", "ZREM tk:keepers m",
)  # fmt: skip
# What tells a keeper's user, and one who may do anything, from a gateway's.
KEEPERS_ALONE, NOBODYS = f"ZREM {IDENTITY} m", "CONFIG GET maxmemory"


async def refused(wire: Wire, *commands: str) -> list[str]:
    """Those of the commands that the user of this connection may not give; it must be closed afterwards."""
    asked = wire.send_together(encode(b"MULTI"), *(encode(*line.encode().split()) for line in commands))
    found = []
    for line, answer in zip(("MULTI", *commands), asked, strict=True):
        try:
            await in_task(answer)
        except CountersRefused as error:
            if "NOPERM" in error.message:
                found.append(line)
    return found
