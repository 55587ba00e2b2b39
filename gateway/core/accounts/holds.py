"""Holds and settlements as the keeper meets them again: expired, or arriving late."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.core.model import UNSETTLED_CHARGED, Settlement


# Movements that were acknowledged, by their place in their account: what a loss is counted from.
@dataclass(frozen=True, slots=True)
class MovementRange:
    """Movements `first_seq` to `last_seq` of an account, acknowledged under an epoch.

    `account` is `tenant:<id>`, `credits:<organization id>` or `spend:<organization id>`.
    """

    account: str
    partition: int
    epoch: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What Redis forgot of an account's epoch: `recovered` by somebody's evidence, `lost` without any.

    `more` of these are lost than were counted before; below 0 where evidence came late.
    """

    account: str
    epoch: int
    first_seq: int
    last_seq: int
    recovered: int
    lost: int
    more: int


def movements(
    partition: int,
    tenant_id: int,
    organization_id: int,
    *,
    epoch: int,
    seq: int = 0,
    moved: int = 0,
    credit_seq: int = 0,
    spend_seq: int = 0,
) -> tuple[MovementRange, ...]:
    """Return the movements that a script's answer acknowledges; `moved` is the tenant's advance in seq."""
    found = []
    if moved:
        found.append(MovementRange(f"tenant:{tenant_id}", partition, epoch, seq - moved + 1, seq))
    if credit_seq:
        found.append(MovementRange(f"credits:{organization_id}", partition, epoch, credit_seq, credit_seq))
    if spend_seq:
        found.append(MovementRange(f"spend:{organization_id}", partition, epoch, spend_seq, spend_seq))
    return tuple(found)


class ReclaimPolicy(StrEnum):
    """What a call costs that nobody settled: what was seen of it, nothing, or all it held."""

    CHARGE_OBSERVED = "charge_observed"
    RELEASE = "release"
    CHARGE_HOLD = "charge_hold"


@dataclass(frozen=True, slots=True)
class ChargedAmounts:
    """What of a call is charged, corrections included; all zero is nothing. `reclaimed`: by what was seen.

    `over` is by how much its credits are more than it cost, in nano-credits. `weighed` is how many tokens of
    the quota its `tokens` count; None: as many. Budgets are charged `money` in nano-units, `raw_tokens` and
    `requests`.
    """

    tokens: int = 0
    credits: int = 0
    units: int = 0
    reclaimed: bool = False
    over: int = 0
    weighed: int | None = None
    money: int = 0
    raw_tokens: int = 0
    requests: int = 0

    @property
    def of_quota(self) -> int:
        """Tokens by which the quota moves."""
        return self.tokens if self.weighed is None else self.weighed


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """A hold whose deadline passed, `held` in tokens and `held_credits`; `release` would end it for nothing.

    `observed` tokens were seen of its call, worth `credits` or `units`. Where its plan weighs them, `held`
    are tokens of the quota, and `weighed` of them were seen; `taken` is then the most that a limit a minute
    gave for it. Windows of budgets hold `held_money` and `held_raw` tokens of it; what was seen costs
    `money`. The call is of `said_units`: one where its units are money. A `lease` is no call's; a hold
    without a service is of a free route, or of a call with only its head known: both are charged nothing.
    `unsettled` is there where a caller took it by the API: then that decides, not the policy.
    """

    release: Settlement
    observed: int
    credits: int
    units: int
    held: int = 0
    lease: bool = False
    held_credits: int = 0
    weighed: int | None = None
    taken: int = 0
    held_units: int = 0
    held_money: int = 0
    held_raw: int = 0
    money: int = 0
    said_units: int = 0
    unsettled: str = ""

    def charge(self, policy: ReclaimPolicy) -> ChargedAmounts:
        """Return the amounts to charge for the call when its hold is reclaimed."""
        if self.lease or not self.release.service.id:
            return ChargedAmounts()
        if self.unsettled:
            charges = self.unsettled == UNSETTLED_CHARGED
            policy = ReclaimPolicy.CHARGE_HOLD if charges else ReclaimPolicy.RELEASE
        if policy == ReclaimPolicy.CHARGE_HOLD:
            weighed = None if self.weighed is None else max(self.held, self.weighed)
            tokens = max(self.held if weighed is None else self.taken, self.observed)
            credits_, units = max(self.held_credits, self.credits), max(self.held_units, self.units)
            money, raw_tokens = max(self.held_money, self.money), max(self.held_raw, self.observed)
            return ChargedAmounts(
                tokens, credits_, units, weighed=weighed, money=money, raw_tokens=raw_tokens, requests=1
            )
        if policy == ReclaimPolicy.RELEASE or not self.observed:
            return ChargedAmounts()
        return ChargedAmounts(
            self.observed, self.credits, self.units, weighed=self.weighed,
            money=self.money, raw_tokens=self.observed, requests=1,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LateSettlement:
    """A settlement whose hold was gone, by its entry of the late queue.

    `charged` is not 0 where a reclaim has charged it already. `acknowledged` says what it moved when a Redis
    that may have forgotten it acknowledged it. `raw` is all of it, as a settlement log keeps a record.
    """

    entry_id: bytes
    settlement: Settlement
    charged: int
    acknowledged: tuple[MovementRange, ...] = ()
    raw: bytes = b""


# What the id and the bytes of a dead letter begin with that is a late settlement; its request id follows.
LETTER: Final = b"late:"
_REQUEST_END: Final = len(LETTER) + 36


class Verb(StrEnum):
    """How a late settlement ends: charged as it is, by what a reclaim did not, or not at all."""

    POST = "post"
    CORRECT = "correct"
    DROP = "drop"


@dataclass(frozen=True, slots=True, eq=False)
class LateResolution:
    """What becomes of a late settlement, and what moves by it: nothing where it is dropped."""

    late: LateSettlement
    verb: Verb
    used: ChargedAmounts = ChargedAmounts()


def letter_of(late: LateSettlement) -> bytes:
    """Return a late settlement as the bytes of a dead letter."""
    return LETTER + late.settlement.request_id.encode() + late.raw


def read_letter(raw: bytes) -> tuple[str, bytes] | None:
    """Return the request id of such bytes, and the settlement as a log keeps it; None of an entry's bytes."""
    if not raw.startswith(LETTER):
        return None
    return raw[len(LETTER) : _REQUEST_END].decode(), raw[_REQUEST_END:]


def correction_id(request_id: str) -> str:
    """Return the id of a request's one correction: its own with the version nibble set to 8."""
    return f"{request_id[:14]}8{request_id[15:]}"


def refund_id(request_id: str) -> str:
    """Return the id of the one intent that gives a request's credits back: version nibble 9."""
    return f"{request_id[:14]}9{request_id[15:]}"
