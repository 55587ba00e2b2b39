"""The bench of signed tokens verifies, and knows again, what it measures."""

from __future__ import annotations

from tests.bench import tokens


async def test_a_small_run() -> None:
    found = await tokens.measure(rounds=2, known=10, new=2)
    assert {kind: len(each) for kind, each in found.items()} == dict.fromkeys(
        (
            "a key that is known", "a token that is known", "a new token, RS256",
            "of that the signature, RS256", "a new token, ES256", "of that the signature, ES256",
        ),
        2,
    )  # fmt: skip
