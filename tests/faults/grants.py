"""Whether a quota or a budget was passed, and what proves that it may have been.

Nothing is granted beyond a quota but to calls that were let in around a moment at which a process said that
it was late, to calls whose hold was reclaimed before they had ended by the ledger's word, and to calls that
were let in while nobody could know that the data was older.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.faults import budgets
from tests.faults.cast import Cast
from tests.faults.workload import Call
from tests.faults.world import World

# What a keeper and a worker log where they wait no longer for what others could be let in on.
LATE = ("admitting before all was brought and charged", "reporting before all calls in flight have settled")
# A line is of the moment at which somebody waits no longer. How long they had waited does not matter, since
# nobody was let in meanwhile. A keeper says it when it has opened all of its partitions, one after the other.
SAID_AFTER_S = 2.0
# From then until all is charged that was not waited for.
CHARGED_S = 60.0
# By request id, what the tenant was charged, and how much of it beyond what a reclaim had charged before.
CHARGED = (
    "SELECT coalesce(request_id::text, metadata->>'request_id'), "
    "sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), "
    "coalesce(sum(amount) FILTER (WHERE direction = 'OUT' AND metadata ? 'corrects'), 0) "
    "FROM token_ledger WHERE tenant_id = %s AND (transaction_type = 'consume' OR metadata ? 'request_id') "
    "GROUP BY 1"
)


@dataclass(frozen=True, slots=True)
class Window:
    """From when data was older until nobody was let in on it any more. Monotonic seconds."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Late:
    """That a process was late, in its words. `said`: when, monotonic seconds."""

    who: str
    what: str
    said: float

    @property
    def window(self) -> Window:
        """Which calls may have been let in on what others could not have yet."""
        return Window(self.said - SAID_AFTER_S, self.said + CHARGED_S)


class Reports:
    """What processes say of being late, from when this is made."""

    def __init__(self, logs: Callable[[], Iterable[Path]]) -> None:
        self._logs = logs
        self._before = {one: one.stat().st_size for one in logs() if one.exists()}

    def late(self) -> list[Late]:
        """Who was late, and how, each time it said so."""
        since = time.time() - time.monotonic()
        found = []
        for log in self._logs():
            said = log.read_bytes()[self._before.get(log, 0) :].decode() if log.exists() else ""
            found += [Late(log.stem, what, at - since) for what, at in map(_late, said.splitlines()) if what]
        return found


def _late(line: str) -> tuple[str, float]:
    """In which words a line of a log says so, and when (seconds since 1970); none for any other line."""
    if not any(f'"{one}"' in line for one in LATE):
        return "", 0.0
    try:
        facts = json.loads(line)
    except ValueError:  # its process was killed in the middle of it
        return "", 0.0
    return facts["event"], datetime.fromisoformat(facts["time"]).timestamp()


def unnoticed(calls: Collection[Call], windows: Sequence[Window], ids: Collection[str]) -> set[str]:
    """Of these requests, those that were asked for while nobody knew. Of one whose caller left before it had
    an answer nobody knows when it was: it may be one of them where such a call was made meanwhile.
    """
    meant = {one.request_id for one in calls if any(each.begin <= one.began <= each.end for each in windows)}
    known = {one.request_id for one in calls if one.request_id}
    return {one for one in ids if one in meant or (one not in known and "" in meant)}


@dataclass(frozen=True, slots=True)
class Passed:
    """By how many tokens and nano-units the tight quota and the tight budget were passed; how much of it is
    proven to be of calls let in while nobody could know or somebody was late, or of holds that had ended
    before their calls.
    """

    tokens: int
    nano: int
    proven_tokens: int = 0
    proven_nano: int = 0

    @property
    def unproven(self) -> list[str]:
        """What is more than that."""
        found = []
        if self.tokens > self.proven_tokens:
            found.append(
                f"the tight tenant got {self.tokens} more than its grant, {self.proven_tokens} proven"
            )
        if self.nano > self.proven_nano:
            found.append(f"the tight budget was passed by {self.nano} nano-units, {self.proven_nano} proven")
        return found


def passed(
    cast: Cast, left: int, calls: Collection[Call], windows: Sequence[Window], *, reclaims: bool
) -> Passed:
    """By how much, where the ledger leaves the tight tenant so many tokens. `reclaims`: a machine that is too
    slow for its holds may end one before its call.
    """
    world = cast.world
    tokens, nano = max(0, -left), budgets.over_granted(world, cast.budgets)
    if cast.tight is None or not (tokens or nano):
        return Passed(tokens, nano)
    charged = {row[0]: (int(row[1]), int(row[2])) for row in world.rows(CHARGED, cast.tight.id) if row[0]}
    meant = unnoticed(calls, windows, charged)
    if reclaims:
        meant |= {one for one, (_, corrected) in charged.items() if corrected}
    return Passed(tokens, nano, sum(charged[one][0] for one in meant), _cost(world, meant))


def _cost(world: World, ids: Iterable[str]) -> int:
    told = world.upstream.told
    return sum(budgets.cost_of(told[one]) for one in ids if one in told)
