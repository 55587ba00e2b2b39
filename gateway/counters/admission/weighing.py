"""Which weights a tenant's calls go by: those of its plan, as the catalogue has them.

Which plan a tenant follows is known from what Redis answered last: `reserve` names the plan whose weights
it went by, and is told of another. Where no plan has weights, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.accounts.weights import Weights
from gateway.core.model import HoldRequest
from gateway.counters.layouts.packing import ANY_PLAN

TENANTS_MAX = 50_000
NO_PLAN = 0
_NONE: Mapping[int, Weights] = {}


class Weighing:
    """The weights of one worker. `by_plan` has those of every plan that weighs anything."""

    __slots__ = ("_plans", "_tenants_max", "by_plan")

    def __init__(self, tenants_max: int = TENANTS_MAX) -> None:
        self.by_plan = _NONE
        self._tenants_max = tenants_max
        # Plans by tenant.
        self._plans: dict[int, int] = {}

    def load(self, millionths: Mapping[int, Mapping[str, int]]) -> None:
        """Go by what another catalogue says."""
        self.by_plan = {plan_id: Weights.of(weights) for plan_id, weights in millionths.items() if weights}

    def plan_of(self, request: HoldRequest) -> int:
        """The plan a call is taken to be of; any, where weights change nothing about it."""
        if not self.by_plan or not request.service.counts_tokens:
            return ANY_PLAN
        return self._plans.get(request.caller.tenant_id, NO_PLAN)

    def learn(self, tenant_id: int, plan_id: int) -> None:
        """A tenant follows this plan."""
        if len(self._plans) >= self._tenants_max and tenant_id not in self._plans:
            del self._plans[next(iter(self._plans))]
        self._plans[tenant_id] = plan_id
