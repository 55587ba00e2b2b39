"""Rows of archived months as their ledgers show them: by the same filters, in the same fields.

Where an account is named, its movements come in the order of their numbers, as in a ledger: for that, rows of
each month are held at once. Else months come one behind the other, and so do the accounts of a month, each by
its numbers. Calls come by their time. A file is read if it is, by its SHA-256, what its manifest says, and if
it holds rows of its ledger: both may be somebody else's.
"""

from __future__ import annotations

import heapq
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import chain, islice
from typing import Any

from gateway.core.accounts.administration import Row
from gateway.core.accounts.facts import SEPARATOR
from gateway.core.billing.pricing import ONE_NANO
from gateway.core.billing.vector import KINDS
from gateway.core.json_reader import read_json
from gateway.errors import ArchiveFailed
from gateway.ops.archive import manifest, parquet
from gateway.ops.place import Place, told
from persistence.archive.cut import Stored
from persistence.archive.months import AUDIT, CALLS, CREDITS, SPENDS, TOKENS, Ledger, end_of
from persistence.archive.rows import columns_of

# Which ledger a list of the Admin API is of.
LEDGERS: Mapping[str, Ledger] = {
    "token-ledger": TOKENS, "credit-transactions": CREDITS, "feature-usage": SPENDS, "calls": CALLS,
    "audit-log": AUDIT,
}  # fmt: skip
# A row of a file, and which that is.
_Found = tuple[dict[str, Any], Stored]
SAID_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows: columns and what each must be, from a moment up to before another one."""

    filters: Mapping[str, str | int | bool] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    newest: bool = False
    limit: int = 100


def rows(
    place: Place,
    name: str,
    asked: Asked,
    said: Callable[[str], object] = lambda _: None,
    render: Callable[[Row], Row] = dict,
) -> list[Row]:
    """The rows of a list, as far as archived months have them, up to the limit; months that lack are said.

    `render` writes each; what it refuses by `ValueError` is no row of the list.
    """
    ledger = LEDGERS[name]
    unknown = sorted(asked.filters.keys() - ledger.table.columns.keys())
    if unknown:
        raise ArchiveFailed(f"an archive has no {unknown[0]} of {name}: ask by another")
    with told(place.url):
        if lacking := [month for month in manifest.unnamed(place, ledger.name) if _touches(month, asked)]:
            said(_without_manifest(place, ledger, lacking))
        there = manifest.months(place, ledger.name)
        if not there and next(manifest.databases(place), None) is None:
            raise ArchiveFailed(f"{place.url} is no archive: there is no manifest of any ledger")
        months = [month for month in there if _touches(month, asked)]
        files = [_file(place, ledger, month) for month in (reversed(months) if asked.newest else months)]
        parts = [_of_month(place, one, ledger, asked) for one in files if one is not None]
        in_order: Iterable[_Found] = chain.from_iterable(parts)
        if ledger.kind and ledger.owner in asked.filters:
            in_order = heapq.merge(*parts, key=lambda one: int(one[0]["seq"]), reverse=asked.newest)
        shown = []
        for row, file in islice(in_order, asked.limit):
            with _of_a_ledger(place, file):
                shown.append(render(_shown(row, ledger)))
        return shown


def _touches(month: date, asked: Asked) -> bool:
    begins, ends = (datetime.combine(day, time(), UTC) for day in (month, end_of(month)))
    return (asked.since is None or asked.since < ends) and (asked.until is None or begins < asked.until)


def _without_manifest(place: Place, ledger: Ledger, months: list[date]) -> str:
    first = place.address(manifest.name_of(months[0], ledger.name))
    more = f", and {len(months) - 1} more like it" if months[1:] else ""
    return f"{months[0]:%Y-%m} is left out, for {first} is not there{more}: see `tollkeeper archive --prove`"


def _file(place: Place, ledger: Ledger, month: date) -> Stored | None:
    """The file of a month that its manifest names; None where it has none of this ledger."""
    said = manifest.read(place, month, ledger.name)
    return None if said is None else said.file


@contextmanager
def _of_a_ledger(place: Place, file: Stored) -> Iterator[None]:
    """What is no row of a ledger, on one line: a file and its manifest may be changed together."""
    try:
        yield
    except (ArithmeticError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:SAID_CHARS_MAX]
        raise ArchiveFailed(f"{place.address(file.file)} is not of {file.ledger}: {said}") from error


def _of_month(place: Place, file: Stored, ledger: Ledger, asked: Asked) -> Iterator[_Found]:
    """A month's rows in their order, a group of the file at a time."""
    dataset: Any = importlib.import_module("pyarrow.dataset")
    wanted = _condition(dataset, ledger, asked)
    with told(place.url):
        if place.digest(file.file) != (file.bytes, file.sha256):
            raise ArchiveFailed(
                f"{place.address(file.file)} is not what was archived: its manifest says otherwise"
            )
        columns, needed = (
            columns_of(ledger),
            [each.name for each in ledger.table.columns if not each.nullable],
        )
        schema = parquet.schema_of(columns)
        with _of_a_ledger(place, file):
            fragment = place.fragment(file.file, dataset.ParquetFileFormat())
            if reason := parquet.unlike(fragment.physical_schema, columns, needed):
                raise ValueError(f"it {reason}")
            if fragment.metadata.num_rows != file.rows:
                raise ValueError(f"it has {fragment.metadata.num_rows} rows, by its manifest {file.rows}")
            groups = fragment.split_by_row_group(wanted, schema=schema)
        for group in reversed(groups) if asked.newest else groups:
            with _of_a_ledger(place, file):
                table = group.to_table(schema=schema, filter=wanted, use_threads=False)
                if lacking := [name for name in needed if table.column(name).null_count]:
                    raise ValueError(f"a row of it has no {lacking[0]}")
                found = table.to_pylist()
            yield from ((row, file) for row in (reversed(found) if asked.newest else found))


def _condition(dataset: Any, ledger: Ledger, asked: Asked) -> Any:
    at = dataset.field(ledger.at.strip('"'))
    tests = [dataset.field(name) == value for name, value in asked.filters.items()]
    tests += [at >= asked.since] if asked.since is not None else []
    tests += [at < asked.until] if asked.until is not None else []
    whole = None
    for test in tests:
        whole = test if whole is None else whole & test
    return whole


def _shown(row: dict[str, Any], ledger: Ledger) -> Row:
    """A row of a file as a ledger's list has it: documents read, amounts in their units."""
    for name in ("metadata", "tools", "before", "after"):
        if row.get(name) is not None:
            row[name] = read_json(row[name])
    if ledger is CREDITS:
        row["credits_exact"] = row["credits_used"] - row["carried"] * ONE_NANO
    elif ledger is SPENDS:
        row["cost"] = row["usage_amount"] * ONE_NANO if row["in_money"] else None
    elif ledger is AUDIT:
        row["token"] = None
    elif ledger is CALLS:
        unknown = row["unknown_usage"]
        told_of = {} if unknown is None else {"unknown": unknown}
        row["usage"] = {kind: row[kind] for kind in KINDS} | {"tools": row["tools"] or {}} | told_of
        row["cost"] = None if row["cost"] is None else row["cost"] * ONE_NANO
        row["api_key_id"] = row["api_key_id"] or None
        row["unpriced"] = row["unpriced"].split(SEPARATOR) if row["unpriced"] else []
    return row
