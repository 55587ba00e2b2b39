"""Rows of usage as Parquet, in pieces: what is written is given away at once, so that no file is kept whole.

Times are timestamps of UTC, money is decimals of nine digits (twelve of charges), counts are 64-bit integers.
"""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

from gateway.core.accounts.administration import Row
from gateway.core.billing.pricing import EXACT

# As many digits as a 128-bit decimal has: costs of an organization add up to no more.
DIGITS, DECIMALS = 38, 9
# A price of a unit may have so many.
DECIMALS_OF_CHARGES = 12
_COST = ("cost",)
_TEXTS = ("organization", "tenant", "user", "api_key", "project", "service", "model", "currency", "kind")


class Parquet:
    """A file of these columns; made by `Parquet.of`, since what writes it is loaded first."""

    media = "application/vnd.apache.parquet"

    def __init__(self, name: str, columns: tuple[str, ...], money: Collection[str], libraries: Any) -> None:
        self.name = name
        arrow, parquet = libraries
        self._decimals = DECIMALS if money == _COST else DECIMALS_OF_CHARGES
        types = {
            "start": arrow.timestamp("us", tz="UTC"),
            "month": arrow.date32(),
            **dict.fromkeys(money, arrow.decimal128(DIGITS, self._decimals)),
            **dict.fromkeys(_TEXTS, arrow.string()),
        }
        self._arrow = arrow
        self._schema = arrow.schema([(name, types.get(name, arrow.int64())) for name in columns])
        self._written = _Written()
        self._writer = parquet.ParquetWriter(arrow.PythonFile(self._written, "w"), self._schema)

    @classmethod
    async def of(cls, name: str, columns: tuple[str, ...], money: Collection[str] = _COST) -> Parquet:
        """Begin a file. The library is large: it is loaded by the first one, beside the loop."""
        load = importlib.import_module
        libraries = [await asyncio.to_thread(load, each) for each in ("pyarrow", "pyarrow.parquet")]
        return cls(name, columns, money, libraries)

    def head(self) -> bytes:
        """What comes before the first row."""
        return self._written.take()

    def some(self, rows: Sequence[Row]) -> bytes:
        """The next rows, a group of their own."""
        if rows:
            cells = {name: [self._cell(row.get(name)) for row in rows] for name in self._schema.names}
            self._writer.write_table(self._arrow.Table.from_pydict(cells, schema=self._schema))
        return self._written.take()

    def _cell(self, value: object) -> object:
        return (
            value.quantize(Decimal(1).scaleb(-self._decimals), context=EXACT)
            if isinstance(value, Decimal)
            else value
        )

    def tail(self) -> bytes:
        """What comes behind the last row: where each group is."""
        self._writer.close()
        return self._written.take()


class _Written(io.RawIOBase):
    """What was written and is not taken yet."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
