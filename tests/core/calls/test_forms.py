"""Forms: what one says, however its bytes come, and what is refused because it could be read in two ways."""

from __future__ import annotations

import pytest

from gateway.core.calls.forms import (
    PART_HEAD_BYTES_MAX,
    PARTS_MAX,
    TEXTS_BYTES_MAX,
    FormReader,
    boundary_of,
)
from gateway.core.families.openai.media import EDIT_FORM, HEARD_FORM
from gateway.errors import InvalidRequest, RequestTooLarge

FILE = b'file"; filename="a.wav'


def form(*parts: tuple[bytes, bytes], more: bytes = b"") -> bytes:
    """A form of names and contents, with `more` lines in each head."""
    said = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n%b\r\n%b\r\n' % (name, more, content)
        for name, content in parts
    ]
    return b"".join((*said, b"--b--\r\n"))


def read(body: bytes, *, at_once: int = 1 << 30) -> FormReader:
    reader = FormReader(HEARD_FORM, b"b")
    for at in range(0, len(body), at_once):
        reader.feed(body[at : at + at_once])
    reader.end()
    return reader


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1 << 20])
def test_a_form_says_the_same_however_its_bytes_come(at_once: int) -> None:
    body = form(
        (b"stream", b"true"), (FILE, b"RIFF\r\n-b\r\n--\r\n" * 3), (b"model", b"whisper-1"), (b"prompt", b""),
        (b"include[]", b"x"), (b"include[]", "é".encode()),
    )  # fmt: skip
    reader = read(body, at_once=at_once)
    assert reader.fields == {"stream": True, "model": "whisper-1", "prompt": "", "include[]": ["x", "é"]}
    assert [(one.name, one.size, one.begins[:4]) for one in reader.files] == [("file", 42, b"RIFF")]
    assert reader.model_at is not None
    assert body[slice(*reader.model_at)] == b"whisper-1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n" + form((b"model", b"m")),  # a preamble
        form((b"model", b"m")) + b"x",
        form((b"model", b"m"))[:-4],  # no end
        b"--b--\r\n",  # no part
        form((b"model", b"m")).replace(b"\r\n", b"\n"),
        form((b"model", b"m")).replace(b"--b\r\n", b"--b \r\n"),
        form((b"model", b"a"), (b"model", b"b")),
        form((b"model", b"a"), (b"Model", b"b")),
        form((b"model[]", b"a")),
        form((b"model[x]", b"a")),
        form((b"models[]", b"a")),
        form((b"model", b"a\n--b\nContent-Disposition: form-data; name=x\n\n1")),  # a mark within
        form((FILE, b"\n--bx")),
        form((b'model"; filename="m.txt', b"m")),  # a text as a file
        form((b"file", b"RIFF")),  # a file as a text
        form((b'other"; filename="m.txt', b"m")),
        form((b'file"; filename="a\\"; name=\\"model', b"m")),
        form((b'model"; name="file', b"m")),
        form((b"a b", b"m")),
        form((b"url", b"http://x")),
        form((b"File_URL[0]", b"http://x")),
        form((b"_charset_", b"utf-16")),
        form((b"stream", b"1")),
        form((b"model", b"\xff")),
        form((b"model", b"m"), more=b"Content-Type: text/plain; charset=utf-16\r\n"),
        form((b"model", b"\xe9"), more=b"Content-Type: text/plain; charset=iso-8859-1\r\n"),
        form((b"model", b"m"), more=b"Content-Type: application/json\r\n"),
        form((FILE, b"m"), more=b"Content-Type: multipart/mixed; boundary=c\r\n"),
        form((b"model", b"bQ=="), more=b"Content-Transfer-Encoding: base64\r\n"),
        form((b"model", b"m"), more=b'Content-Disposition: form-data; name="n"\r\n'),
        form((b"model", b"m"), more=b"X-Other: 1\r\n"),
        form((b"model", b"m"), more=b" folded\r\n"),
        form((b"model", b"m"), more=b"Content-Length: 2\r\n"),
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    for at_once in (1 << 20, 5):
        with pytest.raises(InvalidRequest):
            read(body, at_once=at_once)


@pytest.mark.parametrize(
    "kind", [b"text/plain", b"text/plain; charset=utf-8", b"text/plain;charset=US-ASCII"]
)
def test_what_libraries_say_of_a_text_passes(kind: bytes) -> None:
    lines = b"Content-Type: %b\r\nContent-Transfer-Encoding: 8bit\r\nContent-Length: 1\r\n" % kind
    assert read(form((b"model", b"m"), more=lines)).fields == {"model": "m"}


def test_what_is_kept_of_a_form_has_a_bound() -> None:
    with pytest.raises(InvalidRequest, match=str(PART_HEAD_BYTES_MAX)):
        FormReader(HEARD_FORM, b"b").feed(b"--b\r\n" + b"x" * PART_HEAD_BYTES_MAX)
    with pytest.raises(RequestTooLarge):
        read(form(*((b"a[]", b"") for _ in range(PARTS_MAX + 1))))
    with pytest.raises(RequestTooLarge):
        read(form((b"prompt", b"x" * (TEXTS_BYTES_MAX + 1))))


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=a b",
        b"multipart/form-data; boundary=a; boundary=b", b"multipart/form-data; boundary*=utf-8''a",
        b"multipart/mixed; boundary=a", b"multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        b'multipart/form-data; boundary="a\\"b"', b"multipart/form-data; boundary=a; charset=utf-16",
    ],
)  # fmt: skip
def test_a_type_that_names_no_one_mark_is_refused(kind: bytes) -> None:
    with pytest.raises(InvalidRequest):
        boundary_of(kind)


def test_a_picture_may_be_one_of_a_list() -> None:
    reader = FormReader(EDIT_FORM, b"b")
    reader.feed(form((b'image[]"; filename="a', b"1"), (b'image[]"; filename="b', b"2"), (b"n", b"2")))
    reader.end()
    assert (len(reader.files), reader.fields) == (2, {"n": 2})
