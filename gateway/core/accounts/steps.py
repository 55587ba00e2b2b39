"""The steps of a budget: from which part of its amount on calls of a model are sent as another model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KEEP, SWITCH = SESSIONS = ("keep", "switch")
# Most steps of a budget, and most patterns of a step.
STEPS_MAX: Final = 20
MODELS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Step:
    """One step: once used and held amounts are `at` of the limit or more, `models` are replaced.

    `models` are pairs of a pattern and the name of the substitute. With `switches` running sessions change
    their model too.
    """

    at: float
    models: tuple[tuple[str, str], ...]
    switches: bool = False
