"""Holds that expired and settlements that arrive late, as a keeper handles them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.core.model import UNSETTLED_CHARGED, Settlement


@dataclass(frozen=True, slots=True)
class MovementRange:
    """The movements `first_seq` to `last_seq` of an account, acknowledged under an epoch.

    `account` is `tenant:<id>`, `credits:<organization id>` or `spend:<organization id>`.
    """

    account: str
    partition: int
    epoch: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Movements of an account's epoch that Redis lost: `recovered` have evidence elsewhere, `lost` have none.

    `more` is how many more are lost than at the last count; negative if evidence came late.
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
    """Return the ranges of ledger movements, by account, that the answer of a Redis script confirms.

    `seq`, `credit_seq` and `spend_seq` are the numbers of the last movements of tokens, credits and
    spend; 0 for none. `moved` is how many numbers the tenant's account advanced.
    """
    found = []
    if moved:
        found.append(MovementRange(f"tenant:{tenant_id}", partition, epoch, seq - moved + 1, seq))
    if credit_seq:
        found.append(MovementRange(f"credits:{organization_id}", partition, epoch, credit_seq, credit_seq))
    if spend_seq:
        found.append(MovementRange(f"spend:{organization_id}", partition, epoch, spend_seq, spend_seq))
    return tuple(found)


class ReclaimPolicy(StrEnum):
    """What an unsettled call is charged: its observed use, nothing, or all that it held."""

    CHARGE_OBSERVED = "charge_observed"
    RELEASE = "release"
    CHARGE_HOLD = "charge_hold"


@dataclass(frozen=True, slots=True)
class ChargedAmounts:
    """The charge of a call, corrections included; all zero is nothing. `reclaimed`: charged by observed use.

    `over` is how much its credits exceed its cost, in nano-credits. `quota_tokens` is the number of quota tokens
    that `tokens` count as; None means the same number. Budgets are charged `money` in nano-units,
    `budget_tokens` and `requests`.
    """

    tokens: int = 0
    credits: int = 0
    units: int = 0
    reclaimed: bool = False
    over: int = 0
    quota_tokens: int | None = None
    money: int = 0
    budget_tokens: int = 0
    requests: int = 0

    @property
    def of_quota(self) -> int:
        """The tokens charged to the quota: weighed ones if the plan weighs kinds of tokens."""
        return self.tokens if self.quota_tokens is None else self.quota_tokens


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """A hold past its deadline, with `held` tokens and `held_credits`. `release` would end it at no charge.

    `observed` tokens were seen of its call, worth `credits` or `units`. If the plan weighs tokens, `held` and
    `quota_tokens` are quota tokens held and observed, and `taken` is the most that a limit per minute reserved.
    Budgets hold `held_money` and `held_budget_tokens` tokens; the observed use costs `money`. The call counts
    `said_units`: one if its units are money. A `lease` belongs to no call. A hold without a service is of a
    free route, or of a call that broke off after its head. Both are charged nothing. `unsettled` is set if a
    caller took the hold by the API, and then replaces the policy.
    """

    release: Settlement
    observed: int
    credits: int
    units: int
    held: int = 0
    lease: bool = False
    held_credits: int = 0
    quota_tokens: int | None = None
    taken: int = 0
    held_units: int = 0
    held_money: int = 0
    held_budget_tokens: int = 0
    money: int = 0
    said_units: int = 0
    unsettled: str = ""

    def charge(self, policy: ReclaimPolicy) -> ChargedAmounts:
        """Return the amounts to charge for a call that was not settled before its hold expired."""
        if self.lease or not self.release.service.id:
            return ChargedAmounts()
        if self.unsettled:
            charges = self.unsettled == UNSETTLED_CHARGED
            policy = ReclaimPolicy.CHARGE_HOLD if charges else ReclaimPolicy.RELEASE
        if policy == ReclaimPolicy.CHARGE_HOLD:
            quota_tokens = None if self.quota_tokens is None else max(self.held, self.quota_tokens)
            tokens = max(self.held if quota_tokens is None else self.taken, self.observed)
            credits_, units = max(self.held_credits, self.credits), max(self.held_units, self.units)
            money, budget_tokens = (
                max(self.held_money, self.money),
                max(self.held_budget_tokens, self.observed),
            )
            return ChargedAmounts(
                tokens,
                credits_,
                units,
                quota_tokens=quota_tokens,
                money=money,
                budget_tokens=budget_tokens,
                requests=1,
            )
        if policy == ReclaimPolicy.RELEASE or not self.observed:
            return ChargedAmounts()
        return ChargedAmounts(
            self.observed, self.credits, self.units, quota_tokens=self.quota_tokens,
            money=self.money, budget_tokens=self.observed, requests=1,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LateSettlement:
    """A settlement that arrived after its hold had ended, read from the late queue.

    `charged` is not 0 if a reclaim has charged the call already. `acknowledged` are its movements if a Redis
    that may have lost them acknowledged it. `raw` are its bytes as a record of a settlement log.
    """

    entry_id: bytes
    settlement: Settlement
    charged: int
    acknowledged: tuple[MovementRange, ...] = ()
    raw: bytes = b""


# Prefix of the id and the bytes of a dead letter that is a late settlement; the request id follows.
LETTER: Final = b"late:"
_REQUEST_END: Final = len(LETTER) + 36


class Verb(StrEnum):
    """How a late settlement ends: charged in full, charged by the difference to a reclaim, or dropped."""

    POST = "post"
    CORRECT = "correct"
    DROP = "drop"


@dataclass(frozen=True, slots=True, eq=False)
class LateResolution:
    """The resolution of a late settlement, and the amounts to charge: zero if it is dropped."""

    late: LateSettlement
    verb: Verb
    used: ChargedAmounts = ChargedAmounts()


def letter_of(late: LateSettlement) -> bytes:
    """Return a late settlement encoded as the bytes of a dead letter."""
    return LETTER + late.settlement.request_id.encode() + late.raw


def read_letter(raw: bytes) -> tuple[str, bytes] | None:
    """Return the request id and settlement record of a dead letter; None if it holds no late settlement."""
    if not raw.startswith(LETTER):
        return None
    return raw[len(LETTER) : _REQUEST_END].decode(), raw[_REQUEST_END:]


def correction_id(request_id: str) -> str:
    """Return the id of a request's one correction: the request id with the version nibble set to 8."""
    return f"{request_id[:14]}8{request_id[15:]}"


def refund_id(request_id: str) -> str:
    """Return the id of the only refund of a request's credits: the request id with version nibble 9."""
    return f"{request_id[:14]}9{request_id[15:]}"
