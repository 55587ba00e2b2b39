"""Which model a call of the past would have been sent as by the steps of budgets. Pure.

What a substitute cannot take is not in the journal: each substitute is taken to accept each call, and to use as
many tokens for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from fractions import Fraction
from operator import itemgetter
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import Budget, is_of
from gateway.core.accounts.replay.calls import PriceOfCall, StoredCall
from gateway.core.billing.price_book import folded
from gateway.core.times import HOUR_MS

# Sessions of a tenant whose model is kept; a further one is as with `switch`.
SESSIONS_MAX: Final = 100_000
# Names of models whose steps are remembered, a budget.
MODELS_REMEMBERED_MAX: Final = 4_096


class Position(NamedTuple):
    """A call in one account of a budget: the budget's place, the use before it, and the limit with what is carried."""

    place: int
    used: int
    limit: int | None


class StepTrial(NamedTuple):
    """A call as one model: whether all budgets have room for it, and its positions in those with steps."""

    fits: bool
    positions: tuple[Position, ...]


# Tries a call as a model, empty for the one asked for, at a cost.
Try = Callable[[str, int], StepTrial]


class StepAim(NamedTuple):
    """The model that a call is sent as, empty for the one asked for, its cost, and the place of the budget behind it."""

    model: str
    cost: int
    place: int = -1


class _Reach(NamedTuple):
    """A step for a model: reached from the part `at` of a limit on."""

    at: Fraction
    substitute: str
    switches: bool


class _Session(NamedTuple):
    aim: StepAim
    last_ms: int


class Steps:
    """The steps of budgets, and the models that running sessions keep."""

    def __init__(self, budgets: Iterable[Budget], price: PriceOfCall) -> None:
        self._price = price
        self._steps = [budget.steps if budget.enforce else () for budget in budgets]
        self._known: dict[tuple[int, str], tuple[_Reach, ...]] = {}
        self._sessions: dict[int, OrderedDict[tuple[str, str], _Session]] = {}

    def aim(self, call: StoredCall, attempt: Try) -> StepAim:
        """Return what a call is sent as: the one asked for where no step of its budgets is reached, or none fits."""
        as_asked, first = StepAim("", call.cost), attempt("", call.cost)
        steps = [
            (position, reach)
            for position in first.positions
            for reach in self._reaches(position.place, call.model)
        ]
        if not steps:
            return as_asked
        reached = [
            (position.place, reach)
            for position, reach in steps
            if not first.fits or _is_reached(position, reach.at)
        ]
        kept = self._kept(call) if not any(reach.switches for _, reach in reached) else None
        if kept is not None:
            kept = self._priced(call, kept.model, kept.place)
        if kept is not None and (attempt(kept.model, kept.cost).fits if kept.model else first.fits):
            aim = kept
        else:
            best = self._least(call, reached)
            aim = best if best is not None and attempt(best.model, best.cost).fits else as_asked
        if aim.model or first.fits:
            self._keep(call, aim)
        return aim

    def _reaches(self, place: int, model: str) -> tuple[_Reach, ...]:
        """Return the steps of a budget that replace a model, with the substitutes."""
        known = self._known.get((place, model))
        if known is None:
            if len(self._known) >= MODELS_REMEMBERED_MAX:
                self._known.clear()
            known = self._known[place, model] = tuple([
                _Reach(Fraction(str(step.at)), name, step.switches)
                for step in self._steps[place]
                if (name := substitute(step.models, model))
            ])  # fmt: skip
        return known

    def _priced(self, call: StoredCall, model: str, place: int) -> StepAim | None:
        if not model:
            return StepAim("", call.cost)
        cost = self._price(call, model)
        return None if cost is None else StepAim(model, cost, place)

    def _least(self, call: StoredCall, reached: Iterable[tuple[int, _Reach]]) -> StepAim | None:
        """Return the aim that costs least; of equal ones that of the first budget, and its greatest step."""
        aims = [
            ((aim.cost, place, -reach.at), aim)
            for place, reach in reached
            if (aim := self._priced(call, reach.substitute, place)) is not None
        ]
        return min(aims, key=itemgetter(0))[1] if aims else None

    def _kept(self, call: StoredCall) -> StepAim | None:
        """Return what the session of a call got, if its last call came within the hour before."""
        session = self._sessions.get(call.tenant_id, OrderedDict()).get((call.session, folded(call.model)))
        return session.aim if session is not None and call.at_ms - session.last_ms <= HOUR_MS else None

    def _keep(self, call: StoredCall, aim: StepAim) -> None:
        if not call.session or call.session_is_trace:
            return  # each call may have a trace of its own
        name = call.session, folded(call.model)
        sessions = self._sessions.setdefault(call.tenant_id, OrderedDict())
        while sessions and call.at_ms - next(iter(sessions.values())).last_ms > HOUR_MS:
            sessions.popitem(last=False)
        if name in sessions or len(sessions) < SESSIONS_MAX:
            sessions[name] = _Session(aim, call.at_ms)
            sessions.move_to_end(name)


def _is_reached(position: Position, at: Fraction) -> bool:
    return position.limit is not None and position.used * at.denominator >= position.limit * at.numerator


def substitute(models: Iterable[tuple[str, str]], model: str) -> str:
    """Return the model that replaces `model`: that of the whole name, else of the longest beginning; "" for none."""
    substitutes = [
        (not pattern.endswith("*"), len(pattern), name) for pattern, name in models if is_of(model, pattern)
    ]
    return max(substitutes)[2] if substitutes else ""
