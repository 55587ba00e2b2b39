"""The accounts of an upstream's capacity, and the shares of organizations in it. Pure.

An account is an upstream, or one of its models with limits of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.accounts.definitions import Share
from gateway.core.calls.routes import MODELS_MAX, PER_MINUTE_MAX, Capacity, CapacityLimits
from gateway.core.model import Caller


def account_of(
    capacity: Capacity, model: str, learned: LearnedLimits | None = None, keys: int = 1
) -> tuple[str, CapacityLimits]:
    """Return the limits that apply to calls of a model, and the model whose account counts these calls.

    The model is empty if the upstream's common account counts them. `learned` are limits that the
    upstream's answers stated, `keys` is the number of its credentials.
    """
    for name, limits in capacity.models:
        if name == model:
            return name, limits
    if capacity.learned and learned is not None:
        return model, learned.of(model, keys)
    return "", capacity.limits


class LearnedLimits:
    """The limits that an upstream's answers state, by model and key; the last statement counts."""

    __slots__ = ("_reports",)

    def __init__(self) -> None:
        self._reports: dict[str, dict[int, CapacityLimits]] = {}

    def note(self, model: str, key: int, requests: int, tokens: int) -> None:
        """Store the requests and tokens a minute that an answer states as limits; 0 means not stated.

        `key` is the position of the credential that the call used.
        """
        reports = self._reports.get(model)
        if reports is None:
            if len(self._reports) >= MODELS_MAX:
                return
            reports = self._reports[model] = {}
        reports[key] = CapacityLimits(min(requests, PER_MINUTE_MAX), min(tokens, PER_MINUTE_MAX))

    def of(self, model: str, keys: int) -> CapacityLimits:
        """Return the limits of all credentials together; `keys` is their number.

        A credential whose limits are unknown counts as the average of the others.
        """
        reports = self._reports.get(model)
        if not reports:
            return CapacityLimits()
        requests, tokens = (
            sum(reported) * keys // len(reported)
            if all(reported := [getattr(report, name) for report in reports.values()])
            else 0
            for name in ("requests_per_minute", "tokens_per_minute")
        )
        return CapacityLimits(requests, tokens)


class ShareTable:
    """All shares. A tenant's share goes before its organization's, and a model's before one of all models.

    An organization without a share has weight 1.
    """

    __slots__ = ("_shares", "known")

    def __init__(self, shares: Sequence[Share] = ()) -> None:
        self.known = shares
        self._shares = {
            (share.upstream, share.model, share.organization_id, share.tenant_id): share for share in shares
        }

    def of(self, upstream: str, model: str, caller: Caller) -> Share:
        """Return the share (part of an upstream's capacity) that a caller's calls of a model count to."""
        for tenant_id in (caller.tenant_id, 0):
            for of_model in (model, ""):
                share = self._shares.get((upstream, of_model, caller.organization_id, tenant_id))
                if share is not None:
                    return share
        return Share(upstream, model, caller.organization_id)
