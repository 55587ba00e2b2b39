"""The steps of a budget: from which part of its amount on calls of a model are sent as another model. Pure.

A step is reached once what its budget has used, and calls in flight hold, is its part of the limit in force or
more, before the call itself holds anything. Scripts judge that (`lua/lib/steps.lua`), together with whether the
call fits: where a call as asked does not fit in one of its budgets, its steps of all of them count as reached.
Of the reached steps the one at which the call would hold least is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.core.lru import LruCache, LruValue
from gateway.core.value import Value

KEEP, SWITCH = SESSIONS = ("keep", "switch")
# Sessions of a tenant whose model is kept; a further one is as with `switch`. So long after its last call, in seconds.
SESSIONS_MAX: Final = 100_000
SESSION_KEPT_S: Final = 3_600
# Most steps of a budget, and most patterns of a step.
STEPS_MAX: Final = 20
MODELS_MAX: Final = 100
# A part of a limit is counted in millionths, rounded up, so that scripts compare integers.
STEP_PARTS: Final = 1_000_000
# What scripts do by a step: tell whether it is reached, stop the call where it is, in any case, or where it is not.
STEP_TELLS, STEP_STOPS, STEP_JUDGES, STEP_REQUIRES = 0, 1, 2, 3
# Most uses that a worker remembers to have had all their steps reached.
REACHED_MAX: Final = 1_000
# Most substitutes that a worker remembers as refused by their API, and how long (ms): by session, and by key without one.
REFUSED_MAX: Final = 1_000
REFUSED_SESSION_MS: Final = SESSION_KEPT_S * 1_000
REFUSED_KEY_MS: Final = 300_000
# Bytes of the matching steps that a worker remembers, by budgets and model; bytes of an entry, and of each step in it
# (measured), without the names.
MATCHES_BYTES_MAX: Final = 16 * 1024 * 1024
ENTRY_BYTES: Final = 768
MATCH_BYTES: Final = 192
# Most lists of matching steps that a worker remembers as they are judged and packed.
MATCHES_MAX: Final = 4_096
# Most steps of all its budgets that are judged for a call, and most models of these that are weighed.
JUDGED_MAX: Final = 100
WEIGHED_MAX: Final = 20


class Step(Value, frozen=True):
    """One step: once used and held amounts are `at` of the limit or more, `models` are replaced.

    `models` are pairs of a pattern and the name of the substitute. With `switches` running sessions change
    their model too.
    """

    at: float
    models: tuple[tuple[str, str], ...]
    switches: bool = False

    @property
    def parts(self) -> int:
        """The part of the limit at which the step is reached, in millionths."""
        return int((Decimal(repr(self.at)) * STEP_PARTS).to_integral_value(ROUND_CEILING))

    def substitute_of(self, model: str) -> str:
        """Return the name of the substitute of a model, as its caller named it; empty if there is none.

        A whole name goes before beginnings, a longer beginning before a shorter one. Case is ignored.
        """
        name, best, substitute = model.lower(), -1, ""
        for written, other in self.models:
            pattern = written.lower()
            is_beginning = pattern.endswith("*")
            length = len(pattern) - 1 if is_beginning else len(name) + 1
            fits = name.startswith(pattern[:-1]) if is_beginning else name == pattern
            if fits and length > best:
                best, substitute = length, other
        return "" if substitute.lower() == name else substitute


class MatchedStep(NamedTuple):
    """A step of a budget that has a substitute for the model of a call."""

    budget_id: int
    parts: int
    substitute: str
    switches: bool


class Substitution(NamedTuple):
    """The model that the caller of a call named, and the budget whose step sends it as another one."""

    model_asked: str
    budget_id: int
    budget: str


class SessionModel(NamedTuple):
    """What the calls of a session go as, by the step of a budget; without a `model`, as they are asked."""

    model: str = ""
    budget_id: int = 0
    budget: str = ""


# The steps of budgets: the id of each budget with its steps.
BudgetSteps = tuple[tuple[int, tuple[Step, ...]], ...]


def matched_steps(steps: BudgetSteps, model: str) -> tuple[MatchedStep, ...]:
    """Return the steps that match a model, at most `JUDGED_MAX`: by the id of the budget, the greatest `at` first."""
    matched = [
        MatchedStep(budget_id, step.parts, substitute, step.switches)
        for budget_id, of_budget in steps
        for step in of_budget
        if (substitute := step.substitute_of(model))
    ]
    matched.sort(key=lambda step: (step.budget_id, -step.parts))
    return tuple(matched[:JUDGED_MAX])


class StepMatches:
    """The steps that match models, as a worker remembers them: by a version of an organization's budgets, and by ids.

    So no entry holds patterns of an earlier version, and looking one up takes the same time for steps of any length.
    """

    __slots__ = ("_matches",)

    def __init__(self, most: int = MATCHES_BYTES_MAX) -> None:
        self._matches: LruCache[tuple[Hashable, tuple[int, ...], str], LruValue[tuple[MatchedStep, ...]]] = (
            LruCache(most)
        )

    def find(self, version: Hashable, steps: BudgetSteps, model: str) -> tuple[MatchedStep, ...]:
        """Return `matched_steps` of the budgets in this version, which is equal to itself alone."""
        key = version, tuple([budget_id for budget_id, _ in steps]), model
        known = self._matches.find(key)
        if known is None:
            known = LruValue(matched_steps(steps, model))
            names = len(model) + sum([len(step.substitute) for step in known.value])
            size = ENTRY_BYTES + 40 * len(steps) + MATCH_BYTES * len(known.value) + 4 * names
            self._matches.put(key, known, size)
        return known.value


# The steps of a use, the names of its budgets' accounts, and its organization.
ReachedKey = tuple[tuple[MatchedStep, ...], tuple[str, ...], int]


class ReachedUses:
    """Uses whose steps were all reached when a script judged them last; the first is forgotten first."""

    __slots__ = ("_keys", "_most")

    def __init__(self, most: int = REACHED_MAX) -> None:
        self._keys: dict[ReachedKey, None] = {}
        self._most = most

    def __contains__(self, key: ReachedKey) -> bool:
        return key in self._keys

    def add(self, key: ReachedKey) -> None:
        """Add a use."""
        if key not in self._keys and len(self._keys) >= self._most:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = None

    def discard(self, key: ReachedKey) -> None:
        """Remove a use."""
        self._keys.pop(key, None)


# The owner of calls that a substitute refused: tenant, session if they name one, else key.
StepOwner = tuple[int, str, int]


class RefusedPart(NamedTuple):
    """The part of a call that an API refused, as its error says: a `code`, and the parameter, each perhaps empty."""

    code: str = ""
    param: str = ""

    def is_in(self, document: Mapping[str, object] | None) -> bool:
        """Return whether a body has the parameter; True where the error names none that a body can lack."""
        name = self.param.replace("[", ".").partition(".")[0]
        return not name or document is None or name in document


class RefusedSubstitutes:
    """Substitutes whose API refused a call that its caller's model then answered; the first is forgotten first."""

    __slots__ = ("_most", "_refused")

    def __init__(self, most: int = REFUSED_MAX) -> None:
        self._refused: dict[tuple[StepOwner, int, str], tuple[RefusedPart, int]] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._refused)

    def note(
        self, owner: StepOwner, by: Substitution, substitute: str, part: RefusedPart, now_ms: int
    ) -> None:
        """Remember that a substitute of a budget's step refused a `part` of an owner's call."""
        key = owner, by.budget_id, substitute
        self._refused.pop(key, None)
        if len(self._refused) >= self._most:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = part, now_ms + (REFUSED_SESSION_MS if owner[1] else REFUSED_KEY_MS)

    def find(self, owner: StepOwner, budget_id: int, substitute: str, now_ms: int) -> RefusedPart | None:
        """Return the part that a substitute refused; None if nothing is remembered."""
        part, until_ms = self._refused.get((owner, budget_id, substitute), (None, 0))
        return part if now_ms < until_ms else None


def is_reached(parts: int, used_and_held: int, limit: int) -> bool:
    """Return whether an amount is a part of a limit (millionths) or more, as `lua/lib/steps.lua` has it."""
    return used_and_held * STEP_PARTS >= parts * limit


@lru_cache(MATCHES_MAX)
def judged_by(
    steps: tuple[MatchedStep, ...], binds: int, stays: bool = False
) -> tuple[tuple[int, int, int], ...]:
    """Return steps as a request for a hold has them: the budget of each, its part, and what it does, as `STEP_…`.

    With `stays`, those that keep sessions tell alone.
    """
    return tuple([
        (step.budget_id, step.parts, binds if step.switches or not stays else STEP_TELLS) for step in steps
    ])  # fmt: skip


class Weighed(NamedTuple):
    """A reached step, and what its call would hold as its substitute: money first, then credits and tokens."""

    step: MatchedStep
    holds: tuple[int, ...]


def taken_step(weighed: Iterable[Weighed]) -> MatchedStep | None:
    """Return the step at which its call would hold least; of equal ones the smaller budget id, then the greatest `at`.

    None if there is none.
    """
    least = min(
        weighed, key=lambda step_: (step_.holds, step_.step.budget_id, -step_.step.parts), default=None
    )
    return None if least is None else least.step


def substitutes_of(steps: Sequence[MatchedStep]) -> list[str]:
    """Return the names of different substitutes in order, at most `WEIGHED_MAX`."""
    return [*dict.fromkeys([step.substitute for step in steps])][:WEIGHED_MAX]
