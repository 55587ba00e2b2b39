"""The shape of plans by configuration files, and of their application."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gateway.admin.resources.resource import (
    Action,
    DocumentEndpoint,
    ReportEndpoint,
)
from gateway.admin.resources.values import (
    Flag,
    In,
    Out,
    Text,
    optional,
)
from gateway.core.accounts.administration import (
    BILLING,
    DEFAULT_NAME,
    OPERATOR,
    READONLY,
    access,
)

SCHEMA = "/schema.json"
DIGEST = "^[0-9a-f]{64}$"


class ConfigurationApply(In):
    """The wanted configuration; with the digest of its plan it is applied, without one planned."""

    objects: dict[str, Any] = Field(
        description="Objects by their kind, such as tenants. Others are named: plan, not plan_id."
    )
    digest: Annotated[str, Field(strict=True, pattern=DIGEST)] | None = optional(
        "Of the plan that is to be done, just as it was answered."
    )
    trial: Flag = Field(
        default=False, description="Also do it and undo it, which tells what would be refused."
    )
    prune: Flag = Field(
        default=False, description="Delete what applying under this name made, and no object is about."
    )
    name: Text = Field(default=DEFAULT_NAME, description="Name of this set of files, if there are several.")


class FieldChange(Out):
    """A field's value before and after."""

    before: Any
    after: Any


class PlannedChange(Out):
    """The planned change of one row."""

    change: str = Field(description="create, change or delete; another word is the action that it takes.")
    resource: str
    name: str
    at: str = Field(description="Where the object stands in what was sent; empty where none does.")
    id: int | None
    fields: dict[str, FieldChange] = Field(description="By their names in files.")
    stays: str = Field(description="Why it is left as it is; empty where it is not.")


class NewSecret(Out):
    """A new credential, shown once."""

    resource: str
    name: str
    at: str
    field: str
    value: str


class RowAdoption(Out):
    """A row created by hand that an object now describes by its name."""

    resource: str
    name: str
    at: str
    id: int


class ConfigurationPlan(Out):
    """The changes, planned or done."""

    digest: str = Field(description="Names the plan: the same is done with it, or nothing.")
    changes: list[PlannedChange]
    unchanged: int
    noted: int = Field(description="Objects that are as they should be, and not known to be of files yet.")
    forgotten: int = Field(description="Rows that apply made and others deleted: pruning forgets them.")
    taken: list[RowAdoption] = Field(
        description="The first 100 rows that no file was about before, and that objects are about now."
    )
    taken_count: int = Field(description="How many these are.")
    tried: bool = Field(description="Whether it was done and undone.")
    applied: bool
    pending: bool = Field(description="Stored; not all of it is in force yet.")
    refused: str = Field(description="Stored definitions that the counters refused; empty is nothing.")
    secrets: list[NewSecret]


class Configuration(Out):
    """The whole configuration in the form of files."""

    objects: dict[str, list[dict[str, Any]]]
    left_out: list[str] = Field(description="Settings that files cannot hold, and why.")


CONFIGURATION_REPORTS = (
    ReportEndpoint(
        name="configuration",
        # Each object is judged as the write of its own resource.
        access=access(BILLING, OPERATOR, READONLY, theirs=("apply",)),
        description="What files of configuration say: all of it, what differs, and that it is applied.",
        summary="Write down all that is configuration",
        out=Configuration,
        documents=(
            DocumentEndpoint(
                SCHEMA, "application/schema+json", "The JSON Schema of files, for editors", public=True
            ),
        ),
        by_hand=True,
        run=Action("apply", "Plan what makes it so, or do what was planned", ConfigurationApply),
        ran=ConfigurationPlan,
    ),
)
