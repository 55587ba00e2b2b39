"""What an upstream can take, as its operator states it, and who has which share of that. Pure.

An account is an upstream, or one model of it that has limits of its own there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.model import INTERACTIVE

SHARES_MAX: Final = 2_000
WEIGHT_MAX: Final = 1_000


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
