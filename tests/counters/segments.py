"""Files of the settlement log as tests read them."""

from __future__ import annotations

from gateway.counters.settlement_log.segment import Blocks, Contents, Record, acknowledged, read

PIECE_BYTES = 7


def in_pieces(data: bytes, size: int = PIECE_BYTES) -> list[bytes]:
    """A file's bytes as they may be read."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def contents_of(data: bytes) -> Contents:
    """What a file holds, read at once; in pieces it is the same."""
    contents = read([data], len(data))
    assert read(in_pieces(data), len(data)) == contents
    return contents


def answered(data: bytes) -> list[Record]:
    """What the counters have answered of a file."""
    blocks = Blocks(len(data))
    return [one for piece in in_pieces(data) for of in blocks.feed(piece) for one in acknowledged(of)]
