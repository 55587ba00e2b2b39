"""The resource of groups: named sets of users, tenants, API keys or projects."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from gateway.admin.resources.resource import (
    Action,
    ConfigDeclaration,
    PartsDeclaration,
    Resource,
    SubResource,
    answer_of,
    filters,
    patch_of,
)
from gateway.admin.resources.values import Amount, ExternalId, Id, In, Text, optional
from gateway.core.accounts.administration import BILLING, access
from gateway.core.accounts.groups import API_KEY, KINDS, MEMBERS_MAX, TENANT

Kind: Any = Literal[KINDS]
_MEMBER: TypeAdapter[str | int] = TypeAdapter(ExternalId | Amount)


def _member(value: object) -> str | int:
    """Return a member of any kind; ValueError for a value that is none."""
    try:
        return _MEMBER.validate_python(value)
    except ValidationError:
        raise ValueError(
            "must be a user as calls name one, of 1 to 128 printable characters, or the id of a tenant, API key or project"
        ) from None


Member = Annotated[str | int, PlainValidator(_member), WithJsonSchema(_MEMBER.json_schema())]
Members = Annotated[list[Member], Field(max_length=MEMBERS_MAX)]
# Kinds whose members are ids of rows.
_ROWS = {TENANT: "tenants", API_KEY: "api-keys"}
_STAYS = "stays, as members and budgets go by it: make another group"


class GroupCreate(In):
    """A new group."""

    organization_id: Id
    name: Text
    kind: Kind = Field(description="What its members are.")
    members: Members = Field(
        default=[],
        description="Users by the callers' own names; tenants, API keys and projects by their ids. A key with "
        "`user_header` accept may name any user, so a member as well.",
    )
    claim: Text | None = optional(
        "Of users: a name of a group of sign-in or of an issuer's tokens. Who comes with it is a member too."
    )


class MemberNamed(In):
    """One member, as in `members`."""

    member: ExternalId


MEMBERS = SubResource(
    "members",
    "Members of a group",
    named=MemberNamed,
    put=Action("put-member", "Add a member to one group", done="It is a member."),
    delete=Action("remove-member", "Remove a member from one group", done="It is no member."),
)
Group = answer_of(
    GroupCreate,
    "Named sets of users, tenants, API keys or projects. Budgets of a group are of its members.",
)
WRITES = ("create", "change", "delete", "put-member", "remove-member")
RESOURCES = (
    Resource(
        name="groups",
        access=access(BILLING, theirs=WRITES),
        description="Named sets of users, tenants, API keys or projects.",
        out=Group,
        create=GroupCreate,
        patch=patch_of(GroupCreate, without=("organization_id", "kind"), kinds={"members": Members}),
        fixed={"organization_id": _STAYS, "kind": _STAYS},
        deletable=True,
        parts=(MEMBERS,),
        filters=filters("organization_id name:text kind claim:text", kind=KINDS),
        declared=ConfigDeclaration(
            by=("organization_id", "name"),
            after=("tenants", "api-keys"),
            known_by_id=True,
            unique=True,
            parts={
                "members": PartsDeclaration(
                    MEMBERS_MAX, names=lambda row, _: (_ROWS.get(str(row.get("kind")), ""), "")
                )
            },
        ),
    ),
)
