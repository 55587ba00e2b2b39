"""Kinds of charges: what each is called, which rows it charges for, and what it counts toward. Pure.

Checks of the database, the API, documents and the minimum follow from these rows. `_ORDER` of
`gateway/core/billing/invoice.py` has how each becomes lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SEGMENT, TOKENS, ADDITION, UNITS = "subscription_segment", "token_ledger", "credit_addition", "usage_tier"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeKind:
    """One kind of charge.

    `basis` is the prefix of a key: its lines' rounding difference is carried under that. `source` is only set
    for kinds that share a name.
    """

    name: str
    # The heading of its lines on a document.
    heading: str
    basis: str
    source: str = ""
    # Whether it counts toward a minimum.
    is_committed: bool = False
    # Whether it lowers what is owed: then a positive amount takes an earlier one back.
    is_reduction: bool = False


FEES = ChargeKind(name="subscription", heading="Subscription", basis="segment", is_committed=True)
FEE_DISCOUNTS = ChargeKind(
    name="discount", source=SEGMENT, heading="Discounts", basis="discount",
    is_committed=True, is_reduction=True,
)  # fmt: skip
EARLY_USES = ChargeKind(
    name="early_use", heading="Tokens used ahead of their days", basis="early", is_committed=True
)
OVERAGES = ChargeKind(name="overage", heading="Tokens beyond the plan", basis="tokens", is_committed=True)
PURCHASES = ChargeKind(name="credits_purchased", heading="Credits", basis="addition")
POSTPAID_CREDITS = ChargeKind(name="credits_postpaid", heading="Credits beyond the balance", basis="postpaid")
USES = ChargeKind(name="usage", heading="Usage", basis="usage", is_committed=True)
SERVICE_DISCOUNTS = ChargeKind(
    name="discount", source=UNITS, heading="Discounts", basis="service_discount",
    is_committed=True, is_reduction=True,
)  # fmt: skip
COMMITMENTS = ChargeKind(name="minimum_commitment", heading="Minimum commitment", basis="commitment")
# In the order of their lines.
CHARGE_KINDS: Final = (
    FEES, FEE_DISCOUNTS, EARLY_USES, OVERAGES, PURCHASES, POSTPAID_CREDITS, USES, SERVICE_DISCOUNTS,
    COMMITMENTS,
)  # fmt: skip
_BY_NAME: Final[Mapping[tuple[str, str], ChargeKind]] = {
    (kind.name, kind.source): kind for kind in CHARGE_KINDS
}


def kind_of(name: str, source: str) -> ChargeKind:
    """Return the kind of a charge of this name for rows of `source`."""
    return _BY_NAME.get((name, source)) or _BY_NAME[name, ""]
