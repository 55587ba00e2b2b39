"""Which model a call of the past would have been sent as by the steps of budgets. Pure.

What a substitute cannot take is not in the journal: each substitute is taken to accept each call, and to use as
many tokens for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.replay.calls import PriceOfCall, StoredCall
from gateway.core.accounts.steps import (
    SESSION_KEPT_S,
    SESSIONS_MAX,
    MatchedStep,
    Weighed,
    is_reached,
    matched_steps,
    substitutes_of,
    taken_step,
)
from gateway.core.billing.price_book import folded

_KEPT_MS: Final = SESSION_KEPT_S * 1_000
# Names of models whose steps are remembered, with the budgets that apply to them.
MODELS_REMEMBERED_MAX: Final = 4_096


class Position(NamedTuple):
    """A call in one account of a budget: the budget's place, the use before it, and the limit with what is carried."""

    place: int
    used: int
    limit: int


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


class _Session(NamedTuple):
    aim: StepAim
    last_ms: int


class Steps:
    """The steps of budgets, and the models that running sessions keep. Steps name budgets by their places."""

    def __init__(self, budgets: Iterable[Budget], price: PriceOfCall) -> None:
        self._price = price
        self._steps = [budget.steps if budget.enforce else () for budget in budgets]
        self._matched: dict[tuple[tuple[int, ...], str], tuple[MatchedStep, ...]] = {}
        self._sessions: dict[int, OrderedDict[tuple[str, str], _Session]] = {}

    def aim(self, call: StoredCall, attempt: Try) -> StepAim:
        """Return what a call is sent as: the one asked for where no step of its budgets is reached, or none fits."""
        as_asked, first = StepAim("", call.cost), attempt("", call.cost)
        positions = {position.place: position for position in first.positions}
        steps = self._matching((*positions,), call.model)
        if not steps:
            return as_asked
        reached = [
            step for step in steps if not first.fits or _is_reached(positions[step.budget_id], step.parts)
        ]
        kept = self._session_aim(call) if not any(step.switches for step in reached) else None
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

    def _matching(self, places: tuple[int, ...], model: str) -> tuple[MatchedStep, ...]:
        """Return the steps of the budgets at these places that replace a model."""
        key = places, model
        matched = self._matched.get(key)
        if matched is None:
            if len(self._matched) >= MODELS_REMEMBERED_MAX:
                self._matched.clear()
            steps = tuple([(place, self._steps[place]) for place in places])
            matched = self._matched[key] = matched_steps(steps, model)
        return matched

    def _priced(self, call: StoredCall, model: str, place: int) -> StepAim | None:
        if not model:
            return StepAim("", call.cost)
        cost = self._price(call, model)
        return None if cost is None else StepAim(model, cost, place)

    def _least(self, call: StoredCall, reached: Sequence[MatchedStep]) -> StepAim | None:
        """Return the aim that costs least, of those with a price."""
        costs = {name: self._price(call, name) for name in substitutes_of(reached)}
        taken = taken_step(
            Weighed(step, (cost,)) for step in reached if (cost := costs.get(step.substitute)) is not None
        )
        return None if taken is None else self._priced(call, taken.substitute, taken.budget_id)

    def _session_aim(self, call: StoredCall) -> StepAim | None:
        """Return what the session of a call got, if its last call came within the hour before."""
        session = self._sessions.get(call.tenant_id, OrderedDict()).get((call.session, folded(call.model)))
        return session.aim if session is not None and call.at_ms - session.last_ms <= _KEPT_MS else None

    def _keep(self, call: StoredCall, aim: StepAim) -> None:
        """Remember the aim of a session's call, and forget sessions without a call for an hour."""
        if not call.session or call.session_is_trace:
            return  # each call may have a trace of its own
        name = call.session, folded(call.model)
        sessions = self._sessions.setdefault(call.tenant_id, OrderedDict())
        while sessions and call.at_ms - next(iter(sessions.values())).last_ms > _KEPT_MS:
            sessions.popitem(last=False)
        if name in sessions or len(sessions) < SESSIONS_MAX:
            sessions[name] = _Session(aim, call.at_ms)
            sessions.move_to_end(name)


def _is_reached(position: Position, parts: int) -> bool:
    return is_reached(parts, position.used, position.limit)
