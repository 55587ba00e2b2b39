"""Holds and settlements as the keeper meets them again: expired, or arriving late."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.model import Caller, Service


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """A hold whose deadline passed: `observed` tokens were seen of its call."""

    request_id: str
    caller: Caller
    user: str
    service: Service
    observed: int
    credits: int
    units: int
    created_ms: int


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
