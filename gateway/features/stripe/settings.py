"""The settings of the collection by Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.settings.feature_settings import FeatureSettings
from gateway.settings.urls import ServiceUrl
from gateway.settings.value_types import Token

CollectionMethod = Literal["charge_automatically", "send_invoice"]


class StripeSettings(FeatureSettings, frozen=True, kw_only=True):
    """How Stripe is reached and collects, and what of its messages is kept."""

    stripe_api_key: Token = ""
    stripe_webhook_secret: Token = ""
    stripe_collection: CollectionMethod = "charge_automatically"
    stripe_api_url: ServiceUrl = ""
    # Stripe may repeat a message for thirty days, and the table deletes none before 35.
    stripe_events_keep_days: Annotated[int, msgspec.Meta(ge=35, le=36_500)] = 400
    # The largest purchase of credits, in units of the organization's currency; 0 disables purchases.
    stripe_checkout_max: Annotated[int, msgspec.Meta(ge=0, le=900_000)] = 0

    EXTRAS: ClassVar[Mapping[str, str]] = {"stripe_webhook_secret": "stripe", "stripe_api_key": "stripe"}
