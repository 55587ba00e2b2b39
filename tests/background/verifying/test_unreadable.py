"""Accounts that no program can read are rebuilt from rows and holds, once a person asks and nothing can be lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace

import pytest

from gateway.background.verifying.unreadable import UnreadableAccounts
from gateway.core.accounts.budgets import account_of
from gateway.core.layout import EARLIER, FORMS
from gateway.core.model import Verdict
from gateway.core.processes import Program
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import states
from gateway.counters.layouts.states import unpack_windows
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict, CountersUnavailable, NotFound
from gateway.run.lifecycle import this_program
from persistence.keeper.verification import BudgetUses, LedgerReader
from tests.background.backend import Backend, backend_at
from tests.background.verifying.test_budget_rebuild import BudgetWorld
from tests.builders import World

KEEPER, GATEWAY = this_program("keeper"), this_program("gateway")
USED, HELD = 30, 10  # tokens of settled calls, and of one in flight


@dataclass
class Scene:
    """An organization with a budget of tokens, after calls that are rows and one that is in flight."""

    backend: Backend
    world: World
    budget: str
    programs: list[Program]

    def rebuilding(self, counters: KeeperCounters | None = None) -> UnreadableAccounts:
        async def running() -> list[Program]:
            return self.programs

        target = counters or self.backend.counters
        truths = LedgerReader(self.backend.engine, partition_of)
        return UnreadableAccounts(truths, lambda _: target, running, partition_of, looks_max=1)

    async def rebuild(self, counters: KeeperCounters | None = None) -> Mapping[str, int]:
        return await self.rebuilding(counters).rebuild(self.world.caller.organization_id)

    @property
    def names(self) -> dict[str, str]:
        """The keys of the organization's accounts, by the letters of their kinds."""
        caller, p = self.world.caller, self.world.p
        return {
            "t": keys.tenant_state(p, caller.tenant_id),
            "o": keys.organization_state(p, caller.organization_id),
            "k": keys.key_state(p, caller.key_id),
            "b": keys.budget_account(p, self.budget),
        }

    def stored(self) -> dict[str, bytes]:
        found = {kind: self.world.get(name) for kind, name in self.names.items()}
        return {kind: raw for kind, raw in found.items() if raw is not None}

    def spoil(self, *kinds: str) -> dict[str, bytes]:
        """Store accounts as a tree did that had a field less."""
        for kind in kinds:
            raw = self.world.get(self.names[kind])
            assert raw is not None
            self.world.client.set(self.names[kind], raw[:-8])
        return self.stored()

    def amounts(self) -> list[tuple[int, int]]:
        """The used and held tokens of the tenant and of the budget."""
        stored = self.stored()
        tenant, [window] = states.unpack(states.TenantState, stored["t"]), unpack_windows(stored["b"])
        return [(tenant.used, tenant.held), (window.used, window.held)]


@pytest.fixture
async def scene(valkey: str, migrated: str) -> AsyncIterator[Scene]:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(1000)
        organization_id = world.caller.organization_id
        await backend.made(
            "budgets", organization_id=organization_id, name="tokens", unit="tokens", amount=1000,
            interval="total",
        )  # fmt: skip
        await backend.push()
        [budget] = (await BudgetUses(backend.engine).budgets([organization_id]))[organization_id]
        owner = BudgetWorld(backend, world, (budget,))
        for _ in range(3):
            owner.reserve(0).settle(USED // 3, budget_tokens=USED // 3)
        await backend.flush()
        owner.reserve(0)
        yield Scene(backend, world, account_of(organization_id, budget), [KEEPER, GATEWAY])


@pytest.mark.parametrize("kinds", ["t", "o", "k", "b", "tb", "tokb"])
async def test_unreadable_accounts_are_rebuilt_from_rows_and_holds_and_all_others_stay(
    scene: Scene, kinds: str
) -> None:
    before = scene.stored()
    assert scene.amounts() == [(USED, HELD)] * 2
    scene.spoil(*kinds)
    assert await scene.rebuild() == dict.fromkeys(kinds, 1)
    assert scene.amounts() == [(USED, HELD)] * 2
    after = scene.stored()
    others = before.keys() - set(kinds)
    assert {kind: after[kind] for kind in others} == {kind: before[kind] for kind in others}
    assert scene.world.reserve(1).verdict is Verdict.ADMITTED
    assert await scene.rebuild() == {}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Program("g", "gateway", "1.0.0", EARLIER, "web-7", 0.0), "gateway 1.0.0 on web-7"),
        (replace(KEEPER, id="k", host="web-8", forms=f"not {FORMS}"), "on web-8"),
        (replace(KEEPER, id="k", host="web-9", forms="", waits=True), "on web-9"),
    ],
)
async def test_a_rebuild_is_refused_by_name_while_another_layout_runs(
    scene: Scene, other: Program, named: str
) -> None:
    spoiled = scene.spoil("t", "b")
    scene.programs.append(other)
    with pytest.raises(Conflict, match=named):
        await scene.rebuild()
    assert scene.stored() == spoiled


async def test_a_rebuild_is_refused_while_the_list_of_programs_names_no_keeper(scene: Scene) -> None:
    scene.programs.remove(KEEPER)
    with pytest.raises(Conflict, match="names no keeper"):
        await scene.rebuild()


async def test_a_rebuild_is_refused_while_entries_of_the_organization_wait(scene: Scene) -> None:
    scene.world.reserve(20).settle(20)
    spoiled = scene.spoil("t")
    with pytest.raises(Conflict, match="wait in the outbox: 1"):
        await scene.rebuild()
    assert scene.stored() == spoiled
    await scene.backend.flush()
    await scene.rebuild()
    assert scene.amounts()[0] == (USED + 20, HELD)


async def test_a_rebuild_is_refused_while_entries_of_the_organization_are_in_quarantine(scene: Scene) -> None:
    caller, p = scene.world.caller, scene.world.p
    scene.world.client.xadd(keys.parked_entries(p, caller.organization_id), {"e": b"an entry"})
    spoiled = scene.spoil("t")
    with pytest.raises(Conflict, match="release its accounts from quarantine"):
        await scene.rebuild()
    assert scene.stored() == spoiled


async def test_a_rebuild_is_refused_while_a_gateway_has_yet_to_send_its_log(scene: Scene) -> None:
    scene.backend.rows("insert into gateway_worker (worker_slot) values ('a-slot') returning 1 as n")
    spoiled = scene.spoil("t")
    with pytest.raises(Conflict, match="a-slot"):
        await scene.rebuild()
    assert scene.stored() == spoiled


async def test_a_rebuild_is_refused_while_the_partition_is_not_verified(scene: Scene) -> None:
    scene.spoil("t")
    scene.world.client.delete(keys.marker(scene.world.p))
    with pytest.raises(CountersUnavailable):
        await scene.rebuild()


async def test_a_rebuild_of_an_unknown_organization_is_refused(scene: Scene) -> None:
    with pytest.raises(NotFound, match="no organization 999"):
        await scene.rebuilding().rebuild(999)


class Killed(KeeperCounters):
    """Counters of a keeper that is killed after it wrote the first account."""

    async def replace_states(
        self, partition: int, marker: bytes, before: Mapping[str, bytes], written: Iterable[tuple[str, bytes]]
    ) -> list[str]:
        first = next(one for one in written if one[0] in before)
        await super().replace_states(partition, marker, before, [first])
        raise CountersUnavailable


async def test_a_rebuild_that_ends_in_the_middle_is_finished_by_the_next_rebuild(scene: Scene) -> None:
    scene.spoil("t", "o", "b")
    with pytest.raises(CountersUnavailable):
        await scene.rebuild(Killed(scene.backend.wire))
    assert sum((await scene.rebuild()).values()) == 2
    assert scene.amounts() == [(USED, HELD)] * 2


class Overtaken(KeeperCounters):
    """Counters of a rebuild that another one overtakes: calls went on before this one writes."""

    scene: Scene

    async def replace_states(
        self, partition: int, marker: bytes, before: Mapping[str, bytes], written: Iterable[tuple[str, bytes]]
    ) -> list[str]:
        await self.scene.rebuild()
        self.scene.world.reserve(50).settle(50)
        return await super().replace_states(partition, marker, before, written)


async def test_a_rebuild_takes_no_use_back_that_came_after_another_rebuild(scene: Scene) -> None:
    scene.spoil("t", "o")
    overtaken = Overtaken(scene.backend.wire)
    overtaken.scene = scene
    assert await scene.rebuild(overtaken) == {}
    assert scene.amounts()[0] == (USED + 50, HELD)


async def test_a_keeper_forgets_unreadable_accounts_after_a_rebuild(scene: Scene) -> None:
    scene.spoil("t", "b")
    counters = scene.backend.counters
    for kind in "tb":
        counters.left_alone.note("account", scene.names[kind], "it is short")
    await counters.look_again()
    assert counters.left_alone.count("account") == 2
    await scene.rebuild()
    await counters.look_again()
    assert counters.left_alone.count("account") == 0
