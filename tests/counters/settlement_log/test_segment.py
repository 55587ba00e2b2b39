"""A file of the settlement log: what a crash or a bad sector leaves of it is read, and nothing is made up."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.layout import LAYOUT
from gateway.counters.layouts.packing import KEPT
from gateway.counters.settlement_log import log
from gateway.counters.settlement_log.log import ACKNOWLEDGED, BLOCK_BYTES, DONE, HEADER, MAGIC, SPOOLED
from tests.counters.segments import Contents, answered, blocks_of, contents_of

ANSWER = b"a" * 24


def spooled(*arguments: bytes, ms: int = 5) -> bytes:
    return log.block(SPOOLED, ms, log.records([(b"", one) for one in arguments]))


def acknowledged(*arguments: bytes, ms: int = 5) -> bytes:
    return log.block(ACKNOWLEDGED, ms, log.records([(ANSWER, one) for one in arguments]))


def waiting(data: bytes) -> list[bytes]:
    """The arguments of what waits in a file, in order."""
    blocks = [block for block in blocks_of(data) if block.kind == SPOOLED]
    records = {one.offset: one for block in blocks for one in log.records_in(block)}
    return [records[at].arguments for at in contents_of(data).waiting]


def test_what_is_written_is_read() -> None:
    data = HEADER + spooled(b"one", b"two") + acknowledged(b"three", ms=9)
    contents = contents_of(data)
    assert (contents.damaged_blocks, contents.torn_bytes) == (0, 0)
    assert [(block.kind, block.ms) for block in blocks_of(data)] == [(SPOOLED, 5), (ACKNOWLEDGED, 9)]
    assert waiting(data) == [b"one", b"two"]
    (record,) = answered(data)
    assert (record.arguments, record.answer) == (b"three", ANSWER)


# A file as it was written before: two spooled, one acknowledged, the first spooled one done.
WRITTEN = bytes.fromhex(
    "ff544bfe0218000000f2b31ec005000000000000000000030000006f6e6500000900000074776f207468726565"
    "ff544bfe0122000000e0d553627b6c50c4a0010000180004000000" + ANSWER.hex() + "666f7572"
    "ff544bfe030400000023830144090000000000000025000000"
)


def test_files_that_were_written_before_are_read_and_written_alike() -> None:
    assert struct.pack("<8sHHH2x", b"TKSETTLE", 1, LAYOUT, KEPT.size) == HEADER
    data = HEADER + spooled(b"one", b"two three")
    data += log.block(ACKNOWLEDGED, 1_790_000_000_123, log.records([(ANSWER, b"four")]))
    data += log.block(DONE, 9, log.offsets([len(HEADER) + BLOCK_BYTES]))
    assert data == HEADER + WRITTEN
    assert waiting(data) == [b"two three"]
    assert [(one.answer, one.arguments) for one in answered(data)] == [(ANSWER, b"four")]


def test_what_is_done_waits_no_more() -> None:
    data = HEADER + spooled(b"one", b"two")
    first, second = contents_of(data).waiting
    data += log.block(DONE, 6, log.offsets([first]))
    assert waiting(data) == [b"two"]
    assert waiting(data + log.block(DONE, 7, log.offsets([second, first]))) == []


@given(st.data())
def test_a_torn_end_costs_the_last_block_alone(data: st.DataObject) -> None:
    whole = HEADER + spooled(b"one")
    last = spooled(b"two", b"three")
    kept = data.draw(st.integers(1, len(last) - 1))
    torn = whole + last[:kept]
    contents = contents_of(torn)
    assert (waiting(torn), contents.torn_bytes, contents.damaged_blocks) == ([b"one"], kept, 0)


@given(st.data())
def test_damage_in_the_middle_is_counted_and_costs_its_block_alone(data: st.DataObject) -> None:
    blocks = [spooled(b"one"), spooled(b"two"), acknowledged(b"three")]
    at = data.draw(st.integers(0, len(blocks[1]) - 1))
    flipped = data.draw(st.integers(1, 255))
    blocks[1] = blocks[1][:at] + bytes([blocks[1][at] ^ flipped]) + blocks[1][at + 1 :]
    damaged = HEADER + b"".join(blocks)
    contents = contents_of(damaged)
    assert (waiting(damaged), contents.damaged_blocks, contents.torn_bytes) == ([b"one"], 1, 0)
    assert [one.arguments for one in answered(damaged)] == [b"three"]


def test_a_file_that_was_never_begun_is_empty_and_another_format_is_not_understood() -> None:
    for length in range(len(HEADER)):
        assert contents_of(HEADER[:length]) == Contents()
    newer = struct.pack("<H", LAYOUT + 1)
    for other in (HEADER[:8] + b"\x63\x00" + HEADER[10:], HEADER[:10] + newer + HEADER[12:]):
        assert contents_of(other + spooled(b"one")) == Contents(understood=False)
        assert answered(other + spooled(b"one")) == []


@pytest.mark.parametrize("text", ["ünï¢ode", "\xff", "￾", "\U0010ffff"])
def test_no_text_of_a_caller_looks_like_a_block(text: str) -> None:
    assert MAGIC not in text.encode()


Step = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from(["spool", "note", "done"]), st.integers(0, 3)), max_size=20)


@given(STEPS, st.integers(0, 10_000))
def test_after_any_crash_what_waits_is_what_was_whole_and_not_done(steps: Sequence[Step], cut: int) -> None:
    """The model: blocks that are whole at the cut count, in order; nothing else does."""
    data, expected, history = HEADER, dict[int, bytes](), list[tuple[int, dict[int, bytes]]]()
    for number, (verb, count) in enumerate(steps):
        names = [b"%d-%d" % (number, one) for one in range(count)]
        if verb == "spool":
            at = len(data) + BLOCK_BYTES
            for name in names:
                expected[at] = name
                at += log.RECORD_BYTES + len(name)
            data += spooled(*names)
        elif verb == "note":
            data += acknowledged(*names)
        else:
            gone = list(expected)[:count]
            expected = {at: name for at, name in expected.items() if at not in gone}
            data += log.block(DONE, 5, log.offsets(gone))
        history.append((len(data), dict(expected)))
    kept = data[: max(len(HEADER), cut)]
    survived = [state for size, state in history if size <= len(kept)]
    assert waiting(kept) == list((survived[-1] if survived else {}).values())


def test_the_checksum_covers_what_a_block_says_of_itself() -> None:
    whole = acknowledged(b"one", ms=5)
    payload = whole[BLOCK_BYTES:]
    assert zlib.crc32(payload).to_bytes(4, "little") not in whole[:BLOCK_BYTES]
    assert [block.ms for block in blocks_of(HEADER + acknowledged(b"one", ms=5))] == [5]


@given(st.data(), st.integers(len(MAGIC), 100))
def test_however_a_file_is_cut_into_pieces_it_says_the_same(data: st.DataObject, piece_bytes: int) -> None:
    """Damaged and torn ones too: any byte may be another, any length missing at the end."""
    whole = bytearray(
        HEADER + spooled(b"one", b"t" * 40) + acknowledged(b"three", ms=9) + spooled(b"", b"four")
    )
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        whole[at] ^= data.draw(st.integers(1, 255))
    kept = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    expected = contents_of(kept), blocks_of(kept)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "PIECE_BYTES", piece_bytes)
        assert (contents_of(kept), blocks_of(kept)) == expected


@pytest.mark.parametrize(
    "tail", [bytes(1 << 20), MAGIC[:2] * (1 << 19), MAGIC + b"\x01" + b"\xff" * (1 << 20)]
)
def test_what_follows_the_last_sound_block_is_read_in_pieces_and_is_torn(
    tail: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros after a power loss, or a length that says the file is longer: torn, byte for byte."""
    data, reads, most = HEADER + spooled(b"one") + tail, os.pread, [0]

    def counted(descriptor: int, count: int, at: int) -> bytes:
        most[0] = max(most[0], count)
        return reads(descriptor, count, at)

    monkeypatch.setattr(os, "pread", counted)
    contents = contents_of(data)
    assert (contents.torn_bytes, contents.damaged_blocks) == (len(tail), 0)
    assert most[0] <= log.PIECE_BYTES
    assert waiting(data) == [b"one"]


def test_a_file_of_which_a_full_disk_took_less_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    file = log.create(tmp_path, 0.0)
    for data in (spooled(b"one"), spooled(b"two")):
        file.write(file.place(len(data), 0.0), data)
    os.truncate(file.path, file.size - 1)
    file.place(1 << 30, 0.0)
    with closing(file.reading()) as reading:
        (offset,) = reading.waiting()
    file.keep({offset: log.RECORD_BYTES + 3})
    assert (file.record(offset).arguments, reading.torn_bytes) == (b"one", len(spooled(b"two")) - 1)
    file.leave()
