"""What an upstream can take, as its operator states it, and who has which share of that. Pure.

An account is an upstream, or one model of it that has limits of its own there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.model import BATCH, INTERACTIVE, Caller

SHARES_MAX: Final = 2_000
WEIGHT_MAX: Final = 1_000
MODELS_MAX: Final = 100
PER_MINUTE_MAX: Final = 10**12


@dataclass(frozen=True, slots=True)
class CapacityLimits:
    """What all calls of an account may use together; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of an upstream, and of models that have their own: calls of these count there alone.

    Where they are `learned`, each model has an account by what answers to its calls say of limits.
    """

    limits: CapacityLimits = CapacityLimits()
    models: tuple[tuple[str, CapacityLimits], ...] = ()
    learned: bool = False

    def of(
        self, model: str, learned: LearnedLimits | None = None, keys: int = 1
    ) -> tuple[str, CapacityLimits]:
        """Return the model whose account a call takes from, empty for the upstream's own, and its limits."""
        for name, limits in self.models:
            if name == model:
                return name, limits
        if self.learned and learned is not None:
            return model, learned.of(model, keys)
        return "", self.limits


class LearnedLimits:
    """What answers of an upstream said of its limits, by model and by key, each the last that was said."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, dict[int, CapacityLimits]] = {}

    def note(self, model: str, key: int, requests: int, tokens: int) -> None:
        """Store the limits stated for a key of a model, for the next calls; 0 is none stated."""
        said = self._said.get(model)
        if said is None:
            if len(self._said) >= MODELS_MAX:
                return
            said = self._said[model] = {}
        said[key] = CapacityLimits(min(requests, PER_MINUTE_MAX), min(tokens, PER_MINUTE_MAX))

    def of(self, model: str, keys: int) -> CapacityLimits:
        """Return the limits of all keys together; a key without stated ones counts as the average."""
        said = self._said.get(model)
        if not said:
            return CapacityLimits()
        requests, tokens = (
            sum(of) * keys // len(of) if all(of := [getattr(one, name) for one in said.values()]) else 0
            for name in ("requests_per_minute", "tokens_per_minute")
        )
        return CapacityLimits(requests, tokens)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of an upstream's capacity, of an organization or (`tenant_id` not 0) of one tenant.

    An empty `model` is every model. Of what others leave, it has a part by its `weight`; what is guaranteed
    is 0 where nothing is. `priority` is the highest that its calls have.
    """

    upstream: str
    model: str
    organization_id: int
    tenant_id: int = 0
    weight: int = 1
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    priority: str = INTERACTIVE

    @property
    def name(self) -> str:
        """What it is called in its account."""
        return f"t{self.tenant_id}" if self.tenant_id else f"o{self.organization_id}"

    def is_batch(self, caller: Caller, claimed: str) -> bool:
        """Return whether a call is one of a batch: by what it claims, by its key, or by its share."""
        return BATCH in {claimed or caller.priority, self.priority}


class ShareTable:
    """Whose share a call is of: its tenant's before its organization's, its model's before one of all models.

    Who has none shares with weight 1, organization by organization.
    """

    __slots__ = ("_shares", "known")

    def __init__(self, shares: Sequence[Share] = ()) -> None:
        self.known = shares
        self._shares = {(one.upstream, one.model, one.organization_id, one.tenant_id): one for one in shares}

    def of(self, upstream: str, model: str, caller: Caller) -> Share:
        """Return the share of a call."""
        for tenant_id in (caller.tenant_id, 0):
            for of_model in (model, ""):
                found = self._shares.get((upstream, of_model, caller.organization_id, tenant_id))
                if found is not None:
                    return found
        return Share(upstream, model, caller.organization_id)


# Questions to an account, and news for it, as `share` reads them.
@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """One call that asks: its share, `need` of tokens, and whether `more` of its share wait behind it."""

    id: str
    share: str
    weight: int
    requests: int
    tokens: int
    batch: int
    need: int
    more: int


@dataclass(frozen=True, slots=True)
class CapacityEnd:
    """The part of its hold that a call did not use, let in `by` 1 or 2 as answered; below 0 it used more."""

    share: str
    by: int
    weight: int
    requests: int
    tokens: int
