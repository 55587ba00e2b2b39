"""How many pages a PDF has at most, however it is written, and that nothing is said of one in doubt."""

from __future__ import annotations

import base64
import io
import random
import zlib
from collections.abc import Callable
from itertools import accumulate

import pytest
from pypdf import PdfReader, PdfWriter

from gateway.core.calls import documents
from gateway.core.calls.documents import pages_of

PAGE = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"
ROOT = b"<</Type/Catalog/Pages 2 0 R>>"


def count(data: bytes) -> int | None:
    (found,) = pages_of([base64.b64encode(data).decode()])
    return found


def kids(*numbers: int) -> bytes:
    return b"[%b]" % b" ".join(b"%d 0 R" % one for one in numbers)


def tree(*numbers: int, claim: int | None = None) -> bytes:
    return b"<</Type/Pages/Count %d/Kids%b>>" % (len(numbers) if claim is None else claim, kids(*numbers))


def plain(*objects: tuple[int, bytes]) -> bytes:
    return b"%PDF-1.7\n" + b"".join(b"%d 0 obj\n%b\nendobj\n" % one for one in objects)


def packed(
    *objects: tuple[int, bytes], members: bytes = b"/Filter/FlateDecode", deflated: bool = True
) -> bytes:
    """A file whose objects are in one stream, as `members` say."""
    offsets = list(accumulate([len(text) + 1 for _, text in objects], initial=0))[:-1]
    head = b" ".join(b"%d %d" % (number, at) for (number, _), at in zip(objects, offsets, strict=True)) + b" "
    inside = head + b" ".join(text for _, text in objects)
    return b"%%PDF-1.7\n99 0 obj<</Type/ObjStm/N %d/First %d%b>>stream\n%b\nendstream endobj\n" % (
        len(objects), len(head), members, zlib.compress(inside, 9) if deflated else inside,
    )  # fmt: skip


def of_pages(many: int) -> list[tuple[int, bytes]]:
    numbers = range(3, 3 + many)
    return [(1, ROOT), (2, tree(*numbers)), *[(number, PAGE) for number in numbers]]


@pytest.mark.parametrize("many", [1, 7, 1_000])
@pytest.mark.parametrize("written", [plain, packed])
def test_pages_are_as_many_as_the_file_has(many: int, written: Callable[..., bytes]) -> None:
    assert count(written(*of_pages(many))) == many


def test_a_thousand_pages_in_few_bytes_are_a_thousand() -> None:
    data = packed(*of_pages(1_000))
    assert len(data) < 10_000
    assert count(data) == 1_000


@pytest.mark.parametrize("many", [1, 30])
def test_pages_of_a_usual_writer_are_as_many_as_its_reader_finds(many: int) -> None:
    writer, file = PdfWriter(), io.BytesIO()
    for _ in range(many):
        writer.add_blank_page(100, 100)
    writer.add_outline_item(title="Begin (all) of it", page_number=0)
    writer.write(file)
    assert count(file.getvalue()) == len(PdfReader(file).pages) == many


def test_a_tree_is_followed_and_what_is_no_page_is_not_counted() -> None:
    form, names = b"<</FT/Tx/Kids[21 0 R 22 0 R]>>", b"<</Kids[23 0 R]>>"
    assert (
        count(plain((1, ROOT), (2, tree(3, 4)), (3, tree(5, 6)), (4, tree(7)), (20, form), (24, names))) == 3
    )


TWO = [(1, ROOT), (2, tree(3, 4)), (3, PAGE), (4, PAGE)]


@pytest.mark.parametrize(
    ("objects", "most"),
    [
        ([(1, ROOT), (2, tree(3, 4, claim=1)), (3, PAGE), (4, PAGE)], 2),  # it claims fewer
        ([(1, ROOT), (2, tree(3, claim=70)), (3, PAGE)], 70),  # or more
        ([*TWO, (2, tree(3, 4, 5, 6))], 4),  # an update adds two
        ([(2, tree(3, 4, 5, 6)), *TWO], 4),  # or takes them away
        ([*TWO, (8, b"<</Type/Catalog/Pages 9 0 R>>"), (9, tree(10, 11, 12))], 5),  # two trees
        ([(1, ROOT), (2, b"<</K#69ds[3 0 R 4 0 R]/C#6funt 1>>")], 2),
        ([(1, b"<</P#61ges 2 0 R>>"), (2, tree(3, 4))], 2),
        ([(1, ROOT), (2, b"<</Kids[3 0 R]/Kids[4 0 R 5 0 R]>>")], 3),
        ([(1, ROOT), (2, b"<</Title(\\)>> endobj)/Kids[3 0 R 4 0 R]>>")], 2),
        ([(1, ROOT), (2, b"<</A<3e3e>/B%>> endobj\n/Kids\r[3  0\nR 4 0 R ]>>")], 2),
        ([(1, ROOT), (2, PAGE)], 1),
    ],
)
@pytest.mark.parametrize("written", [plain, packed])
def test_a_file_that_says_two_things_has_the_most_pages_of_both(
    objects: list[tuple[int, bytes]], most: int, written: Callable[..., bytes]
) -> None:
    assert count(written(*objects)) == most


def test_pages_beside_a_stream_and_in_it_are_counted_together() -> None:
    assert count(packed(*of_pages(3)) + plain((2, tree(3, 4, 5, 6, 7)))) == 5


@pytest.mark.parametrize(
    "objects",
    [
        [(1, ROOT), (2, b"<</Kids 5 0 R>>"), (5, kids(3, 4))],
        [(1, ROOT), (2, b"<</Kids[<</Type/Page>><</Type/Page>>]>>")],
        [(1, ROOT), (2, b"<</Kids%x\n[3 0 R]>>")],
        [(1, ROOT), (2, tree(3, 3, 3, 3))],  # one page four times
        [(1, ROOT), (2, tree(3, 4)), (3, tree(5)), (4, tree(5))],
        [(1, ROOT), (2, tree(2))],
        [(1, ROOT), (2, b"<</Kids[3 0 R]/Count 9 0 R>>"), (9, b"900")],
        [(1, b"<</Pages<</Kids[3 0 R]>>>>")],
        [(2, tree(3))],  # no catalog
        [*TWO, (8, b"<</Encrypt 5 0 R>>")],
        [*TWO, (8, b"<</Filter/FlateDecode/N 3 0 R>>stream\nx\nendstream")],
        [*TWO, (8, b"<</Filter/LZWDecode/N 3/First 9>>stream\nx\nendstream")],
        [*TWO, (8, b"<</#4e 3/First 9>>stream\n3 0 4 9 endstream")],
        [*TWO, (8, b"<<(")],
        [*TWO, (8, b"<<]/Kids[5 0 R]>>")],
    ],
)
def test_nothing_is_said_of_a_file_that_is_not_plain(objects: list[tuple[int, bytes]]) -> None:
    assert count(plain(*TWO)) == 2
    assert count(plain(*objects)) is None


@pytest.mark.parametrize(
    "members",
    [
        b"/Filter[/ASCIIHexDecode/FlateDecode]", b"/Filter/FlateDecode/DecodeParms<</Predictor 12>>",
        b"/Filter 7 0 R", b"/Filter/FlateDecode/Filter/FlateDecode", b"/Filter/FlateDecode/N 1", b"/N 7 0 R",
        b"/Filter/FlateDecode/First 0", b"/Filter/LZWDecode",
    ],
)  # fmt: skip
def test_nothing_is_said_of_a_stream_that_is_more_than_deflated(members: bytes) -> None:
    assert count(packed(*TWO)) == 2
    assert count(packed(*TWO, members=members)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"%PDF-1.7", b"PK\x03\x04" + plain(*TWO)[8:], plain(*TWO) + b"7 0 obj<<",
        plain(*TWO) + b"9 0 lbj<</Kids[3 0 R 4 0 R 5 0 R]>>endobj",
        plain(*TWO) + b"9 0 obk<</K#69ds[]>>endobj",
        plain(*TWO) + b"trailer<</Encr#79pt 9 0 R>>", plain(*TWO) + b"7 0 %x\nobj<</Kids[8 0 R]>>endobj",
        packed(*of_pages(9))[:-40],
    ],
)  # fmt: skip
def test_nothing_is_said_of_what_is_no_whole_file(data: bytes) -> None:
    assert count(data) is None


_TOKENS = (
    b"/Kids", b"/Count 9", b"[3 0 R 4 0 R]", b"<<", b">>", b"3 0 R", b"endobj", b"\n9 0 obj", b"%", b"\n",
    b"(", b")", b"/#4bids", b"/Pages", b"[", b"]", b"stream\n", b"endstream", b"/N 3", b"<", b">", b"\0",
)  # fmt: skip


def damaged(draw: random.Random, data: bytes) -> bytes:
    at, width = draw.randrange(len(data)), draw.randrange(1, 20)
    other = draw.randrange(len(data))
    put, left = draw.choice(
        [
            (draw.choice(_TOKENS), draw.randrange(3)), (draw.randbytes(1), 1), (b"", width),
            (data[other : other + width], 0),
        ]
    )  # fmt: skip
    return data[:at] + put + data[at + left :]


@pytest.mark.filterwarnings("ignore")
def test_no_reader_finds_more_pages_in_a_damaged_file() -> None:
    draw, known, ends = random.Random(7), 0, b"trailer<</Root 1 0 R/Size 200>>\n%%EOF"
    trees = [(1, ROOT), (2, tree(3, 4)), (3, tree(5, 6)), (4, tree(7)), *[(one, PAGE) for one in (5, 6, 7)]]
    whole = [plain(*of_pages(4)) + ends, packed(*of_pages(4)) + ends, plain(*trees) + ends]
    for number in range(1_500):
        data = damaged(draw, damaged(draw, whole[number % 3]))
        most = count(data)
        if most is not None:
            known += 1
            assert read(data) <= most, data
    assert known > 300


def read(data: bytes) -> int:
    """As many pages as a usual reader finds, none where it gives up."""
    try:
        return len(list(PdfReader(io.BytesIO(data)).pages))
    except Exception:  # noqa: BLE001  # it raises whatever a damaged file brings about
        return 0


def test_nothing_is_said_of_text_that_readers_of_base64_take_differently() -> None:
    text = base64.b64encode(plain(*TWO)).decode()
    assert list(pages_of([text, text + "=", "!" + text, text[:9] + "\n" + text[9:], "é"])) == [2, *[None] * 4]


def test_no_more_of_all_documents_is_read_than_the_bounds() -> None:
    bomb = packed((1, ROOT), (2, tree(3)), (4, b" " * (2 << 20)))
    two = base64.b64encode(plain(*TWO)).decode()
    assert list(pages_of([two, base64.b64encode(bomb).decode(), two])) == [2, None, None]
    many = packed(*[(one, b"<<>>") for one in range(documents.OBJECTS_MAX)])
    assert count(many) is None
