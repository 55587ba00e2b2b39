"""Plans and applies a configuration: the shown plan is executed in one transaction, or nothing is.

A plan is tried by executing it and rolling back, unless another session waits for its locks. The counters are
updated once the transaction is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.admin.configuration.objects import OBJECTS_MAX, ConfigObjects, read
from gateway.admin.configuration.planning import Plan, Planner
from gateway.admin.configuration.references import ROWS_MAX, PlannedRow
from gateway.admin.configuration.words import KINDS, declared
from gateway.admin.http.guard import in_thread
from gateway.admin.http.requests import may_write, require_read, require_write
from gateway.admin.live import push
from gateway.admin.operations import WriteResult, finish, mint, write_closed
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import (
    CREATE,
    DEFAULT_NAME,
    DELETE,
    Claim,
    Command,
    ConfigWrite,
    ConfigWriteResult,
    Intent,
    Mark,
    Realm,
    Row,
    StoredReply,
)
from gateway.errors import AdminRefusal, Conflict, StepRefused, TrialEnded, Unprocessable

if TYPE_CHECKING:
    from persistence.apply_transaction import ApplyTransaction

# A plan with more changes is not tried first.
TRIED_MAX = 2_000
# Maximum of rows listed that no file described before.
TAKEN_SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    """A request to plan or apply: `digest` identifies the plan to execute, None asks for a plan."""

    objects: Mapping[str, object]
    digest: str | None = None
    trial: bool = False
    prune: bool = False
    name: str = DEFAULT_NAME


@dataclass(slots=True)
class _ApplyResult:
    plan: Plan
    is_done: bool = False
    is_applied: bool = False
    stayed: dict[int, str] = field(default_factory=dict)
    intents: Sequence[Intent] = ()
    secrets: list[Row] = field(default_factory=list)


class Configurator:
    """Plans and applies configurations of one caller; `request_id` is stored in the audit log."""

    def __init__(
        self, ports: AdminPorts, request_id: str, clock: Callable[[], datetime], claim: Claim | None = None,
        *, rows_max: int = ROWS_MAX, objects_max: int = OBJECTS_MAX,
    ) -> None:  # fmt: skip
        self._ports = ports
        self._rows_max, self._objects_max = rows_max, objects_max
        self._request_id = request_id
        self._clock = clock
        self._claim = claim
        self._owner = ports.actor.organization_id or 0

    async def do(self, wish: ApplyRequest) -> WriteResult:
        """Plan a configuration, try it, or apply it, as `wish` requests.

        Raise `Conflict` if the plan has changed since it was shown.
        """
        self._require_some(wish)
        own, now = self._ports.actor.organization_id, self._clock()
        objects = await in_thread(read, wish.objects, now, own, self._objects_max)
        for kind in objects.by_kind:
            require_read(self._ports.actor, KINDS[kind])
        if wish.prune and not objects.count:
            raise Unprocessable(
                errors=(("prune", "needs objects: without any, everything would be deleted"),)
            )
        keep = wish.digest is not None
        try:
            work = await self._transaction(wish, objects)
        except TrialEnded:
            work = await self._transaction(replace(wish, trial=False), objects)
        if isinstance(work, StoredReply):
            return WriteResult(work.status or 200, work.body, replayed=True)
        content = await in_thread(_render_outcome, work)
        if not keep:
            return WriteResult(200, content)
        content |= await self._push(work)
        status = 202 if content["pending"] else 200
        if self._claim is not None:
            await finish(self._ports, self._claim, status, content, self._request_id)
        return WriteResult(status, {**content, "secrets": work.secrets})

    async def _transaction(self, wish: ApplyRequest, objects: ConfigObjects) -> _ApplyResult | StoredReply:
        """Run a plan or an apply in one transaction, which only an apply commits."""
        keep = wish.digest is not None
        store = self._ports.store
        return await write_closed(
            self._ports,
            lambda closed: store.applying(
                lambda session: self._work(session, wish, objects, closed), keep=keep
            ),
        )

    async def _push(self, work: _ApplyResult) -> Row:
        try:
            return {"pending": not await push(self._ports, work.intents)}
        except Conflict as error:  # it is stored all the same
            return {"refused": error.message}

    async def _work(
        self, session: ApplyTransaction, wish: ApplyRequest, objects: ConfigObjects, closed: frozenset[Realm]
    ) -> _ApplyResult | StoredReply:
        """Plan a wish and, if it is not a plan only, run the plan's writes in the transaction `session`."""
        if self._claim is not None:
            first = await session.claim(self._claim)
            if first is not None:
                return first
        planning = self._plan if wish.digest is None else self._held
        plan = await planning(session, wish, objects)
        work = _ApplyResult(plan)
        if wish.digest is None and not wish.trial:
            return work
        await in_thread(self._require_all, plan)
        if wish.digest is not None and wish.digest != plan.digest:
            raise Conflict("The data has changed since this was planned: plan again.")
        if wish.digest is None and len(plan.changes) > TRIED_MAX:
            return work
        steps = await in_thread(
            lambda: [step for planned in plan.changes for step in self._steps(planned, work.secrets, closed)]
        )
        try:
            ran = await session.run(steps)
        except StepRefused as refused:
            raise _refusal(plan, refused) from refused
        work.is_done, work.intents = True, session.intents
        work.stayed = {number: step.stays for number, step in ran.items() if step.stays}
        await session.note(
            self._owner, wish.name, plan.marks, [*plan.forgotten, *_marks_of_deleted(plan, ran)]
        )
        work.is_applied = wish.digest is not None
        if self._claim is not None:
            await session.keep(self._claim, await in_thread(_render_outcome, work))
        return work

    async def _held(self, session: ApplyTransaction, wish: ApplyRequest, objects: ConfigObjects) -> Plan:
        """Plan while other applies to the same organizations are locked out, until the transaction ends."""
        await session.hold()
        plan = await self._plan(session, wish, objects)
        if await session.hold_touched(await in_thread(_list_writes, plan)):
            plan = await self._plan(session, wish, objects)  # another apply has committed meanwhile
        return plan

    async def _plan(self, session: ApplyTransaction, wish: ApplyRequest, objects: ConfigObjects) -> Plan:
        marks = await session.marks(self._owner, wish.name, self._rows_max)
        if len(marks) > self._rows_max:
            message = (
                f"stands for more than {self._rows_max} rows: apply some of the files under another name"
            )
            raise Unprocessable(errors=(("name", message),))
        planner = Planner(session, objects, self._ports.actor, marks, self._clock(), rows_max=self._rows_max)
        return await planner.plan(prune=wish.prune, suggests=wish.digest is None)

    def _require_some(self, wish: ApplyRequest) -> None:
        """Raise `Forbidden` for a caller who may write none of the kinds to apply, before any other check."""
        kinds = [KINDS[kind] for kind in wish.objects if kind in KINDS]
        if wish.digest is None or not kinds:
            return
        written = KINDS.values() if wish.prune else kinds
        for resource in written:
            how = declared(resource)
            verbs = {CREATE, resource.patch_verb, *how.actions.values(), resource.settle_first or DELETE}
            if any(may_write(self._ports.actor, resource, verb) for verb in verbs):
                return
        require_write(self._ports.actor, kinds[0], CREATE)

    def _require_all(self, plan: Plan) -> None:
        for planned in plan.changes:
            self._require(planned)

    def _require(self, planned: PlannedRow) -> None:
        """Raise `Forbidden`, naming the object, if the caller's role may not make a planned write."""
        for verb, values in planned.writes:
            try:
                require_write(self._ports.actor, planned.resource, verb, values)
            except AdminRefusal as refused:
                where = planned.at or planned.name
                raise type(refused)(f"{refused.message} Asked for by {where}; nothing was applied.") from None

    def _steps(self, planned: PlannedRow, secrets: list[Row], closed: frozenset[Realm]) -> list[ConfigWrite]:
        """Return the writes for one planned row; append the secrets that they create to `secrets`."""
        render, resource = planned.resource.render, planned.resource
        steps = []
        for verb, said in planned.writes:
            values = said
            if verb == CREATE and resource.secret is not None:
                kept, once = mint(self._ports, resource.secret, said)
                values = {**said, **kept}
                secrets += [
                    {
                        "resource": resource.name, "name": planned.name, "at": planned.at,
                        "field": name, "value": value,
                    }
                    for name, value in once.items()
                ]  # fmt: skip
            command = Command(
                resource.name, verb, self._ports.actor, self._request_id, render, planned.row_id, values,
                closed=closed,
            )  # fmt: skip
            steps.append(ConfigWrite(planned.number, command, planned.before, planned.verb == DELETE))
        if len(steps) > 1:  # a second one finds the row as the first has left it
            steps[1:] = [replace(step, before={}) for step in steps[1:]]
        return steps


def _list_writes(plan: Plan) -> list[tuple[str, int | None, Row]]:
    """Return the planned writes as kind, row id and values."""
    return [
        (planned.resource.name, planned.row_id, {**planned.by, **values})
        for planned in plan.changes
        for _, values in planned.writes
    ]


def _render_outcome(work: _ApplyResult) -> dict[str, object]:
    """Return the answer to a plan or apply, without the secrets that are shown once."""
    plan = work.plan
    changes = [
        {**change.render(), "stays": change.stays or work.stayed.get(change.number, "")}
        for change in plan.changes
    ]
    return {
        "digest": plan.digest,
        "changes": changes,
        "unchanged": plan.unchanged,
        "noted": sum(isinstance(mark.row_id, int) for mark in plan.marks),
        "forgotten": len(plan.forgotten),
        "taken": [
            {"resource": row.resource.name, "name": row.name, "at": row.at, "id": row_id}
            for row, row_id in plan.taken[:TAKEN_SHOWN_MAX]
        ],
        "taken_count": len(plan.taken),
        "tried": work.is_done and not work.is_applied,
        "applied": work.is_applied,
        "pending": False,
        "refused": "",
        "secrets": [],
    }


def _marks_of_deleted(plan: Plan, ran: Mapping[int, ConfigWriteResult]) -> list[Mark]:
    """Return marks of the rows that the writes of a plan deleted."""
    deletions = [planned for planned in plan.changes if planned.verb == DELETE and planned.writes]
    return [
        Mark(planned.resource.name, planned.row_id, (), made=True)
        for planned in deletions
        if planned.row_id is not None and not ran[planned.number].stays
    ]


def _refusal(plan: Plan, refused: StepRefused) -> AdminRefusal:
    """Return the error of a refused write with the place of its object in the document."""
    error = refused.__cause__
    assert isinstance(error, AdminRefusal)
    planned = next(change for change in plan.changes if change.number == refused.number)
    where = planned.at or f"{planned.resource.name} {planned.name}"
    if error.errors:
        errors = tuple((f"{where}.{name}" if name else where, message) for name, message in error.errors)
        return Unprocessable("Nothing was applied.", errors)
    return type(error)(f"{where}: {error.message} Nothing was applied.")
