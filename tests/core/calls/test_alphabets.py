"""What a text of any kind has at most, where no hold binds, is its tokens to 2.6 times as many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.calls.alphabets import CL100K, O200K, rare_tokens
from gateway.core.calls.estimate import Estimator, tokenizer_of
from gateway.core.calls.facts import aim_of
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import ModelTarget, Route
from gateway.core.model import Family

# Texts, and the tokens of eight lines of each, as bpe-openai 0.1.4 counts by OpenAI's tokenizers.
TEXTS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "texts.jsonl").read_text("utf-8").splitlines()
]
ROUTE = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")
MOST = 2.6
# Runs of digits without an end, and words of capitals: they are held as ids are.
LOOSE = {"digits", "upper", "camel"}


def read(text: str, model: str, **said: Any) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **said}
    asked = read_call(ROUTE, {}, json.dumps(body).encode())
    return Estimator().hold(asked, 1, "chat", binds=False).read


@pytest.mark.parametrize("one", TEXTS, ids=lambda one: one["kind"])
@pytest.mark.parametrize(("model", "counted"), [("gpt-4o-mini", "o200k"), ("gpt-4-turbo", "cl100k")])
def test_the_most_is_no_less_than_the_tokens_and_not_much_more(
    one: dict[str, Any], model: str, counted: str
) -> None:
    text = "\n".join([one["text"]] * 8)
    held = read(text, model) - read("", model)
    assert held / one[counted] >= 1.0
    assert held / one[counted] <= MOST or one["kind"] in LOOSE


def test_thirty_languages_and_more_are_measured() -> None:
    assert sum(not one["text"].isascii() for one in TEXTS) >= 30


def test_a_byte_is_a_token_where_nobody_knows_the_tokenizer() -> None:
    text = "Привет, 世界"
    rare = sum(len(letter.encode()) for letter in text if letter > "\x7f")
    assert rare_tokens(text.encode(), "") == rare
    assert read(text, "claude-5") - read("", "claude-5") >= rare


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", O200K), ("gpt-4-turbo", CL100K), ("ft:gpt-4o-2024:me", O200K), ("gpt-5.4", O200K),
        ("claude-5", ""), ("my-gpt-4o", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_tokenizer_is_known_by_the_name_of_its_model(model: str, name: str) -> None:
    assert tokenizer_of(model) == name


def test_models_of_several_tokenizers_are_held_by_none() -> None:
    text = "Все люди рождаются свободными" * 20
    alone, other = read(text, "gpt-4o"), read(text, "gpt-4o", fallbacks=["claude-5"])
    assert other > 2 * alone
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    aimed = read_call(ROUTE, {}, json.dumps(body).encode())
    aimed.take_aim(aim_of(aimed, targets=(ModelTarget("up", "claude-5"),)))
    assert Estimator().hold(aimed, 1, "chat", binds=False).read > 2 * alone


@pytest.mark.parametrize("letter", ["\u0080", "߿", "ࠀ", "ῼ", "𐀀", "\U0010ffff", "ກ", "ກข", "￿"])
@pytest.mark.parametrize("tokenizer", [O200K, CL100K])
def test_no_letter_is_free_or_dearer_than_its_bytes(letter: str, tokenizer: str) -> None:
    body = (letter * 10).encode()
    assert 5 <= rare_tokens(body, tokenizer) <= len(body)
