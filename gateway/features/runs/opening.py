"""Runs of callers: opened by the first call that names one, cached by each worker, ended once.

A run never changes until it ends, and then its account refuses calls. So a cached run is as good as the
stored one, and a worker restores a run that Redis lost. A run without an admitted call is provisional: Redis
deletes it after a minute, and workers before that, so that refused calls leave no runs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final, cast

import msgspec

from gateway.core.accounts.budget_amounts import render_amount
from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import (
    ENDED_CALLS,
    FIELD,
    LEVELS_MAX,
    RUNS_MAX,
    TTL_S,
    Run,
    account_of,
    budget_id_of,
    end_of,
    packed_run,
    parent_of,
    status_of,
    stored_run,
    told_again,
    wanted_run,
    within,
)
from gateway.core.model import INTEGER_MAX, Caller, RunRequest
from gateway.core.times import moment_of, rfc3339
from gateway.core.wait import Wait, begin, in_task
from gateway.counters.admission.throttle import Throttle
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode, encode_script
from gateway.errors import (
    CountersUnavailable,
    InvalidRequest,
    RunConflict,
    RunEnded,
    RunNotFound,
    TooManyRuns,
)

# The most runs below a run that one answer contains.
TREE_MAX: Final = 100
# Runs that are restored in one batch.
RESTORED_AT_ONCE: Final = 64
# A worker forgets a provisional run before Redis does (`RUN_WAITS_MS`), by the longest time of a call.
WAITS_S: Final = packing.RUN_WAITS_MS / 2000
# Runs cached by one worker; half a kilobyte each.
REMEMBERED_MAX: Final = 20_000
RUN_BYTES: Final = 8


class Runs:
    """The runs of callers. `today` returns the time of day in seconds, `random` a number of random bytes."""

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        today: Callable[[], float],
        random: Callable[[int], bytes],
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._wires, self._today, self._random = wires, today, random
        self._throttle = Throttle(wires, clock)
        self._known: OrderedDict[tuple[int, str], Run] = OrderedDict()
        # The end of each provisional run, in seconds; infinite once a call of it was admitted here.
        self._waits: dict[tuple[int, str], float] = {}
        self._remembered_max = remembered_max

    def cached(self, caller: Caller, asked: RunRequest) -> Run | None:
        """Return the cached run that a call asks for, or None if it is not cached.

        `RunEnded` if the run has ended; `RunConflict` if it has other limits than the call names.
        """
        key = caller.tenant_id, asked.id
        run = self._known.get(key)
        if run is None:
            return None
        if self._waits and self._waits.get(key, math.inf) < self._today():
            del self._known[key], self._waits[key]
            return None
        self._known.move_to_end(key)
        return self._check_run(run, asked)

    async def find(self, caller: Caller, asked: RunRequest, policies: CallRunPolicies = ()) -> Run:
        """Return the run of a call; open it, within these policies, if it does not exist.

        `RunConflict` if the run has other limits than the call names, `RunEnded` after its end,
        `InvalidRequest` for a parent that is not open or for more than a policy allows. Also `TooManyRuns`
        and `CountersUnavailable`.
        """
        known = self.cached(caller, asked)
        if known is not None:
            return known
        opened, wrong = within(asked, policies)
        if wrong:  # an existing run may have been opened under other policies
            there = await self._look(caller, asked.id)
            if there is None:
                raise InvalidRequest(f"{FIELD} {wrong}.", param=FIELD)
            return self._check_run(there, asked)
        parents: tuple[Run, ...] = ()
        if asked.parent_id:
            parent = await self._look(caller, asked.parent_id)
            if parent is not None:
                parents = (parent, *parent.parents)
        _check_level(parents)
        code, packed = await self._ask(
            packing.RUN_OPEN, caller, asked.id, parent_id=asked.parent_id,
            ttl_ms=1000 * (opened.ttl_s or TTL_S), budget_id=budget_id_of(self._random(RUN_BYTES)),
            packed=wanted_run(opened),
        )  # fmt: skip
        if code == packing.RUN_PARENT_OVER:
            raise InvalidRequest(
                f"{FIELD} has the parent {asked.parent_id}, which is no open run of this tenant.", param=FIELD
            )
        if code == packing.RUN_TOO_MANY:
            raise TooManyRuns(f"This tenant has {RUNS_MAX} runs: give them a shorter ttl.")
        if code == packing.RUN_KEY_FULL:
            raise TooManyRuns(
                f"This API key has as many of this tenant's {RUNS_MAX} runs as it leaves to others: give "
                "them a shorter ttl."
            )
        if parent_of(packed) != (parents[0].id if parents else ""):  # which others may have opened meanwhile
            parents = await self._parents(caller, packed)
            _check_level(parents)
        return self._check_run(self._remember_run(caller, packed, parents, code), asked)

    def admitted(self, caller: Caller, run: Run) -> None:
        """Store an admitted call's run, and the run's parents, until they end; before, they expire soon."""
        if not self._waits:
            return
        for parent in reversed((run, *run.parents)):
            if (parent.tenant_id, parent.id) in self._waits:
                self._waits[parent.tenant_id, parent.id] = math.inf
                begin(self._keep(caller, parent))

    async def _keep(self, caller: Caller, run: Run) -> None:
        await self._ask(
            packing.RUN_KEEP, caller, run.id, parent_id=run.parent_id, packed=packed_run(run),
            entry=told_again(run, ended=run.ended_ms > 0),
        )  # fmt: skip
        self._waits.pop((run.tenant_id, run.id), None)

    async def end(self, caller: Caller, id_: str) -> None:
        """End a run of this caller's tenant: its calls, and those of its children, are refused then."""
        await self._throttle.admit(caller)
        run = await self._look(caller, id_)
        if run is None:
            raise RunNotFound
        _, packed = await self._ask(packing.RUN_END, caller, id_, packed=run.defined, entry=end_of(run))
        if packed:
            self._remember_run(caller, packed, run.parents, packing.RUN_THERE)

    async def tell(self, caller: Caller, id_: str) -> bytes:
        """Return a run of this caller's tenant as JSON; raise `RunNotFound` or `RateLimited`.

        Includes its parents, and the tree of its children up to `TREE_MAX` runs.
        """
        await self._throttle.admit(caller)
        run = await self._look(caller, id_)
        if run is None:
            raise RunNotFound
        chain = (run, *run.parents)
        below, has_more = await self._below(caller, run)
        now_ms, documents = int(self._today() * 1000), list[dict[str, object]]()
        runs = (*chain, *below)
        names = [keys.budget_account(caller.partition, member.account.name) for member in runs]
        for member, raw in zip(runs, await self._read_values(caller, names), strict=True):
            documents.append(_render_run(member, live_windows(raw) if raw else {}, now_ms))
        shown = documents[0] | {"parents": documents[1 : len(chain)], "children": [], "has_more": has_more}
        by_id = {run.id: shown}
        for child, document in zip(below, documents[len(chain) :], strict=True):
            by_id[child.id] = document | {"children": []}
            cast("list[object]", by_id[child.parent_id]["children"]).append(by_id[child.id])
        return msgspec.json.encode(shown)

    async def _below(self, caller: Caller, run: Run) -> tuple[list[Run], bool]:
        """Return the runs below a run, the nearest levels first, and whether there are more."""
        partition, level, below = caller.partition, [run], list[Run]()
        while level:
            ids = await self._child_ids(partition, level, TREE_MAX + 1 - len(below))
            names = [keys.run(partition, account_of(run.organization_id, run.tenant_id, id_)) for id_ in ids]
            stored = await self._read_values(caller, names)
            above = {parent.id for parent in level}
            runs = [stored_run(run.organization_id, run.tenant_id, packed) for packed in stored if packed]
            level = [child for child in runs if child.parent_id in above]
            below += level
            if len(below) > TREE_MAX:
                return below[:TREE_MAX], True
        return below, False

    async def _child_ids(self, partition: int, parents: Iterable[Run], ids_max: int) -> list[str]:
        """Return the ids of the children of some runs, at most `ids_max`."""
        ids = list[str]()
        for parent in parents:
            left = ids_max - len(ids)
            name = keys.children(partition, parent.account.name).encode()
            children = await self._wires.of(partition).send(encode(b"ZRANGE", name, b"0", b"%d" % left))
            if not isinstance(children, list):
                raise CountersUnavailable
            ids += [cast("bytes", child).decode() for child in children][:left]
        return ids

    async def _read_values(self, caller: Caller, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys in Redis, None for a missing one."""
        if not names:
            return []
        wire = self._wires.of(caller.partition)
        values = await wire.send(encode(b"MGET", *(name.encode() for name in names)))
        if not isinstance(values, list):
            raise CountersUnavailable
        return cast("list[bytes | None]", values)

    async def restore(self, partitions: Collection[int]) -> None:
        """Restore in Redis the cached runs that these partitions have lost, with the same windows.

        So settlements that are sent again count in the runs. `CountersUnavailable` if a run was perhaps not
        restored.
        """
        now_ms, lost = self._today() * 1000, list[Run]()
        for key, run in self._known.items():
            # An unused provisional run expires soon, so it is not restored.
            was_admitted = self._waits.get(key, math.inf) == math.inf
            is_here = keys.partition_of(run.organization_id) in partitions
            if was_admitted and is_here and run.expires_ms > now_ms:
                lost.append(run)
        lost.sort(key=lambda run: len(run.parents))  # children after their parents
        for start in range(0, len(lost), RESTORED_AT_ONCE):
            asked = [(run, self._send_again(run)) for run in lost[start : start + RESTORED_AT_ONCE]]
            for run, wait in asked:
                packed = _answered(await in_task(wait))[1]
                self._known[run.tenant_id, run.id] = stored_run(
                    run.organization_id, run.tenant_id, packed, self._today_parents(run)
                )

    def _send_again(self, run: Run) -> Wait[Reply]:
        """Restore a run in Redis that has lost it."""
        caller = Caller(run.organization_id, run.tenant_id, 0, keys.partition_of(run.organization_id))
        wire = self._wires.of(caller.partition)
        return wire.send(
            encode_script("run", *packing.run(
                wire.run_id, packing.RUN_RESTORE, caller, run.id, parent_id=run.parent_id,
                packed=packed_run(run), entry=told_again(run, ended=run.ended_ms > 0),
            ))
        )  # fmt: skip

    def _today_parents(self, run: Run) -> tuple[Run, ...]:
        """Return the parents of a run in their present cached state."""
        return tuple(self._known.get((parent.tenant_id, parent.id), parent) for parent in run.parents)

    async def _look(self, caller: Caller, id_: str) -> Run | None:
        """Return a stored run by its id; None if there is none."""
        code, packed = await self._ask(packing.RUN_LOOK, caller, id_)
        if code == packing.RUN_UNKNOWN:
            return None
        return self._remember_run(caller, packed, await self._parents(caller, packed), code)

    async def _parents(self, caller: Caller, packed: bytes) -> tuple[Run, ...]:
        """Return the parents of a `packed` run, the nearest first; RunEnded if one does not exist any more.

        Each parent stays cached as long as its child.
        """
        parent_id = parent_of(packed)
        if not parent_id:
            return ()
        parent = await self._look(caller, parent_id)
        if parent is None:
            raise RunEnded(f"The run {parent_id}, from which this one draws, is not there any more.")
        return parent, *parent.parents

    async def _ask(self, verb: int, caller: Caller, id_: str, **more: object) -> tuple[int, bytes]:
        wire = self._wires.of(caller.partition)
        return _answered(
            await wire.send(encode_script("run", *packing.run(wire.run_id, verb, caller, id_, **more)))  # type: ignore[arg-type]  # as it takes them
        )

    def _remember_run(self, caller: Caller, packed: bytes, parents: tuple[Run, ...], code: int) -> Run:
        """Return the run in a script's answer, and remember it; equal runs are one object."""
        run = stored_run(caller.organization_id, caller.tenant_id, packed, parents)
        key = caller.tenant_id, run.id
        if code == packing.RUN_THERE:
            self._waits.pop(key, None)
        elif self._waits.get(key) != math.inf:
            ends = [self._waits.get((parent.tenant_id, parent.id), math.inf) for parent in parents]
            self._waits[key] = min([self._today() + WAITS_S, *ends])
        known = self._known.get(key)
        if known == run:  # all its children share one object
            return known
        self._known[key] = run
        if len(self._known) > self._remembered_max:
            gone, _ = self._known.popitem(last=False)
            self._waits.pop(gone, None)
        return run

    def _check_run(self, run: Run, asked: RunRequest) -> Run:
        """Return the run if it may be used as asked; raise RunEnded or RunConflict."""
        now_ms = self._today() * 1000
        over = next((parent for parent in (run, *run.parents) if parent.is_over(now_ms)), None)
        if over is not None:
            raise RunEnded(f"The run {over.id} has ended.", retry_helps=False)
        wrong = run.differs(asked)
        if wrong:
            raise RunConflict(
                f"The run {run.id} was opened with another {wrong}, which never changes.", param=FIELD
            )
        return run


def _check_level(parents: Sequence[Run]) -> None:
    if len(parents) >= LEVELS_MAX:
        raise InvalidRequest(f"{FIELD} has a parent at level {LEVELS_MAX}: there are no more.", param=FIELD)


def _answered(answer: Reply) -> tuple[int, bytes]:
    """Return the code and the packed run in an answer of the script `run`."""
    if not isinstance(answer, bytes):
        raise CountersUnavailable
    code = packing.code_of(answer)
    if code == 0:
        raise CountersUnavailable
    return code, answer[packing.RAN.size :]


def _render_run(run: Run, live: dict[int, LiveWindow], now_ms: int) -> dict[str, object]:
    """Return a run as JSON values for its callers."""
    calls, amount = live.get(run.budget_id), live.get(run.budget_id + 1)
    used, held = (amount.used, amount.held) if amount is not None else (0, 0)
    counted = run.calls if calls is None else calls.used
    if counted >= ENDED_CALLS:  # those in flight at its end count on; an earlier version stopped there
        counted = counted - ENDED_CALLS if counted < INTEGER_MAX else run.calls
    amount_of, limited = partial(render_amount, run.unit), run.amount >= 0
    return {
        "id": run.id,
        "parent_id": run.parent_id or None,
        "unit": run.unit,
        "max": amount_of(run.amount) if limited else None,
        "used": amount_of(used),
        "held": amount_of(held),
        "left": amount_of(max(0, run.amount - used - held)) if limited else None,
        "max_calls": run.calls_max or None,
        "calls": counted,
        "status": status_of(run, used, counted, now_ms),
        "expires_at": rfc3339(moment_of(run.expires_ms), "milliseconds"),
    }
