"""Random lives of one tenant against a small model: the ledger explains every state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.core.accounts.outbox import EventFlag, EventKind, OutboxEntry
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import SettleResult, Verdict
from tests.builders import Call, World
from tests.search import examples

DAY_MS = 86_400_000
TOTALS = st.one_of(st.none(), st.integers(0, 500))
AMOUNTS = st.integers(1, 300)


@dataclass(slots=True)
class Model:
    """The token account in plain words."""

    total: int | None = None
    remaining: int = 0
    used: int = 0
    policy: str = "block"
    rollover: int = 0
    next_total: int | None = None
    forgives: bool = False
    forgiven: int = 0

    def renew(self) -> None:
        carried = 0
        if self.remaining > 0:
            carried = min(self.remaining, self.rollover)
        elif self.policy == "carry" and not self.forgives:
            carried = self.remaining
        elif self.total is not None and self.policy != "bill":
            self.forgiven -= self.remaining
        self.forgives = False
        self.total, self.used = self.next_total, 0
        self.remaining = (self.total or 0) + carried

    def use(self, amount: int) -> None:
        self.used += amount
        if self.total is not None:
            self.remaining -= amount

    def correct(self, amount: int) -> None:
        """Take back use of this cycle, or of one before, whose tokens come to this one."""
        self.use(amount)
        if self.total is None:
            self.remaining -= min(0, self.used)
        self.used = max(0, self.used)

    def grant(self, amount: int) -> None:
        """While unlimited it waits for a plan with a total."""
        self.remaining += amount

    def change(self, total: int | None, policy: str, rollover: int) -> None:
        beyond = self.remaining if self.total is None else self.remaining - self.total + self.used
        if self.total is not None and self.remaining < 0 and self.policy != "carry":
            self.forgives = True
        self.total = self.next_total = total
        self.policy, self.rollover = policy, rollover
        self.remaining = beyond if total is None else total + beyond - self.used


class Life(RuleBasedStateMachine):
    """reserve, settle, extend, grant and reclaim in any order."""

    url: ClassVar[str]
    world: World

    @initialize(total=TOTALS, policy=st.sampled_from(["block", "carry", "bill"]), rollover=st.integers(0, 50))
    def begin(self, total: int | None, policy: str, rollover: int) -> None:
        self.world = World(self.url)
        self.world.client.flushdb()
        self.world = World(self.url)
        self.live: list[tuple[Call, int]] = []
        self.reclaimed: list[tuple[Call, int]] = []
        self.model = Model(total, total or 0, 0, policy, rollover, total)
        self.granted = total or 0
        self.plan_id = 1
        self.world.plan(total, reset_interval="daily", overage_policy=policy, rollover_max=rollover)

    def teardown(self) -> None:
        """Whatever happened, once nothing runs nothing is held, and the ledger explains it all."""
        if not hasattr(self, "live"):
            return
        for call, _ in self.live:
            call.release()
        assert (self.world.tenant.held, self.world.slots("ann")) == (0, [0, 0, 0, 0])
        assert self.world.deadlines() == {}
        explain(self.world)
        self.world.client.close()

    @rule(need=st.integers(0, 200), more=st.integers(0, 100))
    def reserve(self, need: int, more: int) -> None:
        before = self.world.everything()
        call = self.world.reserve(need=need, ceiling=need + more, user="ann")
        model, held = self.model, sum(held for _, held in self.live)
        free = model.remaining - held
        if model.total is None or model.policy == "bill" or need + more == 0:
            expected, hold = Verdict.ADMITTED, need
        elif model.remaining <= 0:
            expected, hold = Verdict.QUOTA_EXCEEDED, 0
        elif free <= 0:
            expected, hold = Verdict.QUOTA_HELD, 0
        else:
            expected, hold = Verdict.ADMITTED, free if free < need + more else need
        assert call.verdict is expected
        if expected is Verdict.ADMITTED:
            assert call.decision.held_tokens == hold
            self.live.append((call, hold))
        else:
            assert self.world.everything() == before

    @precondition(lambda self: self.live)
    @rule(
        at=st.integers(0, 99),
        tokens=st.integers(0, 250),
        how=st.sampled_from(["settle", "reclaim", "release"]),
    )
    def end(self, at: int, tokens: int, how: str) -> None:
        call, _ = self.live.pop(at % len(self.live))
        if how == "release":
            assert call.release() is SettleResult.DONE
            return
        end = call.settle if how == "settle" else call.reclaim
        assert end(tokens) is SettleResult.DONE
        assert call.settle(tokens) is (SettleResult.UNKNOWN if how == "settle" else SettleResult.RECLAIMED)
        if how == "settle" or tokens:
            self.model.use(tokens)
        if how == "reclaim":
            self.reclaimed.append((call, tokens))

    @precondition(lambda self: self.reclaimed)
    @rule(at=st.integers(0, 99), tokens=st.integers(0, 250))
    def settle_late(self, at: int, tokens: int) -> None:
        call, charged = self.reclaimed.pop(at % len(self.reclaimed))
        assert call.correct(tokens - charged) is SettleResult.DONE
        self.model.correct(tokens - charged)

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), observed=st.integers(0, 300))
    def extend(self, at: int, observed: int) -> None:
        at %= len(self.live)
        call, hold = self.live[at]
        held, exhausted = call.extend(observed, margin=10)
        model = self.model
        want = max(0, observed + 10 - hold)
        free = max(0, model.remaining - sum(one for _, one in self.live))
        more = want if model.total is None or model.policy == "bill" else min(want, free)
        assert (held, bool(exhausted)) == (hold + more, more < want)
        self.live[at] = call, held

    @rule(amount=AMOUNTS)
    def recharge(self, amount: int) -> None:
        self.world.grant("recharge", amount)
        self.model.grant(amount)

    @rule(amount=st.integers(-300, 300))
    def adjust(self, amount: int) -> None:
        self.world.grant("adjust", amount)
        self.model.grant(amount)

    @rule()
    def reset(self) -> None:
        self.world.grant("reset")
        self.model.renew()

    @rule()
    def due(self) -> None:
        self.world.put_tenant(next_reset=self.world.now_ms() // DAY_MS * DAY_MS)
        self.world.sweep()
        self.model.renew()

    @rule(total=TOTALS, policy=st.sampled_from(["block", "carry", "bill"]), rollover=st.integers(0, 50))
    def plan(self, total: int | None, policy: str, rollover: int) -> None:
        self.plan_id += 1
        self.world.plan(
            total, plan_id=self.plan_id, reset_interval="daily", overage_policy=policy, rollover_max=rollover
        )
        self.model.change(total, policy, rollover)

    @rule(policy=st.sampled_from(["block", "carry", "bill"]))
    def edit(self, policy: str) -> None:
        """A plan that comes to carry does so from the next cycle on."""
        model = self.model
        self.world.define_tenant(
            terms=PlanTerms(
                plan_id=self.plan_id, total_amount=model.next_total, reset_interval="daily",
                overage_policy=policy, rollover_max=model.rollover,
            )  # type: ignore[arg-type]  # as drawn
        )  # fmt: skip
        if policy == "carry" and model.policy != "carry":
            model.forgives = True
        model.policy = policy

    @invariant()
    def the_state_is_the_models(self) -> None:
        if not hasattr(self, "live"):
            return
        tenant, model = self.world.tenant, self.model
        assert (tenant.total, tenant.remaining, tenant.used, tenant.held, tenant.inflight) == (
            -1 if model.total is None else model.total,
            model.remaining,
            model.used,
            sum(held for _, held in self.live),
            len(self.live),
        )
        told = [json.loads(event.metadata or b"{}") for event in self.world.events()]
        assert sum(each.get("forgiven", 0) for each in told) == model.forgiven


def explain(world: World) -> None:
    """The ledger's chain: gapless seq, each balance the one before ± its amount, the last one the state's."""
    tenant = world.tenant
    rows = [event for event in world.events() if event.flags & EventFlag.TOKENS]
    assert [row.seq for row in rows] == list(range(1, tenant.seq + 1))
    assert rows[0].kind == EventKind.RESET
    balance, limited = 0, True
    for row in rows:
        is_limited = not row.flags & EventFlag.UNLIMITED
        if limited or is_limited:
            balance += signed(row)
            assert balance == (row.remaining if is_limited else 0)
        limited = is_limited
    assert balance == (tenant.remaining if tenant.total >= 0 else 0)
    assert [row.at_ms for row in rows] == sorted(row.at_ms for row in rows)
    used = 0
    for row in rows:
        if row.kind == EventKind.CONSUME or is_correction(row.source):
            used = max(0, used - signed(row))
        elif row.kind == EventKind.RESET:
            used = 0
        assert row.used == used


def is_correction(source: str) -> bool:
    return source[14:15] == "8"


def signed(row: OutboxEntry) -> int:
    return row.amount if row.flags & EventFlag.IN else -row.amount


def test_any_life_is_explained_by_its_ledger(valkey: str) -> None:
    Life.url = valkey
    run_state_machine_as_test(
        Life,
        settings=settings(max_examples=examples(60), stateful_step_count=40),
    )
