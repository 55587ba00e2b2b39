"""Rate limit service: Envoy asks over gRPC whether a request may pass, and holds at a gateway decide."""

from __future__ import annotations

from gateway.features.record import Feature, commands

FEATURE = Feature(
    name="rate_limit_service", commands=commands("gateway.features.rate_limit_service.command:rls")
)
