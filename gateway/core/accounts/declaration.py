"""The nouns of configuration that is applied: what is to be written, in one transaction, and what came of it.

Values are plain Python, as in `administration`. Nothing here knows files, HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.core.accounts.administration import Command, Row


@dataclass(frozen=True, slots=True)
class New:
    """The id of a row that is made by the step of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What applying noted of a row: the fields that files said of it, and whether it made the row itself."""

    resource: str
    row_id: int | New
    fields: tuple[str, ...]
    made: bool
    # What files called it, part by part, with the ids of others; None where that was not noted.
    said: tuple[object, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One write; the command's values may hold ids that are `New`.

    `number` is what `New` names its row by. `before` are fields as they were read: where they are others by
    now nothing is written. What `may_stay` is left where the store refuses it.
    """

    number: int
    command: Command
    before: Mapping[str, object] = field(default_factory=dict)
    may_stay: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a step: the row's id, and why it was left where it was."""

    row_id: int
    stays: str = ""


def settled(values: Row, made: Mapping[int, int]) -> Row:
    """Values whose new ids are known: what each number's step made."""
    return {name: made[each.number] if isinstance(each, New) else each for name, each in values.items()}
