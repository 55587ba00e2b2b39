"""Segments of subscriptions as the rules see them."""

from __future__ import annotations

from typing import Any

from gateway.core.billing.subscription import Segment, Terms


def segment_of(row: Any) -> Segment:
    """A row of `subscription_segment`."""
    span = (row.anchor_date, row.start_date, row.end_date)
    terms = Terms(row.billing, row.trial_end, row.discount_rate, row.discount_end, row.minimum_commitment)
    return Segment(
        row.plan_id, row.billing_interval, row.cost, *span, row.id, terms, row.quantity, row.negotiated
    )
