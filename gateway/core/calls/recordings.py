"""The most seconds of a recording, sound or video, as the decoder that finds most could count them. Pure.

A head is what a caller wrote, and decoders read what follows it. So the frames of a file count, and what its head
states only where that is more. Work is bounded in frames. The formats and their bounds:

| Format | The most seconds, and why none has more |
|---|---|
| WAV and AIFF, not compressed | its bytes by the rate of its samples: all bytes are samples, whatever size is stated |
| WAV of 16 bits | its bytes at six kbit/s, the least of usual sound: FFmpeg plays an MP3 in it |
| MP3 | the sum of all that looks like a frame, or its bytes at 8 kbit/s, the lowest rate, where these are less |
| AAC with ADTS heads | the sum of all that looks like a frame: silence has no lowest rate |
| FLAC | the sum of all blocks with a head that a decoder accepts (its CRC-8), likewise |
| Ogg of Opus or Vorbis | the sum of all packets: of Opus each states its length, of Vorbis none has more than a block |
| MP4 and M4A | the longest of all times that its tables state, and its packets of AAC, of 1,024 samples each |
| WebM | the end of its last block, and the sum of its packets of Opus |
| any other, and where this is not plain | unknown: the API's longest recording, or all that the model reads |
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

FRAMES_MAX: Final = 200_000  # frames and packets of the recordings of one body: 87 minutes of MP3
_DEAR: Final = 3  # frames of FLAC, boxes and elements take as long as so many others
TABLES_BYTES_MAX: Final = 4 << 20  # of the tables of one MP4
BASE64_BYTES_MAX: Final = 64 << 20  # a longer recording is not read
_AT_ONCE: Final = 1 << 20  # characters, a multiple of four: other threads run between
SECONDS_MAX: Final = 1 << 31  # a longer time is one that a head claims
# Tokens of one second of sound in OpenAI's models.
SOUND_TOKENS_PER_SECOND: Final = 10
# Six kbit/s, the least of Opus: no usual recording has a second in fewer bytes.
SOUND_BYTES_PER_SECOND_MIN: Final = 750
_RATE_MAX: Final = 384_000  # samples a second
_MP3_BYTES_PER_SECOND_MIN: Final = 1_000  # 8 kbit/s (ISO 13818-3)


class UnplainRecording(Exception):
    """A recording is not plain, so its seconds cannot be known."""


class Length(NamedTuple):
    """The most seconds of a recording; `exact` if they are those of its samples."""

    seconds: float
    exact: bool = True


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


class _Frames:
    """The frames that may still be read of the recordings of one body."""

    def __init__(self) -> None:
        self.left = FRAMES_MAX

    def take(self, count: int = 1) -> None:
        """Count frames that are read; raise `UnplainRecording` if they are too many."""
        self.left -= count
        if self.left < 0:
            raise UnplainRecording


def lengths_of(recordings: Sequence[str | bytes | memoryview]) -> Iterator[Length | None]:
    """Yield the most seconds of each of these recordings, in base64 or bytes; None if they cannot be known."""
    frames = _Frames()
    for recording in recordings:
        try:
            data = _decode(recording) if isinstance(recording, str) else bytes(recording)
            length = _length(data, frames)
        except (UnplainRecording, ValueError, struct.error, LookupError, OverflowError):
            yield None
        else:
            yield Length(min(length.seconds, SECONDS_MAX), length.exact)


def _decode(text: str) -> bytes:
    """Return the bytes of a Base64 text, decoded in parts; raise `UnplainRecording` for a strange one."""
    if len(text) > BASE64_BYTES_MAX:
        raise UnplainRecording
    parts = [text[at : at + _AT_ONCE] for at in range(0, len(text), _AT_ONCE)]
    if "=" in text[: (len(parts) - 1) * _AT_ONCE]:
        raise UnplainRecording
    return b"".join([binascii.a2b_base64(part, strict_mode=True) for part in parts])


def _length(data: bytes, frames: _Frames) -> Length:
    """Return the length of a recording by its format; raise UnplainRecording for others."""
    for mark in _WITHIN:
        if data.find(mark, _MARKED_BYTES) >= 0 and mark not in data[:_MARKED_BYTES]:
            raise UnplainRecording  # a decoder that is asked for another format looks for its mark
    for at, mark, read in _FORMATS:
        if data.startswith(mark, at):
            return read(data, frames)
    if data[:1] == b"\xff":
        return Length(max(_mp3(data, frames), _aac(data, frames)))
    raise UnplainRecording


def _tagged(data: bytes, frames: _Frames) -> Length:
    """Return the length of an MP3 behind a tag (ID3v2.4, 3.1)."""
    if len(data) < 10 or max(data[6:10]) > 127:
        raise UnplainRecording
    size = sum(byte << 7 * (3 - place) for place, byte in enumerate(data[6:10]))
    behind = 10 + size + (10 if data[5] & 0x10 else 0)
    if data[behind : behind + 1] != b"\xff":
        raise UnplainRecording
    return _length(data[behind:], frames)


# MP3 and its siblings (ISO 11172-3, 13818-3): a head of four bytes states version, layer and rates of a frame.
_KBITS: Final = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
_VERSIONS: Final = {
    0: (2, 4),
    2: (2, 2),
    3: (1, 1),
}  # by their two bits: the row above, and what divides rates


def _mp3_frames() -> Iterator[tuple[int, tuple[int, float]]]:
    """Yield the second and third byte of each head, without its flags, with the frame's bytes and seconds."""
    for bits, (row, divisor) in _VERSIONS.items():
        for layer in (1, 2, 3):
            samples, unit = (384, 4) if layer == 1 else (1_152, 1)
            if (row, layer) == (2, 3):
                samples = 576
            for kbits_at, kbits in enumerate(_KBITS[row, layer], 1):
                for rate_at, full in enumerate((44_100, 48_000, 32_000)):
                    rate = full // divisor
                    for padding in (0, 1):
                        size = (samples // 8 // unit * kbits * 1_000 // rate + padding) * unit
                        second = 0xE0 | bits << 3 | (4 - layer) << 1
                        third = kbits_at << 4 | rate_at << 2 | padding << 1
                        yield second << 8 | third, (size, samples / rate)


@lru_cache(1)
def _mp3_table() -> dict[int, tuple[int, float]]:
    return dict(_mp3_frames())


_MP3_FRAME = re.compile(rb"\xff(?=[\xe2-\xff][\x10-\xef])")


def _mp3_frame(data: bytes, at: int) -> tuple[int, float] | None:
    """Return the bytes and the seconds of the frame that begins with 255 at `at`; None if it is no frame."""
    return _mp3_table().get((data[at + 1] & 0xFE) << 8 | data[at + 2] & 0xFE)


def _mp3(data: bytes, frames: _Frames) -> float:
    """Return the seconds of all frames, wherever a decoder may find them, or what its bytes have at most."""
    first = _mp3_frame(data, 0)
    if first is None and data[1] & 6:
        raise UnplainRecording  # such as frames of a free rate
    seconds = 0.0
    for match in _MP3_FRAME.finditer(data):
        frames.take()
        seconds += (_mp3_frame(data, match.start()) or (0, 0.0))[1]
    each = 0.0 if first is None else first[1]
    most = len(data) / _MP3_BYTES_PER_SECOND_MIN + each  # the last one may be cut
    return max(_mp3_claim(data, each), min(seconds, most))


def _mp3_claim(data: bytes, seconds: float) -> float:
    """Return the time that the first frame, of so many seconds, claims in a head of Xing's or Fraunhofer's."""
    head = data[:200]
    for mark, offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        at = head.find(mark)
        if at >= 0 and len(head) >= at + offset + 4:
            return seconds * _number(head[at + offset : at + offset + 4])
    return 0.0


# AAC (ISO 13818-7, 6.2): frames of up to four blocks of 1,024 samples.
_AAC_RATES: Final = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
)  # fmt: skip
_AAC_SAMPLES: Final = 1_024


_AAC_FRAME = re.compile(rb"\xff(?=[\xf0\xf1\xf8\xf9])")
_AAC_FRAME_ANY = re.compile(rb"\xff(?=[\xf0-\xff])")  # FFmpeg reads a file of AAC on whatever its layers say


def _aac(data: bytes, frames: _Frames) -> float:
    """Return the seconds in the frames of an AAC file."""
    seconds, before = 0.0, _AAC_RATES[0]
    pattern = _AAC_FRAME if data[1] & 6 else _AAC_FRAME_ANY
    for match in pattern.finditer(data, 0, len(data) - 6):
        frames.take()
        at, blocks = data[match.start() + 2] >> 2 & 15, (data[match.start() + 6] & 3) + 1
        if at < len(_AAC_RATES):
            rate = _AAC_RATES[at]
            seconds += _AAC_SAMPLES * blocks / min(rate, before)  # a decoder may keep to the one before
            before = rate
    return seconds


# FLAC (RFC 9639, 9.1): a head of a frame with its own checksum.
_FLAC_FRAME = re.compile(rb"\xff(?=[\xf8\xf9][\x10-\xff])")
_FLAC_RATES: Final = (
    88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000,
)  # fmt: skip


def _crc8(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 ^ (0x107 if byte & 0x80 else 0)
    return byte


_CRC8: Final = bytes(map(_crc8, range(256)))


def _flac(data: bytes, frames: _Frames) -> Length:
    """Return the length of a FLAC file: the larger of its claim and its frames' sum."""
    claim, rate = flac_claim(data)
    if not rate:
        raise UnplainRecording
    seconds = 0.0
    for match in _FLAC_FRAME.finditer(data):
        frames.take(_DEAR)
        head = data[match.start() : match.start() + 16]
        block = _flac_block(head)
        if block is not None:
            samples, own = block
            seconds += samples / min(rate, own or rate)
    return Length(max(claim, seconds))


def _flac_block(head: bytes) -> tuple[int, int] | None:
    """Return the samples and the rate (0: the file's) of the frame with this head; None if it is no head."""
    by_size, by_rate = head[2] >> 4, head[2] & 15
    if len(head) < 6 or by_rate == 15:
        return None
    first = head[4]
    at = 5 if first < 0x80 else 4 + (8 - (~first & 0xFF).bit_length())  # a number as in UTF-8
    size_at, rate_at = at, at + (by_size in {6, 7}) + (by_size == 7)
    ends = rate_at + (by_rate >= 12) + (by_rate >= 13)
    check = 0
    for byte in head[:ends]:
        check = _CRC8[check ^ byte]
    if first in range(0x80, 0xC0) or first == 255 or ends >= len(head) or head[ends] != check:
        return None
    stated = _number(head[rate_at:ends])
    own = stated * {12: 1_000, 13: 1, 14: 10}[by_rate] if by_rate >= 12 else (0, *_FLAC_RATES)[by_rate]
    if by_size in {6, 7}:
        return _number(head[size_at:rate_at]) + 1, own
    if by_size == 1:
        return 192, own
    return (576 << by_size - 2 if by_size < 6 else 256 << by_size - 8), own


def flac_claim(begins: bytes) -> tuple[float, int]:
    """Return the seconds and the rate that the head of a FLAC file states; zeros for others (RFC 9639, 8.2)."""
    if begins[:4] != b"fLaC" or begins[4:5] not in {b"\0", b"\x80"} or len(begins) < 26:
        return 0.0, 0
    stated = _number(begins[18:26])  # 20 bits of rate, 8 of channels and bits, 36 of samples
    rate, samples = stated >> 44, stated & (1 << 36) - 1
    return (samples / rate, rate) if rate else (0.0, 0)


# Ogg (RFC 3533) of Opus (RFC 6716, 3.1; RFC 7845) and of Vorbis.
_OPUS_MS: Final = (10, 20, 40, 60) * 3 + (10, 20) * 2 + (2.5, 5, 10, 20) * 4
_OPUS_RATE: Final = 48_000
_OGG_HEADS: Final = 2  # packets that are no sound, at least
_BEGINS, _CONTINUES = 2, 1  # flags of a page
_VORBIS_POWERS: Final = range(6, 14)  # of two: the samples of a block
_NO_TIME: Final = 0xFFFFFFFFFFFFFFFF


class _Stream:
    """One stream of an Ogg file. `block` are the seconds of a packet of Vorbis; packets of Opus state theirs."""

    __slots__ = ("block", "is_open", "packets", "rate", "seconds", "time")

    def __init__(self, packet: bytes) -> None:
        self.rate, self.block, self.seconds = _OPUS_RATE, 0.0, 0.0
        self.packets, self.time, self.is_open = 0, 0, False
        if packet.startswith(b"\1vorbis"):
            self.rate = int.from_bytes(packet[12:16], "little")
            power = packet[28] >> 4
            if not 0 < self.rate <= _RATE_MAX or power not in _VORBIS_POWERS:
                raise UnplainRecording
            self.block = (1 << power) / 2 / self.rate
        elif not packet.startswith(b"OpusHead"):
            raise UnplainRecording


def _ogg(data: bytes, frames: _Frames) -> Length:
    """Return the length of an Ogg file with Opus: the larger of its frames' sum and its time stamps."""
    streams, ended, at = dict[bytes, _Stream](), list[_Stream](), 0
    while at < len(data):
        if data[at : at + 4] != b"OggS" or len(data) < at + 27:
            raise UnplainRecording
        serial, flags, begins = data[at + 14 : at + 18], data[at + 5], at + 27 + data[at + 26]
        table = data[at + 27 : begins]
        if flags & _BEGINS:
            if serial in streams:
                ended.append(streams.pop(serial))
            streams[serial] = _Stream(data[begins : begins + 30])
        stream = streams.get(serial)
        if stream is None:
            raise UnplainRecording
        stream.is_open = stream.is_open and flags & _CONTINUES > 0
        time = int.from_bytes(data[at + 6 : at + 14], "little")
        stream.time = max(stream.time, 0 if time == _NO_TIME else time)
        frames.take(len(table) + 1)
        at = begins
        for size in table:
            if not stream.is_open and size:
                stream.packets += 1
                if stream.packets > _OGG_HEADS:
                    stream.seconds += stream.block or opus_seconds(data, at)
            stream.is_open = size == 255
            at += size
    return Length(
        sum([max(stream.seconds, stream.time / stream.rate) for stream in (*ended, *streams.values())])
    )


def opus_seconds(data: bytes, at: int) -> float:
    """Return the seconds of the packet at `at`, by its first byte, and the second one where it has many."""
    first = data[at]
    count = (1, 2, 2, data[at + 1] & 63 if at + 1 < len(data) else 0)[first & 3]
    return count * _OPUS_MS[first >> 3] / 1_000


# WAV and AIFF.
_PCM: Final = frozenset({1, 3})
# Bits of a sample. 16 is left out: FFmpeg may take such sound for MP3, AAC or DTS, which lasts longer.
_BITS: Final = frozenset({8, 24, 32, 64})
_EXTENSIBLE: Final = 0xFFFE
_CHANNELS_MAX: Final = 32
_HEAD_BYTES_MAX: Final = 64 << 10  # in front of the sound
_AIFF_PLAIN: Final = frozenset({b"NONE", b"sowt", b"twos", b"in24", b"in32"})


def _wav(data: bytes, frames: _Frames) -> Length:
    """Return the length of a WAV file by its bytes and their rate."""
    per_second, starts, bits = wav_head(data[:_HEAD_BYTES_MAX])
    if not per_second:
        raise UnplainRecording
    if bits == 16:
        return Length(len(data) / SOUND_BYTES_PER_SECOND_MIN, exact=False)
    return Length((len(data) - starts) / per_second)


def wav_head(begins: bytes) -> tuple[int, int, int]:
    """Return the bytes a second of a WAV file, the offset of its sound, and the bits of a sample.

    They are zeros unless it is plain PCM. `begins` are the first bytes of the file.
    """
    if begins[:4] != b"RIFF" or begins[8:12] != b"WAVE":
        return 0, 0, 0
    at, per_second, bits = 12, 0, 0
    while at + 8 <= len(begins):
        kind, size = begins[at : at + 4], int.from_bytes(begins[at + 4 : at + 8], "little")
        if kind == b"data":
            return per_second, at + 8, bits
        if kind == b"fmt ":
            said = begins[at + 8 : at + 8 + size]
            if per_second or size < 16 or len(said) < size:
                return 0, 0, 0
            tag, channels, rate, stated, block, bits = struct.unpack_from("<HHIIHH", said)
            valid = bits
            if tag == _EXTENSIBLE and size >= 26:
                valid, tag = struct.unpack_from("<H4xH", said, 18)
            per_second = rate * channels * bits // 8
            plain = tag in _PCM and 0 < rate <= _RATE_MAX and 0 < channels <= _CHANNELS_MAX
            plain = plain and bits == valid and bits in {16, *_BITS} and block == channels * bits // 8
            if not plain or stated != per_second:
                return 0, 0, 0
        at += 8 + size + size % 2
    return 0, 0, 0


def _aiff(data: bytes, frames: _Frames) -> Length:
    """Return the length of an AIFF file, from its data's size and its format."""
    at, per_second = 12, 0.0
    while at + 8 <= len(data) and data.startswith(b"FORM"):
        frames.take()
        kind, size = data[at : at + 4], _number(data[at + 4 : at + 8])
        if kind == b"COMM":
            channels, _, bits, power, part = struct.unpack_from(">HIHHQ", data, at + 8)
            plain = data[8:12] == b"AIFF" or data[at + 26 : at + 30] in _AIFF_PLAIN
            if per_second or not plain or not 0 < bits <= 32:
                raise UnplainRecording
            rate = part * 2.0 ** (power - 16_383 - 63)  # a number of 80 bits
            if not 1 <= rate <= _RATE_MAX:
                raise UnplainRecording
            per_second = rate * channels * -(-bits // 8)
        elif kind == b"SSND" and per_second > 0:
            return Length((len(data) - at) / per_second)
        at += 8 + size + size % 2
    raise UnplainRecording


# MP4 (ISO 14496-12): boxes of boxes. A file with fragments is not plain.
_BOXES: Final = frozenset({b"mdia", b"minf", b"stbl", b"edts"})
_OTHERWISE_TIMED: Final = frozenset({b"moof", b"mvex", b"cmov", b"rmra"})
_PICTURES: Final = frozenset({b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"})
_AAC_KINDS: Final = frozenset({1, 2, 3, 4, 5, 29})


class _Track:
    """The tables of one track. Times are in its own `unit`, the parts of a second, but for those of its edits."""

    def __init__(self) -> None:
        self.kinds = set[bytes]()
        self.unit = self.stated = self.sum = self.late = self.packets = self.edits = 0
        self.descriptions = b""
        self.is_cut = False  # packets of one size may be parts of larger ones

    def seconds(self) -> float:
        """Return the longest time of the track; raise `UnplainRecording` for sound other than AAC."""
        is_sound = b"soun" in self.kinds
        if not self.unit or not self.kinds or (self.is_cut and is_sound):
            raise UnplainRecording
        heard = self.packets * _AAC_SAMPLES / _aac_rate(self.descriptions) if is_sound else 0.0
        return max(heard, (max(self.stated, self.sum) + self.late) / self.unit)

    def read(self, kind: bytes, data: bytes, begins: int, ends: int) -> None:
        """Read a box that is no table of rows; raise `UnplainRecording` for a second one."""
        if kind == b"mdhd" and not self.unit:
            self.unit, self.stated = _unit_and_time(data, begins)
        elif kind == b"hdlr":
            self.kinds.add(data[begins + 8 : begins + 12])
        elif kind == b"stsd" and not self.descriptions:
            self.descriptions = data[begins:ends]
        elif kind in {b"stsz", b"stz2"}:
            self.is_cut = self.is_cut or (kind == b"stsz" and data[begins + 4 : begins + 8] != bytes(4))
            self.packets += _number(data[begins + 8 : begins + 12])
        elif kind in {b"mdhd", b"stsd"}:
            raise UnplainRecording

    def add(self, kind: bytes, rows: list[tuple[int, ...]]) -> None:
        """Add the rows of a table of times."""
        if kind == b"elst":
            self.edits += sum([row[0] for row in rows])
        elif kind == b"stts":
            self.sum += sum([many * seconds for many, seconds in rows])
        else:
            self.late = max([self.late, *[row[1] for row in rows]])


def _mp4(data: bytes, frames: _Frames) -> Length:
    """Return the length of an MP4 file: the largest of its header, its tracks' edits and samples."""
    movies = [(at, ends) for kind, at, ends in _boxes(data, 0, len(data), frames) if kind == b"moov"]
    if data.count(b"moov") != 1 or len(movies) != 1 or movies[0][1] - movies[0][0] > TABLES_BYTES_MAX:
        raise UnplainRecording
    tracks, unit, stated = list[_Track](), 0, 0
    for kind, at, ends in _boxes(data, *movies[0], frames):
        if kind == b"trak":
            tracks.append(_read_track(data, at, ends, frames))
        elif kind == b"mvhd":
            if unit:
                raise UnplainRecording
            unit, stated = _unit_and_time(data, at)
    if not tracks or not unit:
        raise UnplainRecording
    shown = max([stated, *[track.edits for track in tracks]]) / unit
    return Length(max([shown, *[track.seconds() for track in tracks]]))


def _unit_and_time(data: bytes, at: int) -> tuple[int, int]:
    wide = data[at] == 1
    unit, time = struct.unpack_from(">IQ" if wide else ">II", data, at + (20 if wide else 12))
    return unit, time


def _boxes(data: bytes, at: int, ends: int, frames: _Frames) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box between `at` and `ends`, and where its content begins and ends."""
    while at < ends:
        frames.take(_DEAR)
        size, kind = struct.unpack_from(">I4s", data, at)
        begins = at + 8
        if size == 1:
            size, begins = _number(data[at + 8 : at + 16]), at + 16
        elif size == 0:
            size = ends - at
        if kind in _OTHERWISE_TIMED or begins > at + size or at + size > ends:
            raise UnplainRecording
        yield kind, begins, at + size
        at += size


def _read_track(data: bytes, at: int, ends: int, frames: _Frames) -> _Track:
    """Return a track with its tables of samples and edits, read from its boxes."""
    track, waiting = _Track(), [(at, ends)]
    while waiting:
        for kind, begins, stops in _boxes(data, *waiting.pop(), frames):
            if kind in _BOXES:
                waiting.append((begins, stops))
            elif kind in _TABLES:
                form = _TABLES[kind][data[begins] == 1]
                many, size = _number(data[begins + 4 : begins + 8]), struct.calcsize(form)
                if many * size > stops - begins - 8:
                    raise UnplainRecording
                frames.take(many)
                track.add(kind, list(struct.iter_unpack(form, data[begins + 8 : begins + 8 + many * size])))
            else:
                track.read(kind, data, begins, stops)
    return track


# The rows of tables of times, in the first and the second version of the box.
_TABLES: Final = {b"elst": (">IiI", ">QqI"), b"stts": (">II", ">II"), b"ctts": (">II", ">Ii")}


def _aac_rate(descriptions: bytes) -> int:
    """Return the rate of the one kind of AAC that a track has (ISO 14496-3, 1.6.2.1)."""
    at = descriptions.find(b"esds")
    if (
        descriptions[4:8] != b"\0\0\0\1"
        or descriptions[12:16] != b"mp4a"
        or at < 0
        or b"esds" in descriptions[at + 4 :]
    ):
        raise UnplainRecording
    at += 8
    kinds = list[bytes]()
    while at + 2 <= len(descriptions) and descriptions[at] in _DESCRIPTORS:
        tag, size = descriptions[at], 0
        at += 1
        while descriptions[at] & 0x80:
            at += 1
        size = descriptions[at] & 0x7F
        at += 1
        if tag == 5:
            kinds.append(descriptions[at : at + size])
        elif tag == 4 and descriptions[at] != 0x40:
            raise UnplainRecording
        at += _DESCRIPTORS[tag] if tag != 5 else size
    if len(kinds) != 1 or len(kinds[0]) < 2 or kinds[0][0] >> 3 not in _AAC_KINDS:
        raise UnplainRecording
    return _AAC_RATES[_number(kinds[0][:2]) >> 7 & 15]


_DESCRIPTORS: Final = {3: 3, 4: 13, 5: 0}  # by tag: the bytes in front of the next one


# WebM (RFC 9559): elements of elements. Those that hold others may have no stated size.
_HOLDING: Final = frozenset({0x18538067, 0x1549A966, 0x1F43B675, 0xA0, 0x1654AE6B, 0xAE})
_SCALE, _DURATION, _TIME, _SIMPLE, _BLOCK, _BLOCK_TIME = 0x2AD7B1, 0x4489, 0xE7, 0xA3, 0xA1, 0x9B
_SEGMENT, _CLUSTER, _TRACK, _NUMBER, _KIND, _CODEC, _FRAME_TIME = (
    0x18538067,
    0x1F43B675,
    0xAE,
    0xD7,
    0x83,
    0x86,
    0x23E383,
)
_OTHERWISE: Final = frozenset({0x6D80, 0x23314F})  # packed tracks, and tracks of a time of their own
_SOUND_TRACK: Final = 2
# Elements behind the first cluster: blocks and their members, blanks, tags and places of pictures.
_BEHIND: Final = frozenset(
    {
        _CLUSTER, _TIME, _SIMPLE, _BLOCK, _BLOCK_TIME, 0xA0, 0xA7, 0xAB, 0xEC, 0xBF, 0xFB, 0x75A1, 0x75A2,
        0x1C53BB6B, 0x1254C367,
    }
)  # fmt: skip
_OF_TRACK: Final = frozenset({_NUMBER, _KIND, _CODEC, _FRAME_TIME})
_OPUS: Final = b"A_OPUS"
_LACED: Final = 6  # flags of a block with several frames


def _webm(data: bytes, frames: _Frames) -> Length:
    """Return the length of a WebM file with Opus: the larger of its blocks' times and its frames' sum."""
    scale, stated, cluster, last, longest, frame_ns, segments, clusters = 1_000_000, 0.0, 0, 0, 0, 0, 0, 0
    tracks = list[dict[int, bytes]]()
    heard, codecs = dict[int, float](), dict[int, bytes]()
    for kind, begins, ends in _elements(data, frames):
        segments += kind == _SEGMENT
        clusters += kind == _CLUSTER
        if kind in _OTHERWISE or segments > 1 or (clusters and kind not in _BEHIND):
            raise UnplainRecording
        if kind in {_SIMPLE, _BLOCK}:
            codecs = codecs or {_number(track[_NUMBER]): track.get(_CODEC, b"") for track in tracks}
            number, at = _vint(data, begins)
            relative, flags = struct.unpack_from(">hB", data, at)
            if flags & _LACED or number not in codecs:
                raise UnplainRecording
            last = max(last, cluster + relative)
            if codecs[number] == _OPUS:
                heard[number] = heard.get(number, 0.0) + opus_seconds(data, at + 3)
        elif kind == _TRACK:
            tracks.append({})
        elif kind in _OF_TRACK and tracks:
            tracks[-1][kind] = data[begins:ends]
            frame_ns = max(frame_ns, _number(data[begins:ends]) if kind == _FRAME_TIME else 0)
        elif kind == _DURATION:
            stated = max(stated, *struct.unpack(">d" if ends - begins == 8 else ">f", data[begins:ends]))
        elif kind in {_SCALE, _TIME, _BLOCK_TIME}:
            number = _number(data[begins:ends])
            scale = max(scale, number) if kind == _SCALE else scale
            cluster = number if kind == _TIME else cluster
            longest = max(longest, number) if kind == _BLOCK_TIME else longest
    sounds = [track.get(_CODEC) for track in tracks if _number(track.get(_KIND, b"")) == _SOUND_TRACK]
    others = [codec for codec in (*codecs.values(), *sounds) if codec is None or codec.startswith(b"A_")]
    if data.count(_CLUSTER.to_bytes(4, "big")) > clusters:
        raise UnplainRecording  # a decoder may find one within what was skipped
    if not codecs or len(codecs) < len(tracks) or any(codec != _OPUS for codec in others):
        raise UnplainRecording
    shown = max(last + longest, stated) * scale / 1e9 + frame_ns / 1e9
    return Length(max([shown, *heard.values()]))


def _elements(data: bytes, frames: _Frames) -> Iterator[tuple[int, int, int]]:
    """Yield the kind of each element, and where its content begins and ends; those that hold others come first."""
    at = 0
    while at < len(data):
        frames.take(_DEAR)
        width = 9 - data[at].bit_length()
        kind = _number(data[at : at + width])
        size, begins = _vint(data, at + width)
        is_endless = size == (1 << 7 * (begins - at - width)) - 1
        is_whole = kind in _HOLDING if is_endless else begins + size <= len(data)
        if width > 4 or not is_whole:
            raise UnplainRecording
        yield kind, begins, begins if is_endless else begins + size
        at = begins if kind in _HOLDING else begins + size


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of variable length at `at`, and where it ends."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise UnplainRecording
    return _number(data[at : at + width]) & (1 << 7 * width) - 1, at + width


# By the place and the bytes of a mark.
_FORMATS: Final[tuple[tuple[int, bytes, Callable[[bytes, _Frames], Length]], ...]] = (
    (8, b"WAVE", _wav), (8, b"AIF", _aiff), (0, b"fLaC", _flac), (0, b"OggS", _ogg), (4, b"ftyp", _mp4),
    (0, b"\x1a\x45\xdf\xa3", _webm), (0, b"ID3", _tagged),
)  # fmt: skip


# Marks that no file of another format has behind its first bytes, and how many these are.
_WITHIN: Final = (b"OggS", b"fLaC", b"\x1a\x45\xdf\xa3", b"WAVEfmt ")
_MARKED_BYTES: Final = 16


def is_recording(begins: bytes) -> bool:
    """Return whether the first twelve bytes of a file are those of sound or a video, whatever its type says."""
    if begins[:4] == b"RIFF":
        return begins[8:] != b"WEBP"
    if begins[4:8] == b"ftyp":
        return begins[8:] not in _PICTURES
    is_mp3 = begins[:1] == b"\xff" and begins[1:2] >= b"\xe0"
    return is_mp3 or begins.startswith((b"fLaC", b"OggS", b"\x1a\x45\xdf\xa3", b"ID3", b"FORM"))
