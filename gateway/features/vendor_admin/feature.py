"""Vendors' Admin APIs: usage and costs as Anthropic's and OpenAI's SDKs and dashboards read them."""

from __future__ import annotations

from gateway.features.record import Feature, mounts

FEATURE = Feature(name="vendor_admin", routes=mounts(mount="gateway.features.vendor_admin.api:mount_vendors"))
