"""Holds and settlements as the keeper meets them again: expired, or arriving late."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.core.model import Caller, Service


class ReclaimPolicy(StrEnum):
    """What a call costs that nobody settled: what was seen of it, nothing, or all it held."""

    CHARGE_OBSERVED = "charge_observed"
    RELEASE = "release"
    CHARGE_HOLD = "charge_hold"


@dataclass(frozen=True, slots=True)
class Charge:
    """What a call is charged: all zero is nothing."""

    tokens: int = 0
    credits: int = 0
    units: int = 0


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """A hold whose deadline passed: `held` tokens taken for it, `observed` seen of its call.

    A `lease` is no call's, and charged nothing.
    """

    request_id: str
    caller: Caller
    user: str
    service: Service
    observed: int
    credits: int
    units: int
    created_ms: int
    held: int = 0
    lease: bool = False

    def charge(self, policy: ReclaimPolicy) -> Charge:
        """What the call is charged when its hold is taken back."""
        if self.lease:
            return Charge()
        if policy == ReclaimPolicy.CHARGE_HOLD:
            return Charge(max(self.held, self.observed), self.credits, self.units)
        if policy == ReclaimPolicy.RELEASE or not self.observed:
            return Charge()
        return Charge(self.observed, self.credits, self.units)


@dataclass(frozen=True, slots=True)
class LateSettlement:
    """A settlement whose hold was gone. `charged` is what a reclaim had charged for it already."""

    partition: int
    entry_id: bytes
    request_id: str
    caller: Caller
    user: str
    service: Service
    tokens: int
    credits: int
    units: int
    attribution: str
    metadata: bytes
    charged: int
