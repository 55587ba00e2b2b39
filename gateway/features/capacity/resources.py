"""The resource for shares of upstreams' capacity."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from gateway.admin.resources.resource import ConfigDeclaration, Resource, answer_of, filters, patch_of
from gateway.admin.resources.values import (
    AS_STORED,
    AskedModel,
    Id,
    In,
    PositiveAmount,
    UpstreamName,
    optional,
)
from gateway.core.accounts.administration import OPERATOR, access

WEIGHT_MAX: Final = 1_000


class GuaranteedPart(In):
    """The part of a capacity that is guaranteed to calls of a share; null or left out: not guaranteed."""

    requests_per_minute: PositiveAmount | None = None
    tokens_per_minute: PositiveAmount | None = None


Priority = Literal["interactive", "batch"]


class ShareCreate(In):
    """A new share of an upstream's capacity: of an organization, or of one tenant."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "upstream": "openai", "organization_id": 1, "weight": 3,
                "guaranteed": {"tokens_per_minute": 100_000},
            }
        }
    )  # fmt: skip

    upstream: UpstreamName = Field(description="The upstream, as gateways' configuration names it.")
    model: AskedModel | None = optional(
        "Of calls of this model, as the upstream calls it; null is every model."
    )
    organization_id: Id | None = optional("Whose calls, unless it is a tenant's.")
    tenant_id: Id | None = optional("The tenant whose calls they are.")
    weight: Annotated[int, Field(strict=True, ge=1, le=WEIGHT_MAX)] = Field(
        default=1, description="What it has of all that nobody else uses, beside the weights of others."
    )
    guaranteed: Annotated[GuaranteedPart | None, AS_STORED] = optional("What it has whatever others do.")
    priority: Priority = Field(
        default="interactive", description="The highest priority of its calls; interactive ones go first."
    )


Share = answer_of(ShareCreate, "A share of an upstream's capacity.")


RESOURCES = (
    Resource(
        name="shares",
        access=access(OPERATOR, of_all=("create", "change", "delete")),
        description="Who has which share of an upstream's capacity.",
        out=Share,
        create=ShareCreate,
        patch=patch_of(ShareCreate, without=("upstream", "model", "organization_id", "tenant_id")),
        deletable=True,
        filters=filters("upstream:text organization_id tenant_id"),
        declared=ConfigDeclaration(by=("organization_id", "tenant_id", "model", "upstream")),
    ),
)
