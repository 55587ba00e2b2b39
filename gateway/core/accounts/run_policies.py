"""Policies of runs for organizations, tenants and API keys. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """Limits of the runs that calls may open. `amount` is in nano-units; a limit of 0 means none.

    `required` refuses calls without a run.
    """

    amount: int = 0
    calls_max: int = 0
    ttl_s: int = 0
    required: bool = False


# Policies that a call's run must meet, each with its owner.
CallRunPolicies = tuple[tuple[str, RunPolicy], ...]


@dataclass(frozen=True, slots=True)
class RunPolicies:
    """The policies of runs of an organization, and of its tenants by id."""

    own: RunPolicy | None = None
    tenants: dict[int, RunPolicy] = field(default_factory=dict)

    def of(self, tenant_id: int) -> CallRunPolicies:
        """Return the policies that apply to runs of a tenant: first its own, then the organization's."""
        found = (("tenant", self.tenants.get(tenant_id)), ("organization", self.own))
        return tuple([(whose, policy) for whose, policy in found if policy is not None])


NO_POLICIES = RunPolicies()
