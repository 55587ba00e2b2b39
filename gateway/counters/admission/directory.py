"""What a caller is served at which terms: services, budgets and prices, of what `callers.py` knows."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.core.accounts.budgets import Asked, Budget
from gateway.core.accounts.call_budgets import CallBudgets, KnownBudgets
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.billing.vector import BASE_CURRENCY, Vector
from gateway.core.calls.call import Call
from gateway.core.model import Attribution, Caller, Service
from gateway.counters.admission.callers import KnownCallers
from gateway.counters.admission.known import BOUNDS, Bounds
from gateway.counters.admission.prices import unheard
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable


class Directory(KnownCallers):
    """Identities, terms, services, prices and weights of one worker.

    `stand_ins` says which models have another's price.
    """

    def __init__(
        self,
        wires: Wires,
        clock: Callable[[], float],
        today: Callable[[], float] = time.time,
        *,
        allowances: Allowances | None = None,
        stale_s: float = 0.0,
        bounds: Bounds = BOUNDS,
        log: Callable[..., None] = unheard,
    ) -> None:
        super().__init__(wires, clock, today, allowances=allowances, stale_s=stale_s, bounds=bounds, log=log)
        self.stand_ins: StandIns = NO_STAND_INS
        self._budgets = KnownBudgets()

    def resolve(self, caller: Caller, key: str) -> Service | None:
        """The service of a key as the caller's organization has it, for this call; None if there is none.

        ServiceNotIncluded where the organization may not use it, CountersUnavailable where its terms
        are not known: a caller just identified has them.
        """
        service = self._services.get(key)
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        return terms.resolve(service, self._today() * 1000) if service is not None else None

    def budgets(
        self, caller: Caller, service_id: int, said: Attribution, call: Call, remember: bool = True
    ) -> CallBudgets | None:
        """The budgets that a call takes from, None where it takes from none; CountersUnavailable: unknown.

        Without `remember` no other call's are forgotten for it.
        """
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        budgets = terms.budgets
        if budgets is None:
            return None
        asked = budgets.asked(caller, service_id, said, call)
        found = self._budgets.find(budgets, asked, int(self._today() * 1000), remember)
        return found if found.accounts else None

    def budgets_of(self, caller: Caller, said: Attribution) -> list[tuple[str, Budget]]:
        """The budgets that this caller's calls may take from, whatever they ask for, with their accounts."""
        terms = self._terms.find(caller.organization_id)
        if terms is None or terms.budgets is None:
            return []
        user = caller.acts_for(said.user)
        asked = Asked(caller.tenant_id, caller.key_id, 0, user, said.project_id, (), said.session)
        return terms.budgets.of_caller(asked)

    def price(self, caller: Caller, model: str, ago_s: float, own: bool = False) -> Vector | None:
        """What a model cost so many seconds ago, in the organization's currency, else in that of the base.

        None where there is no such price; with `own` in no other currency than the organization's.
        """
        terms = self._terms.find(caller.organization_id)
        currency = BASE_CURRENCY if terms is None else terms.currency
        at_ms = (self._today() - ago_s) * 1000
        found = self.prices.vector(model, currency, at_ms)
        if found is None and currency != BASE_CURRENCY and not own:
            found = self.prices.vector(model, BASE_CURRENCY, at_ms)
        return found

    def price_as(self, caller: Caller, model: str, ago_s: float, own: bool = False) -> Vector | None:
        """The same of the model that stands in for one without a price; None where none does."""
        other = self.stand_ins.of(model)
        return self.price(caller, other, ago_s, own) if other else None
