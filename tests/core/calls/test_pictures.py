"""The sizes of pictures, and what they hold: never less than their provider counts for these pixels."""

from __future__ import annotations

import base64
import json
import struct
from typing import Final

import pytest

from gateway.core.calls.estimate import Estimator
from gateway.core.calls.parsing import read_call
from gateway.core.calls.pictures import size_of
from gateway.core.calls.routes import Route
from gateway.core.model import Family


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBBI", width, height, 8, 2, 0, 0, 0, 0)


def jpeg(width: int, height: int, *, thumbnail: int = 0, marker: int = 0xC2) -> bytes:
    """A photo with a smaller one of a camera in front of its size."""
    inner = b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 9, 9)
    camera = b"\xff\xe1" + struct.pack(">H", thumbnail + 2 + len(inner)) + inner + bytes(thumbnail)
    frame = b"\xff" + bytes((marker,)) + struct.pack(">HBHH", 11, 8, height, width)
    return b"\xff\xd8" + camera + b"\xff\xdb\0\4\0\0" + b"\xff" + frame + bytes(9)


def webp(width: int, height: int, kind: bytes = b"VP8 ") -> bytes:
    plain = bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height)
    lossless = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14)
    return b"RIFF\0\0\0\0WEBP" + kind + bytes(4) + (plain if kind == b"VP8 " else lossless)


GIF: Final = b"GIF89a\1\0\1\0\0\0"
AVIF: Final = struct.pack(">I", 28) + b"ftypavif\0\0\0\0avifmif1miaf" + bytes(99)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(1_280, 800), (1_280, 800)),
        (jpeg(4_000, 3_000), (4_000, 3_000)),
        (jpeg(4_000, 3_000, thumbnail=30_000), (4_000, 3_000)),
        (webp(640, 480), (640, 480)),
        (webp(16_384, 1, b"VP8L"), (16_384, 1)),
        # Their size is elsewhere, or nowhere.
        (webp(640, 480, b"VP8X"), None),
        (jpeg(9, 9, marker=0xC4), None),
        (jpeg(9, 9, thumbnail=60_000)[:50_000], None),
        (png(0, 9), None),
        (GIF, None),
        (AVIF, None),
        (b"", None),
    ],
)
def test_the_size_of_a_picture_is_that_of_its_decoders(data: bytes, size: tuple[int, int] | None) -> None:
    assert size_of(text(data)) == size
    assert size_of(text(data[:20])) is None, "it is cut"


def test_the_size_of_a_text_that_is_no_base64_is_unknown() -> None:
    assert size_of("/9j/é") is None
    assert size_of("iVBOR") is None


def held(model: str, *pictures: bytes) -> int:
    """The most input tokens of a chat with these pictures."""
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text(picture)}"}}
        for picture in pictures
    ]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": parts}]}).encode()
    route = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")
    return Estimator().hold(read_call(route, {}, body), 1, "s").read


# By hand: parts of 28, 32 or 16 pixels to a side, rounded up, within 1,600 and the most of the model.
@pytest.mark.parametrize(
    ("model", "pictures", "tokens"),
    [
        ("claude-opus-4-7", [png(1_568, 1_568)], 3_136),  # 56 x 56
        ("claude-opus-4-7", [png(1, 1)], 1_600),
        ("claude-opus-4-7", [png(8_000, 8_000)], 4_784),
        ("claude-opus-4-7", [AVIF], 4_784),
        ("claude-opus-4-7", [png(1_568, 1_568), GIF], 3_136 + 4_784),
        ("gpt-5.6", [png(1_280, 800)], 2_460),  # 40 x 25 x 2.46
        ("gpt-5.6", [png(6_000, 6_000)], 12_000),
        ("qwen3-vl", [jpeg(4_000, 3_000)], 15_444),  # 143 x 108
        ("qwen3-vl", [GIF], 16_384),
        ("pixtral-12b", [png(800, 600)], 2_033),  # 50 x 38 x 1.07
        ("grok-4", [png(1, 1)], 1_792),
        ("gpt-4o-mini", [png(1, 1)], 48_169),
        ("some-model", [png(1, 1)], 48_169),
    ],
)
def test_a_picture_holds_its_parts_or_the_most_of_its_model(
    model: str, pictures: list[bytes], tokens: int
) -> None:
    assert tokens <= held(model, *pictures) <= tokens + 400 * len(pictures)
