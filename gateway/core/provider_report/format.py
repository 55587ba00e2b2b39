"""What differs between the reports of one provider and another's: an object each, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Final, TypeVar

import msgspec

from gateway.core.provider_report.report import COUNT_MAX, Line

Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
# Reads one result of a bucket; msgspec.ValidationError and ValueError say what is wrong with it.
ReadResult = Callable[[bytes], Line]
# Reads one row of a table; the line is None where it only says that its day had nothing.
ReadRow = Callable[[Mapping[str, str]], tuple[date, Line | None]]
# A question of the API without its span: its path and its other parameters.
Question = tuple[str, Mapping[str, str]]

DAYS_A_PAGE: Final = 31
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV export: it is known by the column `mark` and must have all `columns`."""

    mark: str
    columns: tuple[str, ...]
    read: ReadRow


@dataclass(frozen=True, slots=True)
class Format:
    """The reports of one provider.

    `bucket` takes a bucket apart: its first moment, the one behind its last, and its results. `wanted` says
    which reports can be read. `questions` are those of its API, `span` writes their time, `headers` its key.
    """

    name: str
    wanted: str
    bucket: Callable[[bytes], tuple[datetime, datetime, list[msgspec.Raw]]]
    result: ReadResult
    tables: tuple[Table, ...]
    url: str
    key_variable: str
    questions: tuple[Question, ...]
    span: Callable[[date, date], Mapping[str, str]]
    headers: Callable[[str], Mapping[str, str]]


def cell(row: Mapping[str, str], name: str, read: Callable[[str], _Read]) -> _Read:
    """What stands in a column; ValueError names it."""
    try:
        return read(row[name])
    except ValueError as error:
        raise ValueError(f"column {name} {error}") from error
