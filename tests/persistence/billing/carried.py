"""Debt that plans carry on, counted by another way: of each movement as it was seen, and of what was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.core.accounts.outbox import EventFlag, EventKind, OutboxEntry
from tests.persistence.scenario import Account

CARRY = "carry"


@dataclass
class Watched(Account):
    """An account that keeps what each movement of tokens left, of those that gave or took no use."""

    given: dict[int, int] = field(default_factory=dict)
    forgave: dict[int, datetime] = field(default_factory=dict)

    def emit(self, kind: EventKind, flags: EventFlag, **facts: object) -> OutboxEntry:
        event = super().emit(kind, flags, **facts)
        if flags & EventFlag.TOKENS and kind != EventKind.CONSUME and self.total is not None:
            self.given[event.seq] = event.remaining
        if kind == EventKind.RESET and b"forgiven" in event.metadata:
            self.forgave[event.seq] = datetime.fromtimestamp(event.at_ms / 1000, UTC)
        return event


@dataclass
class LateTokens:
    """Tokens that were told after they were used; `seq` is the movement where they moved the quota."""

    at: datetime
    tokens: int
    told: datetime
    seq: int | None = None
    # When what is taken back of an event had moved a quota.
    counted: datetime | None = None

    def is_of(self, since: datetime, until: datetime) -> bool:
        return since <= self.at < until or (self.counted is not None and since <= self.counted < until)


@dataclass(eq=False)
class Lot:
    """What a plan took on as debt of one before: from a movement on, of a time, up to where that ended.

    `last` is the movement that took the plan carrying it; `had`: the one behind it has it whole.
    """

    first: int
    since: datetime
    until: datetime
    end: int | None = None
    last: int | None = None
    had: bool = False


@dataclass
class Carried:
    """All debt that was carried on."""

    lots: list[Lot] = field(default_factory=list)
    told: list[LateTokens] = field(default_factory=list)
    account: Watched = field(default_factory=lambda: Watched(0, 0))
    # Resets that came with another plan: what they gave was gone at once.
    passing: set[int] = field(default_factory=set)
    # When a plan came, or was changed, and whether it carries from then on.
    plans: list[tuple[datetime, bool]] = field(default_factory=list)
    changes: list[tuple[datetime, bool]] = field(default_factory=list)

    def end(self, seq: int, last: int | None = None, *, had: bool = False) -> None:
        for lot in self.lots:
            if lot.end is None:
                lot.end, lot.last, lot.had = seq, last, had

    def of(self, lot: Lot) -> int | None:
        """What is its own of the debt that was left, the newest paid back first; None while it is carried."""
        if lot.end is None:
            return None
        together = [each for each in self.lots[: self.lots.index(lot) + 1] if each.end == lot.end]
        since = min(each.since for each in together)
        mine = self._up_to(lot, since)
        return max(0, mine - self._up_to(together[-2], since)) if len(together) > 1 else mine

    def goes_on(self, at: datetime) -> bool:
        """Whether what was used at a time is debt still."""
        states = sorted(self.plans + self.changes, key=lambda each: each[0])
        before = [carries for since, carries in states if since <= at]
        return (
            bool(states)
            and states[-1][1]
            and (not before or before[-1])
            and all(carries for since, carries in self.plans if since > at)
            and all(when <= at for when in self.account.forgave.values())
        )

    def _up_to(self, lot: Lot, since: datetime) -> int:
        """What nothing has paid back of all debt there was as a lot began."""
        assert lot.end is not None
        mine = [each for each in self.told if each.is_of(since, lot.until)]
        left = [
            sum(each.tokens for each in mine if each.seq is None or each.seq > seq) - remaining
            for seq, remaining in self.account.given.items()
            if (lot.first <= seq < lot.end and seq not in self.passing) or seq == lot.last
        ]
        return 0 if lot.had else max(0, min(left))
