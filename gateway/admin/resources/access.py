"""API keys and admin tokens: who may come in."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.admin import credentials
from gateway.admin.resources.models import answer_of, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Resource, Secret
from gateway.admin.resources.said import ExternalId, ModelText, printable
from gateway.admin.resources.values import MODELS_MAX, Flag, Id, In, Instant, LimitsIn, Text
from gateway.core.accounts.administration import OVERLAP_S, OVERLAP_S_MAX, Row
from gateway.core.accounts.roles import MEMBER, OPERATOR, READONLY, ROLES, access
from gateway.core.issuers.claims import SUBJECT_CHARACTERS_MAX

# What stands in the place of a secret, where signed tokens are shown.
TOKENS = ("issuer", "subject")
Issuer = Annotated[str, Field(strict=True, pattern=r"^[\x21-\x7e]{1,512}$")]
Subject = Annotated[Text, Field(max_length=SUBJECT_CHARACTERS_MAX), AfterValidator(printable)]
Overlap = Annotated[int, Field(strict=True, ge=0, le=OVERLAP_S_MAX)]
Models = Annotated[list[ModelText], Field(min_length=1, max_length=MODELS_MAX)]


class _OfTokens(In):
    """A credential that may be had by signed tokens instead of a secret."""

    @model_validator(mode="after")
    def both_say_whose_tokens(self) -> Self:
        """An issuer alone would let in all it knows, and a subject alone nobody."""
        said = [getattr(self, name) is None for name in TOKENS]
        if any(said) and not all(said):
            raise ValueError("issuer and subject belong together: say both, or none")
        return self


class ApiKeyCreate(_OfTokens):
    """A new API key of a tenant."""

    tenant_id: Id
    name: Text | None = None
    user: ExternalId | None = Field(
        default=None, description="The tenant's own user id that the key's requests act for."
    )
    user_header: Literal["accept", "require", "ignore"] = Field(
        default="accept", description="What requests may say of their user, where the key says none."
    )
    limits: LimitsIn | None = None
    models: Models | None = Field(default=None, description="The models it may ask for; null is any.")
    expires_at: Instant | None = None
    issuer: Issuer | None = Field(
        default=None,
        description="With `subject`: no key is made, signed tokens of this issuer stand for it.",
    )
    subject: Subject | None = Field(
        default=None, description="The subject of those tokens, as the gateways' rule of the issuer has it."
    )


class Rotate(In):
    """A key in the place of another, with the same user, limits and models."""

    overlap_s: Overlap = Field(
        default=OVERLAP_S, description="Seconds for which both are good; 0 revokes the earlier one at once."
    )
    expires_at: Instant | None = Field(
        default=None, description="When the new one ends; if it is not said, when the earlier one would have."
    )


ApiKey = answer_of(
    ApiKeyCreate,
    "A credential for the data plane; `key` itself is in the answer alone that made it.",
    name=str,
    prefix=(str, Field(description="How the key begins, to recognize it by.")),
    revoked_at=Instant | None,
    replaced_by_id=(Id | None, Field(description="The key that was made in its place.")),
)


class AdminTokenCreate(_OfTokens):
    """A new token for this API."""

    name: Text
    role: Literal["admin", "billing", "operator", "member", "readonly"]
    organization_id: Id | None = Field(
        default=None, description="It sees and changes this one alone, and nothing of others; null is of all."
    )
    user_id: Id | None = Field(default=None, description="Whom its writes are put down to.")
    expires_at: Instant | None = None
    ours: Flag = Field(
        default=False,
        description="Of one organization: it may decide what that one owes, and whether it is shut out. "
        "A token of all organizations alone can say so.",
    )
    issuer: Issuer | None = Field(
        default=None,
        description="With `subject`: no token is made, people whom this provider names sign in by it.",
    )
    subject: Subject | None = Field(
        default=None, description="Which people of the provider, as the keepers' rule of it has them."
    )


AdminToken = answer_of(
    AdminTokenCreate,
    "A credential for this API; `token` itself is in the create answer only.",
    prefix=(str, Field(description="How the token begins, to recognize it by.")),
    revoked_at=Instant | None,
    last_used_at=(Instant | None, Field(description="To a minute.")),
)


def _is_gone(row: Row) -> bool:
    """Whether another key has its name, or none needs it: it is revoked, or ends after an overlap."""
    return row["revoked_at"] is not None or row["replaced_by_id"] is not None


RESOURCES = (
    Resource(
        name="api-keys",
        access=access(OPERATOR, MEMBER, theirs=("create", "change", "delete", "rotate", "revoke")),
        description="Credentials of the data plane. The key itself is shown once, when it is made; "
        "one of an issuer's subject has none.",
        out=ApiKey,
        create=ApiKeyCreate,
        patch=patch_of(ApiKeyCreate, without=("tenant_id", *TOKENS), kinds={"name": Text}),
        deletable=True,
        settle_first="revoke",
        filters={
            "tenant_id": Filter(),
            "organization_id": Filter(),
            "user": Filter("text"),
            "prefix": Filter("text"),
            "issuer": Filter("text"),
            "subject": Filter("text"),
        },
        actions=(
            Action("rotate", "Make a key in its place; this one ends after an overlap", Rotate, mints=True),
            Action("revoke", "Refuse the key from now on, for ever"),
        ),
        refers={"replaced_by_id": "api-keys"},
        secret=Secret("key", credentials.API_KEY, instead=TOKENS),
        declared=Declared(
            by=("tenant_id", "name"),
            needs=("name",),
            is_gone=_is_gone,
            known_by_id=True,
            followed_by="replaced_by_id",
            claims=TOKENS,
        ),
    ),
    Resource(
        name="admin-tokens",
        access=access(read=(READONLY,), theirs=("create", "change", "delete", "revoke"), of_all=("ours",)),
        description="Credentials of the Admin API and of the console. The token itself is shown once, when "
        "it is made; one of a provider's people has none.",
        out=AdminToken,
        create=AdminTokenCreate,
        patch=patch_of(AdminTokenCreate, without=("role", "organization_id", *TOKENS)),
        deletable=True,
        filters={
            "organization_id": Filter(),
            "user_id": Filter(),
            "role": Filter("text", ROLES),
            "issuer": Filter("text"),
            "subject": Filter("text"),
        },
        actions=(Action("revoke", "Refuse the token from now on, for ever"),),
        secret=Secret("token", credentials.ADMIN_TOKEN, instead=TOKENS),
    ),
)
