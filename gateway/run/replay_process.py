"""The process of one replay of budgets: it reads a request from standard input, and writes one answer.

It ends as soon as its standard input is closed, so at the latest with the process that began it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gateway.core.accounts.administration import OWNER, TENANT, Row
from gateway.core.accounts.replay.fold import REPLAY_CPU_S_MAX
from gateway.core.times import use_zones
from gateway.errors import Unprocessable
from persistence.replay import ArchivedCalls, ReplayRequest, budget_of, render, replay_over

# The most memory that its data have (measured: 301 MB for a million calls in a million accounts).
MEMORY_BYTES_MAX: Final = 1024**3
# The longest answer: twenty budgets with a thousand owners each, whose names have a thousand bytes.
ANSWER_BYTES_MAX: Final = 64 * 1024**2
# All others come first.
NICENESS: Final = 10
# In an answer instead of all else: the fields that are wrong, and why.
FAULTS: Final = "faults"
_LARGE = "have more owners than a replay holds: ask for a shorter time, or for fewer budgets with `each`"


def run_replay(memory_bytes_max: int = MEMORY_BYTES_MAX) -> int:
    """Answer one request, and end the process; return 1 if there is none."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 1
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _put_others_first()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes_max, memory_bytes_max))
    resource.setrlimit(resource.RLIMIT_CPU, (REPLAY_CPU_S_MAX, REPLAY_CPU_S_MAX + 5))
    gc.disable()  # nothing here refers to itself
    sys.unraisablehook = lambda _: None  # without memory, connections cannot be closed in order either
    answer = _TOO_LARGE
    try:
        asked = json.loads(line)
        use_zones(asked["time_zones"])
        answer = _line(answer_of(asked))
    except Unprocessable as refused:
        answer = _line({FAULTS: refused.errors})
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    # By now the data are gone, with the frames of the error.
    with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as out:
        while answer:
            answer = answer[out.write(answer) :]
    os._exit(0)  # nothing is to be put in order


def _put_others_first() -> None:
    """Lower the priority of this process, and of its session: Linux may share the cores among sessions, whatever is in each."""
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def _line(answer: Row) -> bytes:
    return json.dumps(answer).encode() + b"\n"


# It is made before memory is short.
_TOO_LARGE: Final = _line({FAULTS: [("budgets", _LARGE)]})


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory was short, perhaps before the error that followed from it."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__context__
    return error is not None


def answer_of(asked: dict[str, Any], archived: ArchivedCalls | None = None) -> Row:
    """Return the answer to a checked request, as JSON values; `archived` reads calls that are in an archive."""
    since, until = (datetime.fromisoformat(asked[name]) for name in ("since", "until"))
    budgets = tuple([budget_of(budget, place, since) for place, budget in enumerate(asked["budgets"])])
    request = ReplayRequest(asked[OWNER], asked[TENANT], since, until, budgets)
    return render(replay_over(asked["url"], request, archived))


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4_096):
        pass
    os._exit(1)
