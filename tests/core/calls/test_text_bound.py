"""No text has more tokens than its bound, and texts of twenty languages are bounded by half as many more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls import text_bound as module
from gateway.core.calls.alphabets import CL100K, O200K, TOKENIZERS
from gateway.core.calls.estimate import BOUND_BYTES_MAX, Estimator
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.calls.text_bound import PIECE_BYTES_MAX, bound_tokens, counted, most_tokens
from gateway.core.model import Family
from tests import extensions
from tests.tree import ROOT

HERE = Path(__file__).parent
SOURCE = ROOT / "gateway" / "core" / "calls" / "_text.c"
# Texts, and the tokens of eight lines of each. Then the dearest 24 characters of a block each, and the tokens
# of eight rows of these. As bpe-openai 0.1.4 counts by OpenAI's tokenizers.
TEXTS, LETTERS = (
    [json.loads(line) for line in (HERE / name).read_text("utf-8").splitlines()]
    for name in ("texts.jsonl", "letters.jsonl")
)
ORDINARY = ["ar", "bg", "cs", "de", "en", "es", "fi", "fr", "hu", "id", "is", "it", "ja", "lv", "pl", "ro", "sr", "sv", "sw", "tr", "uk", "yo", "zh"]  # fmt: skip
ROUTE = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")
MODELS = {"gpt-4o": "o200k", "gpt-4-turbo": "cl100k"}


def body_of(text: str, model: str = "gpt-4o", **said: Any) -> bytes:
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}], **said})


def read(text: str, model: str, estimator: Estimator | None = None) -> int:
    asked = read_call(ROUTE, {}, body_of(text, model))
    return (estimator or Estimator()).hold(asked, 1, "chat").read


def lines(row: dict[str, Any]) -> str:
    return "\n".join([row["text"]] * 8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", LETTERS, ids=lambda row: f"{ord(row['letters'][0]):04X}")
def test_a_strict_hold_covers_the_dearest_letters_of_each_block(row: dict[str, Any], model: str) -> None:
    text = row["letters"] * 8
    assert row[MODELS[model]] <= read(text, model) - read("", model) <= len(text.encode())


def test_a_strict_hold_covers_rare_letters_threefold_dearer_than_common_ones() -> None:
    """The text has a thousand letters from U+0460 on. Each is two tokens of o200k_base."""
    text = ("".join(map(chr, range(0x460, 0x482))) * 30)[:1_000]
    assert read(text, "gpt-4o") - read("", "gpt-4o") == 2_000


@pytest.mark.parametrize("row", TEXTS, ids=lambda row: row["kind"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_bound_is_no_less_than_the_tokens_of_a_text(row: dict[str, Any], tokenizer: str) -> None:
    tokens = row[tokenizer.partition("_")[0]]
    assert tokens <= most_tokens(lines(row), tokenizer) <= len(lines(row).encode())


@pytest.mark.parametrize(
    "row", [row for row in TEXTS if row["kind"] in ORDINARY], ids=lambda row: row["kind"]
)
def test_an_ordinary_text_is_held_at_half_as_many_tokens_more_at_most(row: dict[str, Any]) -> None:
    held = read(lines(row), "gpt-4o") - read("", "gpt-4o")
    assert row["o200k"] <= held <= 1.5 * row["o200k"]


def test_twenty_languages_are_ordinary() -> None:
    assert len({row["kind"] for row in TEXTS} & set(ORDINARY)) >= 20


def test_a_model_without_a_public_tokenizer_is_held_at_a_fifth_more_than_the_dearer_one() -> None:
    """`the` and `a` are one token of both, and three marks stand between: 5 x 1.2."""
    body = b'{"a":"the"}'
    assert bound_tokens(body, O200K) == bound_tokens(body, CL100K) == (5, len(body))
    assert bound_tokens(body, "") == (6, len(body))


def test_no_body_is_held_at_more_tokens_than_bytes() -> None:
    body = ('{"a":"%s"}' % ("\U00100000" * 10)).encode()
    assert bound_tokens(body, O200K) == (44, len(body))  # four a letter, `a`, and three marks
    assert bound_tokens(body, "") == (len(body), len(body)), "48 is less than 44 x 1.2"


def test_a_letter_without_an_entry_counts_by_its_bytes() -> None:
    """A capital that no entry has is two bytes; three digits are a piece."""
    assert most_tokens("the", O200K) == 1
    assert most_tokens("Ѡ", O200K) == 2
    assert most_tokens("12.34", O200K) == 3
    assert most_tokens("", O200K) == 0


def test_a_long_piece_counts_by_its_bytes() -> None:
    assert most_tokens("a" * (PIECE_BYTES_MAX + 1), O200K) == PIECE_BYTES_MAX + 1
    assert most_tokens("a" * PIECE_BYTES_MAX, O200K) < PIECE_BYTES_MAX


def test_where_the_tokenizer_is_installed_it_counts() -> None:
    """Three tokens a string, by what stands for a tokenizer here: four strings and the marks between them."""
    body = body_of("Привет", "gpt-4o")
    strings = len(["model", "gpt-4o", "messages", "role", "user", "content", "Привет"])
    between = len("{:,:[{:,:}]}")
    estimator = Estimator(tokenizer=lambda _: lambda _: 3)
    asked = read_call(ROUTE, {}, body)
    assert estimator.hold(asked, 1, "chat").read == 3 * strings + between
    unknown = read_call(ROUTE, {}, body_of("Привет", "claude-5"))
    assert estimator.hold(unknown, 1, "chat").read != 3 * strings + between


def test_a_hold_that_binds_nothing_is_what_texts_have_at_most() -> None:
    """Two bytes of ASCII a token, whatever letters: as is likely."""
    asked = read_call(ROUTE, {}, body_of("q" * 300, "gpt-4o"))
    assert Estimator().hold(asked, 1, "chat", binds=False).read == -(-asked.input_bytes // 2)


def test_a_body_that_is_too_long_to_count_is_held_by_its_bytes() -> None:
    letters = "Ѡ" * (BOUND_BYTES_MAX // 2)
    assert read(letters, "gpt-4o") >= len(letters.encode())


def test_a_plan_that_binds_is_remembered_until_it_binds_no_more() -> None:
    estimator = Estimator()
    assert not estimator.unbound
    estimator.note_plan(7, binds=False)
    assert set(estimator.unbound) == {7}
    estimator.note_plan(7, binds=True)
    assert not estimator.unbound


@pytest.mark.parametrize(
    ("body", "covered"),
    [
        (b'{"a":"b"}', 9), (b'{"a":"b', None), (b'{"a":"\\u0416"}', None), (b'{"a":"\\u00e9"}', None),
        (b'{"a":"\\u001f\\n\\"\\\\"}', 20), (b'{"a":"\\x"}', None), (b'{"a":"\\\\u0416"}', 15), (b"", 0),
        (b'{"a":"b\\"}', None), (b'"', None), (b'{"a":1.5}', 9),
    ],
)  # fmt: skip
def test_a_body_is_read_whole_or_not_at_all(body: bytes, covered: int | None) -> None:
    for bound in (by_python, in_c()):
        found = bound(body, 0, False)
        assert (None if found is None else found[1]) == covered


def by_python(body: bytes, number: int, rare_alone: bool) -> tuple[int, int] | None:  # as in C
    name = TOKENIZERS[number]
    return counted(body, lambda text: most_tokens(text, name), rare_alone=rare_alone)


def in_c() -> Callable[[bytes, int, bool], tuple[int, int] | None]:
    return module.prepare(extensions.built(SOURCE))


# Characters whose neighbours share tokens with them, marks, blanks, contractions, and letters of all sizes.
_EDGES = [
    "'s",
    "'LL",
    "'ſ",
    "'re",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "/",
    "\xa0",
    "\u3000",
    "A",
    "é",
    "1",
    "٣",
    "²",
]
_EDGES += [
    "\u0301",
    "ß",
    "ǅ",
    "ʰ",
    "ク",
    "ｸ",
    "한",
    "ক",
    "ি",
    "ก",
    "ำ",
    "😀",
    "🏔️",
    "\u200d",
    "\U000e0100",
    "ћ",
    "中",
]
_texts = st.lists(
    st.one_of(
        st.sampled_from(_EDGES),
        st.characters(exclude_categories=["Cs", "Cn"]),
        st.sampled_from([row["text"][at : at + 9] for row in TEXTS for at in (0, 7)]),
        st.sampled_from([row["letters"][at : at + 5] for row in LETTERS for at in (0, 9)]),
    ),
    max_size=30,
).map("".join)


@given(text=_texts, number=st.integers(0, 1), rare=st.booleans(), times=st.sampled_from([1, 1, 1, 40]))
def test_the_count_in_c_is_that_of_the_definition(text: str, number: int, rare: bool, times: int) -> None:
    body = body_of(text * times)
    found = in_c()(body, number, rare)
    assert found == by_python(body, number, rare)
    assert found is not None
    assert found[0] <= found[1]


@given(_texts, st.sampled_from(TOKENIZERS))
def test_no_text_has_more_tokens_than_its_bound_where_the_tokenizer_is_installed(
    text: str, name: str
) -> None:
    package = pytest.importorskip("bpe_openai", reason="the tokenizer is an optional extra")
    assert len(package.get_encoding(name).encode_ordinary(text)) <= most_tokens(text, name)


def test_the_table_is_what_its_program_makes_where_the_tokenizer_is_installed() -> None:
    pytest.importorskip("bpe_openai", reason="the tokenizer is an optional extra")
    maker = extensions.loaded("text_merges", ROOT / "deploy" / "text_merges.py")
    assert maker.make_table() == maker.PLACE.read_bytes()


def test_the_table_is_no_longer_than_it_may_be() -> None:
    assert (ROOT / "gateway" / "core" / "calls" / "merges.xz").stat().st_size <= 64 << 10
