"""How many files, which sockets are too, a process has open, and how many it may have."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

OPEN_FILES_MAX = 1_000_000
OURS = Path("/proc/self/fd")


def limit() -> int:
    """How many a process that we start may have open, once it asks for all it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)


def allow_many() -> None:
    """Raise our own limit as far as we may: every stream is two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit(), hard))


def count() -> int:
    """How many this process has open; 0 where the system does not say."""
    with suppress(OSError):
        return OURS.stat().st_size or len(os.listdir(OURS))  # its size is their number, since Linux 6.2
    return 0
