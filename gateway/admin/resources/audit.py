"""The audit log: who changed what, and when; read only."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gateway.admin.resources.resource import Filter, Resource
from gateway.admin.resources.values import Id, Instant, Out
from gateway.core.accounts.roles import ROLES, access

ISSUER = "Which provider: two of them may name two people alike."
IDENTITY = "Who that is at this provider for good: the claim `sub`."


class AuditEntry(Out):
    """One change, written in its own transaction."""

    id: Id
    actor: str
    admin_token_id: Id | None
    token: str | None = Field(description="The name of that token.")
    person: str | None = Field(description="Who it was, where a provider of identities has said so.")
    issuer: str | None = Field(description=ISSUER)
    identity: str | None = Field(description=IDENTITY)
    role: str | None = Field(description="What its token might do.")
    organization_id: Id | None = Field(description="Whose row it was; null where it is nobody's.")
    action: str
    resource: str
    resource_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    created_at: Instant


RESOURCES = (
    Resource(
        name="audit-log",
        access=access(),
        description="Who changed what, and when. Append-only, written in the transaction of the change.",
        out=AuditEntry,
        filters={
            "actor": Filter("text"),
            "person": Filter("text"),
            "issuer": Filter("text"),
            "identity": Filter("text"),
            "action": Filter("text"),
            "resource": Filter("text"),
            "resource_id": Filter("text"),
            "admin_token_id": Filter(),
            "organization_id": Filter(),
            "role": Filter("text", ROLES),
        },
    ),
)
