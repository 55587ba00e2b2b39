"""A month of a ledger as Parquet, compressed by zstd; and what such a file holds, read back.

Texts and documents are texts, moments are microseconds of UTC, all other numbers have 64 bits.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from persistence.archive.rows import FLAG, INTEGER, MOMENT, TEXT, Figure

# What is read at once of the rows as text: a group of rows in the file.
GROUP_BYTES = 32 << 20
COMPRESSION = "zstd"
READ_BYTES = 1 << 20


def write(
    rows: Iterator[bytes],
    columns: Mapping[str, str],
    sink: Any,
    grown: Callable[[int, int], object] = lambda _rows, _bytes: None,
) -> None:
    """Write rows, as CSV, into a file; `grown` is told how many rows and bytes it has, after each group."""
    arrow, csv, parquet = _libraries("pyarrow", "pyarrow.csv", "pyarrow.parquet")
    types = _types(arrow)
    schema = schema_of(columns)
    told = {name: arrow.int64() if kind == MOMENT else types[kind] for name, kind in columns.items()}
    convert = csv.ConvertOptions(
        column_types=told, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
        true_values=["t"], false_values=["f"],
    )  # fmt: skip
    parse = csv.ParseOptions(newlines_in_values=True)
    read = csv.ReadOptions(column_names=list(columns), block_size=GROUP_BYTES, use_threads=False)
    written = 0
    with parquet.ParquetWriter(sink, schema, compression=COMPRESSION) as writer:
        first = next(rows, b"")
        if not first:
            return
        source = io.BufferedReader(_Pieces(first, rows), READ_BYTES)
        with csv.open_csv(source, read_options=read, parse_options=parse, convert_options=convert) as batches:
            for batch in batches:
                writer.write_table(arrow.Table.from_batches([batch]).cast(schema))
                written += batch.num_rows
                grown(written, sink.tell())


def schema_of(columns: Mapping[str, str]) -> Any:
    """The columns of a file."""
    (arrow,) = _libraries("pyarrow")
    types = _types(arrow)
    return arrow.schema([(name, types[kind]) for name, kind in columns.items()])


def unlike(found: Any, columns: Mapping[str, str], needed: Collection[str]) -> str:
    """In what a file's columns are not those; empty where they are. Only what is `needed` must be there."""
    for field in schema_of(columns):
        places = found.get_all_field_indices(field.name)
        if not places and field.name in needed:
            return f"has no column {field.name}"
        if len(places) > 1:
            return f"has {len(places)} columns {field.name}"
        if places and found.field(places[0]).type != field.type:
            return f"has {found.field(places[0]).type} in {field.name}, which is {field.type}"
    return ""


def figures(source: Any, columns: Mapping[str, str]) -> tuple[int, dict[str, Figure]]:
    """How many rows a file has, and of each column how many cells are not null and what they come to."""
    arrow, compute, parquet = _libraries("pyarrow", "pyarrow.compute", "pyarrow.parquet")
    file = parquet.ParquetFile(source)
    rows, found = 0, dict.fromkeys(columns, (0, 0))
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rows += table.num_rows
        for name, kind in columns.items():
            cells = table.column(name)
            count, sum_ = found[name]
            found[name] = count + len(cells) - cells.null_count, sum_ + _sum(arrow, compute, cells, kind)
    return rows, found


def _sum(arrow: Any, compute: Any, cells: Any, kind: str) -> int:
    if kind == TEXT:
        # Each text that differs is digested once.
        counted = compute.value_counts(cells.drop_null())
        return sum(_digest(each["values"]) * each["counts"] for each in counted.to_pylist())
    wide = compute.cast(cells.cast(arrow.int64()), arrow.decimal128(38, 0))
    return int(compute.sum(wide).as_py() or 0)


def _digest(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:15], 16)


def _types(arrow: Any) -> dict[str, Any]:
    return {
        INTEGER: arrow.int64(),
        MOMENT: arrow.timestamp("us", tz="UTC"),
        FLAG: arrow.bool_(),
        TEXT: arrow.string(),
    }


def _libraries(*names: str) -> list[Any]:
    return [importlib.import_module(name) for name in names]


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._left = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._rest, None)
            if piece is None:
                return 0
            self._left = piece
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
