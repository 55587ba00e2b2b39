"""Policies of runs, as organizations, tenants and API keys have them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """What runs may be that some calls open, `amount` in nano-units; what is 0 has no limit.

    `required`: each of these calls has a run.
    """

    amount: int = 0
    calls_max: int = 0
    ttl_s: int = 0
    required: bool = False


# Those that a call's run is held to, each with whose it is.
CallRunPolicies = tuple[tuple[str, RunPolicy], ...]


@dataclass(frozen=True, slots=True)
class RunPolicies:
    """The policies of runs of an organization, and of its tenants by id."""

    own: RunPolicy | None = None
    tenants: dict[int, RunPolicy] = field(default_factory=dict)

    def of(self, tenant_id: int) -> CallRunPolicies:
        """Return the policies for runs of a tenant: those of the tenant, then of the organization."""
        found = (("tenant", self.tenants.get(tenant_id)), ("organization", self.own))
        return tuple([(whose, policy) for whose, policy in found if policy is not None])


NO_POLICIES = RunPolicies()
