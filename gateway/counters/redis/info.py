"""What a server of Redis says of itself by INFO, and whether it takes calls by that."""

from __future__ import annotations

from collections.abc import Mapping

# The codes by which a server that is there refuses what it is told, and what is so then.
WHY = {
    "OOM": "its memory is full",
    "MISCONF": "it cannot write its file",
    "READONLY": "it is a replica",
    "LOADING": "it still reads its file",
    "MASTERDOWN": "it is a replica without its primary",
    "NOREPLICAS": "too few replicas follow it",
}


def facts_of(answer: object) -> dict[str, str]:
    """Each fact by its name."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def why_refused(facts: Mapping[str, str]) -> str:
    """The code by which it refuses calls now; empty where it takes them, or does not say."""
    if facts.get("loading") == "1":
        return "LOADING"
    if facts.get("role") == "slave":
        return "READONLY"
    if "append_only" in files_failing(facts):
        return "MISCONF"
    names = ("used_memory", "mem_not_counted_for_evict", "maxmemory")
    used, aside, most = (int(facts.get(name) or 0) for name in names)
    return "OOM" if 0 < most <= used - aside else ""


def files_failing(facts: Mapping[str, str]) -> list[str]:
    """Which of its files it could not write when it last tried; with a failed snapshot it may refuse."""
    aof = facts.get("aof_enabled") == "1" and facts.get("aof_last_write_status") == "err"
    return ["append_only"] * aof + ["snapshot"] * (facts.get("rdb_last_bgsave_status") == "err")


def replica_lags(facts: Mapping[str, str]) -> list[int]:
    """For how many seconds each replica that follows it has said nothing."""
    found = []
    for name, value in facts.items():
        if name.startswith("slave") and name[5:].isdigit():
            said = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            found += [int(said["lag"])] if said.get("lag", "").isdigit() else []
    return found


def refusal_in(text: str) -> str:
    """The code in what a server answered; empty where there is none of these."""
    return next((word for word in text.split() if word in WHY), "")
