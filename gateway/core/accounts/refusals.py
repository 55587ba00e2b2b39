"""Refused calls on their way to the journal: all are counted, and a limited number get a row each.

Pure, and bounded whatever values callers invent. Counts are exact: if there are too many names, further calls
are counted as `other`, without a user. A batch is numbered by its worker, so that it counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import nlargest
from typing import Annotated

import msgspec

from gateway.core.accounts.call_facts import TEXT_CHARACTERS_MAX
from gateway.core.accounts.outbox import attributed
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.usage import NO_PROJECT, OTHER, OTHER_PROJECTS
from gateway.core.model import INTEGER_MAX
from gateway.core.times import HOUR_MS, MINUTE_MS

# Most rows for one organization within a minute, per worker.
ROWS_A_MINUTE_MAX = 600
# Most rows that a worker stores until its next report.
ROWS_MAX = 1_000
ROWS_BYTES_MAX = 256 * 1024
ROW_BYTES, GROUP_BYTES = 256, 17
# Most counts of one organization, and of all. Calls beyond are counted together.
NAMED_MAX = 200
COUNTS_MAX = 4_000

# The last millisecond of the year 9999.
TIME_MS_MAX = 253_402_300_799_999

_Number = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]
_Project = Annotated[int, msgspec.Meta(ge=OTHER_PROJECTS, le=INTEGER_MAX)]
_Attribution = Annotated[str, msgspec.Meta(pattern=r"^([0-9]{0,16}\t[0-9]{0,16}\t[^\t]*)?\Z")]


class RefusingLimit(StrEnum):
    """Kinds of limits that refuse a call and have a row in PostgreSQL."""

    BUDGET = "budget"
    RUN = "run"
    PLAN = "plan"


class RefusedCall(msgspec.Struct, array_like=True):
    """One refused call with its reason. `user` is the caller's own id; `attribution` as in `OutboxEntry`.

    `run` is the caller's id for its run. The limit that refused it has a `refused_kind` (`RefusingLimit`) and
    an id, 0 if the writer has to look it up. `tags` are those that the organization declares; `groups` are ids
    of those that the caller is in, none of a call that was refused before its body was read.
    """

    request_id: str
    at_ms: _Time
    organization_id: _Number
    tenant_id: _Number
    key_id: _Number
    service_id: _Number
    user: str
    attribution: _Attribution
    session: str
    route: str
    model: str
    streamed: bool
    status: _Number
    reason: str
    duration_ms: _Number
    run: str = ""
    refused_kind: str = ""
    refused_by: _Number = 0
    tags: dict[str, str] = {}
    groups: tuple[int, ...] = ()


class RefusedCount(msgspec.Struct, array_like=True):
    """The number of refused calls in an hour with the same attributes. `project_id` as in roll-ups."""

    organization_id: _Number
    hour_ms: _Time
    tenant_id: _Number
    key_id: _Number
    service_id: _Number
    user: str
    project_id: _Project
    model: str
    refused: _Number = 0
    tags: Tags = ()


class RefusedBatch(msgspec.Struct, array_like=True):
    """The refused calls that one worker reports at once. Its batches are numbered in order."""

    worker: str
    number: _Number
    counts: list[RefusedCount]
    calls: list[RefusedCall]


_Key = tuple[int, int, int, int, int, str, int, str, Tags]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RefusedBatch).decode


def read_batch(packed: bytes) -> RefusedBatch | None:
    """Return a decoded batch, or None if the bytes are no batch."""
    try:
        return _decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def others(project_id: int, model: str) -> tuple[int, str]:
    """Return the project and model for counting a refused call when there are too many names."""
    return NO_PROJECT if project_id == NO_PROJECT else OTHER_PROJECTS, OTHER if model else ""


class Refusals:
    """The refused calls that one worker has not yet reported. `unix_seconds` is the clock.

    `untold` is the number of calls that were counted and get no row, `uncounted` those whose organization had
    no room at all.
    """

    def __init__(
        self,
        unix_seconds: Callable[[], float],
        *,
        rows_a_minute_max: int = ROWS_A_MINUTE_MAX,
        rows_max: int = ROWS_MAX,
        named_max: int = NAMED_MAX,
        counts_max: int = COUNTS_MAX,
    ) -> None:
        self._unix_seconds = unix_seconds
        self._rows_a_minute_max, self._rows_max = rows_a_minute_max, rows_max
        self._named_max, self._counts_max = named_max, counts_max
        self._counts: dict[_Key, int] = {}
        self._named: dict[int, int] = {}
        self._rows: list[RefusedCall] = []
        self._rows_bytes = 0
        self._minute = 0
        self._kept_counts: dict[int, int] = {}
        self.untold = self.uncounted = 0

    def now_ms(self) -> int:
        return int(self._unix_seconds() * 1000)

    def snapshot(self) -> dict[str, object]:
        """Return by metric name how many refused calls have no row, and how many were not counted."""
        return {"refused_calls_untold": self.untold, "refused_calls_uncounted": self.uncounted}

    def note(self, call: RefusedCall) -> None:
        """Count a refused call, and store its details for the log of refusals if there is room."""
        call.model, call.user = _clean(call.model), _clean(call.user)
        if self._count(call):
            self._keep(call)

    def take(self, worker: str, number: int) -> bytes:
        """Return all noted calls as one encoded batch and start over; empty if there are none."""
        if not self._counts:
            return b""
        counts = [RefusedCount(*key[:-1], refused, key[-1]) for key, refused in self._counts.items()]
        batch = _encode(RefusedBatch(worker, number, counts, self._rows))
        self._counts, self._named, self._rows, self._rows_bytes = {}, {}, [], 0
        return batch

    def _count(self, call: RefusedCall) -> bool:
        """Count a refused call in its hour, with fewer details if counts are full; return whether it did."""
        hour_ms = call.at_ms - call.at_ms % HOUR_MS
        owner, tenant, key_id, service = call.organization_id, call.tenant_id, call.key_id, call.service_id
        counts = self._counts
        key: _Key = (
            owner, hour_ms, tenant, key_id, service, call.user, _project(call.attribution), call.model,
            tuple(call.tags.items()),
        )  # fmt: skip
        if key in counts:
            counts[key] += 1
            return True
        named = self._named.get(owner, 0)
        if named >= self._named_max or len(counts) >= self._counts_max // 2:
            key = (owner, hour_ms, tenant, key_id, service, "", *others(key[6], key[7]), ())
        if key not in counts and len(counts) >= self._counts_max:
            self.uncounted += 1
            return False
        counts[key] = counts.get(key, 0) + 1
        self._named[owner] = named + 1
        return True

    def _keep(self, call: RefusedCall) -> None:
        """Store a refused call for the journal, unless its organization or the journal has too many."""
        minute, owner = call.at_ms // MINUTE_MS, call.organization_id
        if minute != self._minute:
            self._minute = minute
            self._kept_counts.clear()
        texts = (call.model, call.user, call.session, call.attribution, call.run, *call.tags.values())
        size = ROW_BYTES + 4 * sum(map(len, texts)) + GROUP_BYTES * len(call.groups)
        kept_count = self._kept_counts.get(owner, 0)
        has_room = len(self._rows) < self._rows_max and self._rows_bytes + size <= ROWS_BYTES_MAX
        if not has_room or kept_count >= self._rows_a_minute_max:
            self.untold += 1
            return
        self._kept_counts[owner] = kept_count + 1
        self._rows.append(call)
        self._rows_bytes += size


def _clean(text: str) -> str:
    """Return the text cut to its stored length, with characters replaced that UTF-8 cannot encode."""
    return text[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _project(attribution: str) -> int:
    _, project, _ = attributed(attribution)
    return int(project) if project else NO_PROJECT


# Recent use and refusals by tenant, for people to look at; never billed.
#
# A *kind* is `requests`, `tokens`, or the reason of a refusal. Tenant 0 stands for unknown callers, and for
# tenants beyond the number that is counted separately.

REQUESTS, TOKENS = "requests", "tokens"
NOBODY = 0

Counts = Mapping[tuple[int, str], int]


@dataclass(slots=True)
class Busy:
    """Recent calls of one tenant: settled requests, their tokens, and refused calls by reason."""

    tenant_id: int
    requests: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """The number of settled and refused calls."""
        return self.requests + sum(self.refused.values())

    def add(self, kind: str, count: int) -> None:
        if kind == REQUESTS:
            self.requests += count
        elif kind == TOKENS:
            self.tokens += count
        else:
            self.refused[kind] = self.refused.get(kind, 0) + count


def busiest(counts: Iterable[tuple[tuple[int, str], int]], most: int) -> tuple[Busy, list[Busy]]:
    """Return the sums over all tenants, and those of the `most` tenants with most calls, busiest first."""
    everybody, tenants = Busy(NOBODY), dict[int, Busy]()
    for (tenant_id, kind), count in counts:
        everybody.add(kind, count)
        tenants.setdefault(tenant_id, Busy(tenant_id)).add(kind, count)
    ranked = sorted(tenants.values(), key=lambda busy: (-busy.calls, -busy.tokens, busy.tenant_id))
    return everybody, [busy for busy in ranked if busy.tenant_id != NOBODY][:most]


def bound_tenants(counts: Counts, most: int) -> dict[tuple[int, str], int]:
    """Return `counts` of the `most` tenants with most calls; those of all others are added to `NOBODY`."""
    calls: dict[int, int] = {}
    for (tenant_id, kind), count in counts.items():
        calls[tenant_id] = calls.get(tenant_id, 0) + (count if kind != TOKENS else 0)
    if len(calls) <= most:
        return dict(counts)
    calls.pop(NOBODY, None)
    kept = set(nlargest(most, calls, key=calls.__getitem__))
    found: dict[tuple[int, str], int] = {}
    others: dict[str, int] = {}
    for key, count in counts.items():
        tenant_id, kind = key
        if tenant_id in kept:
            found[key] = count
        else:
            others[kind] = others.get(kind, 0) + count
    return found | {(NOBODY, kind): count for kind, count in others.items()}
