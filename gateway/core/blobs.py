"""What of a body is text, and what stands for images, sound and files: those cost by other measures."""

from __future__ import annotations

import re

BLOB_BYTES_MIN = 2048  # base64 shorter than this counts as text
BLOB_TOKENS = 1_600  # what one image costs at most, near enough, at every provider
BLOB_BYTES_PER_TOKEN = 1_024  # and what a long recording or document adds

_RUN = re.compile(rb"[A-Za-z0-9+/=_-]{%d,}+" % BLOB_BYTES_MIN)
# A body is written without blanks, so what stands in front of a blob is known to the byte.
_MARKS = (b";base64,", b'"data":"')


def without_blobs(written: bytes) -> tuple[int, int]:
    """Bytes of a body that are text, and tokens for what is base64."""
    size, tokens = len(written), 0
    for mark in _MARKS:
        at = written.find(mark)
        while at >= 0:
            at += len(mark)
            match = _RUN.match(written, at)
            if match is not None:
                length = match.end() - at
                at = match.end()
                size -= length
                tokens += BLOB_TOKENS + length // BLOB_BYTES_PER_TOKEN
            at = written.find(mark, at)
    return size, tokens
