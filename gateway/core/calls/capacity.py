"""The capacity of an upstream, as its operator states it, and the shares of organizations in it. Pure.

An account is an upstream, or one of its models with limits of its own.
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
    """The limits that all calls of an account share; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of an upstream, and of models with their own limits, whose calls count there alone.

    With `learned`, each model has an account with the limits that answers to its calls state.
    """

    limits: CapacityLimits = CapacityLimits()
    models: tuple[tuple[str, CapacityLimits], ...] = ()
    learned: bool = False

    def of(
        self, model: str, learned: LearnedLimits | None = None, keys: int = 1
    ) -> tuple[str, CapacityLimits]:
        """Return the limits that apply to calls of a model, and the model whose account counts these calls.

        The model is empty if the upstream's common account counts them. `learned` are limits that the
        upstream's answers stated, `keys` is the number of its credentials.
        """
        for name, limits in self.models:
            if name == model:
                return name, limits
        if self.learned and learned is not None:
            return model, learned.of(model, keys)
        return "", self.limits


class LearnedLimits:
    """The limits that an upstream's answers state, by model and key; the last statement counts."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, dict[int, CapacityLimits]] = {}

    def note(self, model: str, key: int, requests: int, tokens: int) -> None:
        """Store the requests and tokens a minute that an answer states as limits; 0 means not stated.

        `key` is the position of the credential that the call used.
        """
        said = self._said.get(model)
        if said is None:
            if len(self._said) >= MODELS_MAX:
                return
            said = self._said[model] = {}
        said[key] = CapacityLimits(min(requests, PER_MINUTE_MAX), min(tokens, PER_MINUTE_MAX))

    def of(self, model: str, keys: int) -> CapacityLimits:
        """Return the limits of all credentials together; `keys` is their number.

        A credential whose limits are unknown counts as the average of the others.
        """
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
    """A part of an upstream's capacity for an organization, or for one tenant (`tenant_id` not 0).

    An empty `model` means all models. The minute limits are guaranteed (0 for none), the rest is shared by
    `weight`, and `priority` is the highest priority of its calls.
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
        """The name of this share in the counters of capacity: `o7` for an organization, `t7` for a tenant."""
        return f"t{self.tenant_id}" if self.tenant_id else f"o{self.organization_id}"

    def is_batch(self, caller: Caller, claimed: str) -> bool:
        """Return whether a call has batch (low) priority, by `claimed` in its header, its key or share."""
        return BATCH in {claimed or caller.priority, self.priority}


class ShareTable:
    """All shares. A tenant's share goes before its organization's, and a model's before one of all models.

    An organization without a share has weight 1.
    """

    __slots__ = ("_shares", "known")

    def __init__(self, shares: Sequence[Share] = ()) -> None:
        self.known = shares
        self._shares = {(one.upstream, one.model, one.organization_id, one.tenant_id): one for one in shares}

    def of(self, upstream: str, model: str, caller: Caller) -> Share:
        """Return the share (part of an upstream's capacity) that a caller's calls of a model count to."""
        for tenant_id in (caller.tenant_id, 0):
            for of_model in (model, ""):
                found = self._shares.get((upstream, of_model, caller.organization_id, tenant_id))
                if found is not None:
                    return found
        return Share(upstream, model, caller.organization_id)


# Questions and notices to an account, as the Lua script `share` reads them.
@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """A call's request for capacity: its share, its `need` of tokens, and if `more` of the share wait."""

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
    """The part of an ended call's capacity that it did not use; below 0 it used more.

    `by` is 1 if the call was admitted by its weight, 2 if by its guarantee.
    """

    share: str
    by: int
    weight: int
    requests: int
    tokens: int
