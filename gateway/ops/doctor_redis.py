"""How Redis keeps what it is told: what its own figures say, as findings for doctor.

Each is whether that is well, what it is about, and what is said of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.counters.redis.info import WHY, files_failing, why_refused

# Where this much of its limit is used, Redis will be full before long.
MEMORY_SHARE_MAX = 0.95
# By how much two clocks may differ.
CLOCK_OFF_S_MAX = 10.0

Found = tuple[bool, str, str]


def kept(info: Mapping[str, str], fsync: object, now: float | None = None) -> Iterator[Found]:
    """Of what `INFO` says, and of the answer to `CONFIG GET appendfsync`, which not every user may ask.

    `now` is our Unix time when the answer came; None where the clocks are not compared.
    """
    yield from _refuses(info)
    yield _policy(info.get("maxmemory_policy", "unknown"))
    yield _file(info.get("aof_enabled") == "1", int(info.get("connected_slaves") or 0))
    yield from _fsync(info, fsync)
    yield from _memory(info)
    yield from _clock(info, now)


def kept_by_replica(info: Mapping[str, str], fsync: object) -> Iterator[Found]:
    """The same of a replica, as it will be once it has taken over."""
    yield _policy(info.get("maxmemory_policy", "unknown"))
    if info.get("aof_enabled") == "1":
        yield _file(on=True, replicas=0)
    else:
        said = "append-only file is off: when it has taken over, what it is told is in no file"
        yield True, "redis", f"{said}. CONFIG SET appendonly yes, or see that another replica follows it then"
    yield from _fsync(info, fsync)
    yield from _memory(info)


def _refuses(info: Mapping[str, str]) -> Iterator[Found]:
    """Whether it takes calls, and can write its files."""
    code = why_refused(info)
    if code and code != "OOM":  # of its memory more is said
        hint = "see *Redis refuses* in the runbook, deploy/README.md"
        yield False, "redis", f"it refuses calls with {code}: {WHY[code]}; {hint}"
    elif files_failing(info):
        hint = "see whether its disk is full, and its log. It may refuse calls until that is mended"
        yield False, "redis", f"its last snapshot failed (rdb_last_bgsave_status): {hint}"


def _fsync(info: Mapping[str, str], fsync: object) -> Iterator[Found]:
    """Whether the file, where there is one, is written soon enough."""
    durable = info.get("aof_enabled") == "1"
    values = list(fsync.values()) if isinstance(fsync, Mapping) else fsync
    if durable and isinstance(values, list) and values and values[-1] == b"no":
        hint = "CONFIG SET appendfsync everysec, and in its configuration"
        yield False, "redis", f"appendfsync is no: a power cut loses half a minute of what it said: {hint}"


def _file(on: bool, replicas: int) -> Found:
    """Whether what it was told outlives its process, in a file or in another server."""
    if on:
        return True, "redis", "append-only file is on"
    if replicas:
        said = f"append-only file is off, replicas that follow: {replicas}"
        return True, "redis", f"{said}. Let a replica take over before it starts again, for it starts empty"
    hint = "CONFIG SET appendonly yes, and in its configuration, or let a replica follow"
    return False, "redis", f"append-only file is off: {hint}"


def _policy(policy: str) -> Found:
    """Whether Redis would throw counters away where its memory is full."""
    if policy == "noeviction":
        return True, "redis", "maxmemory-policy is noeviction"
    if policy == "unknown":
        return True, "redis", "this server does not tell its maxmemory-policy: see that it is noeviction"
    hint = "CONFIG SET maxmemory-policy noeviction, and in its configuration"
    return False, "redis", f"maxmemory-policy is {policy}, which deletes counters: {hint}"


def _memory(info: Mapping[str, str]) -> Iterator[Found]:
    """Whether it has memory left, where it has a limit: at the limit it takes no new call."""
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if not most and info.get("maxmemory") and "maxmemory_policy" in info:
        hint = "CONFIG SET maxmemory, below the memory of its machine, and in its configuration"
        yield False, "redis", f"maxmemory is 0, so the system ends it where its memory is full: {hint}"
    if most:
        said = f"{used / most:.0%} of its maxmemory of {most // 1024**2} MiB is used"
        well = used < MEMORY_SHARE_MAX * most
        yield well, "redis", said if well else f"{said}: when it is full, calls are refused. Raise maxmemory"


def _clock(info: Mapping[str, str], now: float | None) -> Iterator[Found]:
    """Whether its clock is ours: it gives the time of what is charged, and we that of what is refused."""
    told = info.get("server_time_usec", "")
    if now is None or not told.isdecimal():
        return
    yield clock_against("Redis", int(told) / 1e6, now)


def clock_against(name: str, theirs: float, ours: float) -> Found:
    """Whether our clock, Unix time, is that of another server."""
    off = ours - theirs
    if abs(off) < CLOCK_OFF_S_MAX:
        return True, "clock", f"this machine's clock agrees with that of {name}"
    said = f"this machine's clock is {abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} that of {name}"
    return False, "clock", f"{said}: see that both follow a time server (timedatectl, chronyc tracking)"
