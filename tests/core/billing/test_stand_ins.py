"""Models that have another one's price: as it is configured, bounded, and said where it is wrong."""

from __future__ import annotations

import pytest

from gateway.core.billing.stand_ins import NO_STAND_INS, STAND_INS_MAX, read_stand_ins


def test_a_whole_name_counts_first_and_then_the_longest_beginning() -> None:
    found = read_stand_ins(" house-*=small, house-large*=large,House-One=one , *=other")
    assert [found.of(name) for name in ("house-1", "HOUSE-large-2", "house-one", "gpt", "")] == [
        "small", "large", "one", "other", "other",
    ]  # fmt: skip
    assert read_stand_ins("a*=b").of("c") == ""
    assert read_stand_ins("  ").of("a") == NO_STAND_INS.of("a") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "'a' is no"),
        ("a=", "'a=' is no"),
        ("=b", "'=b' is no"),
        ("a=b,", "'' is no"),
        ("a*c=b", "is no"),
        ("a=b*", "is no"),
        ("a=b,A=c", "'A' is there twice"),
        ("a" * 201 + "=b", "at most 200"),
        ("a\x07=b", "visible"),
        (",".join(f"a{number}=b" for number in range(STAND_INS_MAX + 1)), "there are 201"),
    ],
)
def test_what_cannot_be_meant_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_stand_ins(text)
