"""Where a call goes, and what follows from that. A call can be aimed again: nothing of an earlier aim is left."""

from __future__ import annotations

from typing import Final

from gateway.core.accounts.steps import Substitution
from gateway.core.calls.routes import ModelTarget, UpstreamFacts
from gateway.core.value import Value


class SaidBounds(Value, frozen=True):
    """What a body says of its answer: its maximum of tokens, that of its API, and whether usage is reported."""

    output_max: int | None
    output_default: int
    reports: bool


class Aim(Value, frozen=True):
    """Where a call goes: a value, which nothing changes.

    `targets` are those of its configured model in order; without them it goes to `upstream`, empty if that is
    unknown. Failures of the kinds in `fallback` lead to the next target, also if the one before may have
    worked, where the call `repeats`. `facts` are those of the upstream, or of each target. `output_max` and
    `output_default` are the bounds of `said` as these upstreams take them, and `output_least` is the smallest
    maximum that all take. `reports_each`: a usage report is about one choice. `substitution`: a step of a budget
    leads it here, to another model than its caller named.
    """

    said: SaidBounds
    targets: tuple[ModelTarget, ...] = ()
    fallback: frozenset[str] = frozenset()
    repeats: bool = False
    upstream: str = ""
    facts: tuple[UpstreamFacts, ...] = ()
    reports_each: bool = False
    output_max: int | None = None
    output_default: int = 0
    output_least: int = 1
    substitution: Substitution | None = None


UNAIMED: Final = Aim(SaidBounds(None, 0, False))
