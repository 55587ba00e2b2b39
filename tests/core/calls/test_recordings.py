"""The seconds of recordings: of real files, of files whose heads lie, and of files that are cut or damaged.

`recordings.txt` has silence as FFmpeg 8 (PyAV 18.1.0) wrote it on 2026-11-30: the format, the seconds that FFmpeg
decodes, and the file in base64.
"""

from __future__ import annotations

import base64
import random
import struct
from pathlib import Path

import pytest

from gateway.core.calls.recordings import FRAMES_MAX, SECONDS_MAX, Length, is_recording, lengths_of
from tests.search import examples

LINES = [line.split() for line in Path(__file__).with_name("recordings.txt").read_text().splitlines()]
REAL = {kind: (float(seconds), base64.b64decode(data)) for kind, seconds, data in LINES}


def wav(seconds: int, *, rate: int = 8_000, channels: int = 1, bits: int = 24, tag: int = 1) -> bytes:
    """A recording of silence."""
    each = rate * channels * bits // 8
    said = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, each, channels * bits // 8, bits)
    sound = bytes(each * seconds)
    return b"RIFF\0\0\0\0WAVE" + said + struct.pack("<4sI", b"data", len(sound)) + sound


def extensible(valid: int) -> bytes:
    """One second, by a longer head, which says how many bits of a sample count."""
    plain = wav(1, tag=0xFFFE)
    more = struct.pack("<HHIH14x", 22, valid, 0, 1)
    return plain[:16] + struct.pack("<I", 40) + plain[20:36] + more + plain[36:]


def crc8(data: bytes) -> int:
    """The checksum of FLAC's heads: x^8 + x^2 + x + 1."""
    check = 0
    for bit in "".join(f"{byte:08b}" for byte in data):
        check = (check << 1 & 255) ^ (7 if (check >> 7) ^ int(bit) else 0)
    return check


def flac(blocks: int, *, stated: int = 0, rate: int = 8_000) -> bytes:
    """Silence: blocks of 65,535 samples, of 12 bytes each. The head states seconds of its own."""
    head = struct.pack(">Q", rate << 44 | 15 << 36 | rate * stated)
    frame = b"\xff\xf8\x74\x08\0\xff\xfe"
    frame += bytes((crc8(frame), 0, 0, 0, 0))
    return b"fLaC\x80\0\0\x22" + bytes(10) + head + bytes(16) + frame * blocks


def mp3(frames: int, beginning: bytes = b"\xff\xf3\x18\xc4") -> bytes:
    """Frames of 8 kbit/s at 16 kHz, MPEG 2, layer III: 36 bytes and 36 ms each."""
    return (beginning + bytes(32)) * frames


def adts(frames: int) -> bytes:
    """Frames of AAC at 8 kHz, of 1,024 samples in 8 bytes: 128 ms each."""
    return b"\xff\xf1\x6c\x40\x01\x1f\xfc\0" * frames


def aiff(seconds: int = 1, *, rate: int = 8_000) -> bytes:
    """Silence of 16 bits; the rate is a number of 80 bits."""
    power = rate.bit_length() - 1
    common = struct.pack(">hIhHQ", 1, 0, 16, 16_383 + power, rate << 63 - power)
    return b"FORM\0\0\0\0AIFFCOMM\0\0\0\x12" + common + b"SSND\0\0\0\0" + bytes(2 * rate * seconds)


def page(packets: list[bytes], *, flags: int = 0, time: int = 0) -> bytes:
    """A page of Ogg."""
    head = struct.pack("<4sBBQ12xB", b"OggS", 0, flags, time, len(packets))
    return head + bytes(map(len, packets)) + b"".join(packets)


def opus(packets: list[bytes], time: int = 0) -> bytes:
    """An Ogg file of Opus."""
    heads = page([b"OpusHead" + bytes(11)], flags=2) + page([b"OpusTags" + bytes(8)])
    return heads + page(packets, time=time)


def vorbis(packets: int, power: int) -> bytes:
    """An Ogg file of Vorbis at 8 kHz, with blocks of two to this power."""
    head = b"\1vorbis" + struct.pack("<IBIIIIB", 0, 1, 8_000, 0, 0, 0, power << 4 | 6) + b"\1"
    return page([head], flags=2) + page([b"\3vorbis"]) + page([b"\0"] * packets)


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def m4a(
    packets: int, *, stated: int = 0, handlers: tuple[bytes, ...] = (b"soun",), config: bytes = b"\x15\x88"
) -> bytes:
    """AAC at 8 kHz: each packet has 1,024 samples. All packets but one have no time."""
    times = struct.pack(">IIIII", 0, 1, packets, 0, 0)[:16]
    descriptor = b"\3\x19\0\1\0" + b"\4\x11\x40" + bytes(12) + b"\5" + bytes((len(config),)) + config
    entry = box(b"mp4a", bytes(28), box(b"esds", bytes(4), descriptor))
    table = box(
        b"stbl", box(b"stsd", bytes(4), b"\0\0\0\1", entry), box(b"stts", times),
        box(b"stsz", bytes(8), struct.pack(">I", packets), struct.pack(">I", 1) * packets),
    )  # fmt: skip
    clock = struct.pack(">IIIII", 0, 0, 0, 8_000, stated * 8_000) + bytes(4)
    names = [box(b"hdlr", bytes(8), handler, bytes(12)) for handler in handlers]
    track = box(b"trak", box(b"mdia", box(b"mdhd", clock), *names, box(b"minf", table)))
    movie = box(b"moov", box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, 1_000, 0), bytes(80)), track)
    return box(b"ftyp", b"M4A \0\0\0\0") + movie + box(b"mdat", bytes(packets))


def bound(data: bytes) -> float:
    """The most seconds of a file; endless if they are unknown."""
    (length,) = lengths_of([data])
    return float("inf") if length is None else length.seconds


def length_of(data: bytes) -> Length | None:
    return next(lengths_of([data]))


@pytest.mark.parametrize("kind", sorted(REAL))
def test_a_real_file_has_the_seconds_that_a_decoder_finds(kind: str) -> None:
    """The pause in front, and a last picture of half a second, count too."""
    seconds, data = REAL[kind]
    text = base64.b64encode(data).decode()
    found = next(lengths_of([text]))
    assert found is not None
    assert found.exact
    assert seconds - 0.001 <= found.seconds <= seconds + 0.52
    assert is_recording(data[:12])


@pytest.mark.parametrize("kind", sorted(REAL))
def test_a_file_that_is_cut_or_damaged_is_read_and_never_raises(kind: str) -> None:
    seconds, data = REAL[kind]
    drawn = random.Random(kind)
    for _ in range(examples(200)):
        damaged = bytearray(data)
        for _ in range(drawn.randrange(1, 4)):
            damaged[drawn.randrange(len(data))] = drawn.choice((0, 255, drawn.randrange(256)))
        assert bound(bytes(damaged[: drawn.randrange(len(data))])) >= 0
        assert bound(data + bytes(drawn.randrange(64))) >= seconds - 0.001


# By hand: what a file has however its head lies, and the most that may be found of it.
@pytest.mark.parametrize(
    ("data", "seconds", "most"),
    [
        (wav(3), 3, 3),
        (wav(3)[:40] + b"\1\0\0\0" + wav(3)[44:], 3, 3),  # it says a byte of sound
        (wav(2, rate=44_100, channels=2, bits=32, tag=3) + b"\0", 2, 2.01),
        (extensible(24), 1, 1),
        (aiff(2), 2, 2.001),
        (flac(3), 3 * 65_535 / 8_000, 24.6),  # its head says nothing of 24 seconds in 78 bytes
        (flac(3, stated=1), 3 * 65_535 / 8_000, 24.6),
        (flac(1, stated=1_500), 1_500, 1_500),
        (flac(3, rate=96_000), 3 * 65_535 / 96_000, 24.6),
        (mp3(100), 3.6, 3.64),
        (mp3(1) + bytes(500) + mp3(99), 3.6, 4.2),  # a decoder looks for the next frame
        (b"ID3\4\0\0\0\0\1\0" + bytes(128) + mp3(100), 3.6, 3.64),
        (mp3(1)[:21] + b"Xing\0\0\0\1\0\0\x27\x10" + bytes(3) + mp3(9), 360, 360),  # it claims 10,000 frames
        (adts(100), 12.8, 12.8),
        (adts(1) + bytes(500) + adts(99), 12.8, 12.8),
        (opus([b"\x08"] * 200), 4, 4),  # 20 ms in a byte
        (opus([b"\x1b\x02"] * 10), 1.2, 1.2),  # twice 60 ms
        (opus([b"\x08"], time=480_000), 10, 10),
        (vorbis(11, 13), 10 * 4_096 / 8_000, 11 * 4_096 / 8_000),
        (m4a(100), 12.8, 12.8),
        (m4a(1, stated=60), 60, 60),
        (m4a(100, handlers=(b"vide", b"soun")), 12.8, 12.8),
    ],
)
def test_a_head_that_lies_hides_no_second(data: bytes, seconds: float, most: float) -> None:
    assert seconds - 0.001 <= bound(data) <= most + 0.001


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"#!AMR\n" + bytes(100), bytes(1_000), b"\xff\xf3\x08\xc4" + bytes(100),  # a free rate
        wav(3, tag=85), wav(3, rate=10**6), wav(3)[:36], wav(3)[:32] + b"\1" + wav(3)[33:],
        wav(1, channels=4, bits=1_024), extensible(16), wav(1)[:36] + wav(1, rate=96_000)[12:],
        page([b"\x80theora" + bytes(30)], flags=2), opus([b"\x08"]) + b"x", vorbis(3, 15), page([b"\x08"]),
        box(b"ftyp", b"isom") + box(b"moof"), m4a(1) + box(b"moov"), m4a(1, config=b"\x17\x80"),
        m4a(1, handlers=()), b"ID3\4\0\0\xff\0\0\0", b"\x1a\x45\xdf\xa3\x80", REAL["webm"][1] + b"\xa3\xff",
        b"FORM\0\0\0\0AIFC" + bytes(40), flac(1, rate=0), aiff(rate=2**20), mp3(1) + opus([b"\x08"]),
        wav(1) + flac(1), mp3(1) + REAL["webm"][1], flac(1) + wav(1),
    ],
)  # fmt: skip
def test_a_file_that_is_not_plain_has_no_known_length(data: bytes) -> None:
    assert length_of(data) is None


def test_wav_of_sixteen_bits_may_be_sound_that_lasts_longer() -> None:
    data = wav(3, bits=16)
    assert length_of(data) == Length(len(data) / 750, exact=False)


def test_text_that_is_no_base64_has_no_known_length() -> None:
    text = base64.b64encode(wav(3)).decode()
    assert list(lengths_of([text, text[:-1], text[:40] + "-_" + text[42:], "="])) == [
        (3, True),
        None,
        None,
        None,
    ]


def test_the_frames_of_all_recordings_together_are_bounded() -> None:
    short = mp3(FRAMES_MAX // 2)
    assert [length is None for length in lengths_of([short, short, mp3(1)])] == [False, False, True]


def test_a_claim_is_bounded_too() -> None:
    assert bound(opus([b"\x08"], time=1 << 63)) == SECONDS_MAX


@pytest.mark.parametrize(
    ("begins", "found"),
    [
        (b"RIFF\0\0\0\0WEBP", False), (b"RIFF\0\0\0\0AVI ", True), (b"\0\0\0\x20ftypheic", False),
        (b"\0\0\0\x20ftypisom", True), (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1", False), (b"\x89PNG\r\n\x1a\n\0\0\0\r", False),
        (b"GIF89a\1\0\1\0\0\0", False), (b"", False),
    ],
)  # fmt: skip
def test_pictures_are_no_recordings_whatever_stands_beside_them(begins: bytes, found: bool) -> None:
    assert is_recording(begins) is found
