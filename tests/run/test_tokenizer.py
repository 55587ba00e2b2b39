"""OpenAI's tokenizers are used where their package is, and missed nowhere."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from gateway.run import gateway_worker


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    assert gateway_worker.load_tokenizer() is None


def test_each_model_has_the_encoding_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get_encoding(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(
            encode_ordinary=lambda text: list(text) if name == "o200k_base" else text.split()
        )

    package = ModuleType("bpe_openai")
    package.get_encoding = get_encoding  # type: ignore[attr-defined]  # as the package has it
    monkeypatch.setitem(sys.modules, "bpe_openai", package)
    of_model = gateway_worker.load_tokenizer()
    assert of_model is not None
    counts = [of_model(model) for model in ("gpt-4o-mini", "gpt-4-0613", "o3-mini", "text-embedding-3-small")]
    assert [count and count("ab cd") for count in counts] == [5, 2, 5, 2]
    assert of_model("claude-3") is None
    assert asked == ["o200k_base", "cl100k_base"]  # each is made once


def test_the_real_package_counts_as_openai_does() -> None:
    pytest.importorskip("bpe_openai", reason="the tokenizer is an optional extra")
    of_model = gateway_worker.load_tokenizer()
    assert of_model is not None
    count = of_model("gpt-4o")
    assert count is not None
    assert count("hello world") == 2
    assert count("<|endoftext|>") > 1  # text is text, whatever it looks like
