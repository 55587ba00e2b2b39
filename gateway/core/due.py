"""When a time in Redis has come, by which one of its lists is scored.

Nothing is put further ahead than the longest distance of its list. The clock of Redis may jump by an hour, and
back: an entry that was put there meanwhile stands further ahead, and would wait for that hour. So its time has
come, too.
"""

from __future__ import annotations

from typing import Final

from gateway.core.accounts.upstream_jobs import AGAIN_S, Job

# An entry beyond this many distances has come. After a clock went back by one distance none is early.
DISTANCES: Final = 2


def has_come(at: float, now: float, longest: float) -> bool:
    """Return whether the time `at` is past, or further ahead than anything is put; all in one unit."""
    return not now < at <= now + DISTANCES * longest


def is_due(job: Job, now_ms: int) -> bool:
    """Return whether to look at a job: one that was not found is left alone until its next look."""
    return has_come(job.next_look_ms, now_ms, 1000 * AGAIN_S[job.misses - 1] if job.misses else 0)


def bounds_ahead(now_ms: int, longest_ms: int) -> tuple[bytes, bytes]:
    """Return the bounds of scores that are too far ahead; an endless one is no time."""
    return b"(%d" % (now_ms + DISTANCES * longest_ms), b"(+inf"
