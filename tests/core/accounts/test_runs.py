"""What a call says of its run: read as it is written, or refused."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.runs import BUDGET_ID_MIN, BUDGET_IDS, ID_CHARACTERS_MAX, budget_id_of, read_run
from gateway.core.model import INTEGER_MAX

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def quoted(id_: str) -> str:
    return '"' + re.sub(r'([\\"])', r"\\\1", id_) + '"'


@given(
    id_=st.text(VISIBLE, min_size=1, max_size=ID_CHARACTERS_MAX),
    parent=st.text(VISIBLE, max_size=ID_CHARACTERS_MAX),
    nano=st.integers(1, INTEGER_MAX),
    calls=st.integers(0, 10**9),
    ttl=st.integers(0, 2_592_000),
)
def test_whatever_is_written_is_read(id_: str, parent: str, nano: int, calls: int, ttl: int) -> None:
    parent = "" if parent == id_ else parent
    said = f"{quoted(id_)}; max={nano // 10**9}.{nano % 10**9:09d}"
    said += f"; parent={quoted(parent)}" if parent else ""
    said += f"; max_calls={calls}" if calls else ""
    said += f";ttl={ttl}" if ttl else ""
    run = read_run(said)
    assert (run.id, run.parent_id, run.amount, run.calls_max, run.ttl_s) == (id_, parent, nano, calls, ttl)


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_anything_else_is_refused_or_means_one_id(said: str) -> None:
    with suppress(ValueError):
        run = read_run(said)
        assert re.fullmatch(r"[\x21-\x7e]{1,128}", run.id)
        assert run.amount == -1 or run.amount > 0


@pytest.mark.parametrize(
    "said",
    [
        "", ";", "a;", "a b", "a,b", "a; b", "a; max", "a; max=", "a; max=1.0000000001", "a; max=+1",
        "a; max=0.000000000", "a; max=99999999", "a; max_tokens=1.5", "a; ttl=0", "a; MAX=1", 'a"b', '"a',
        '"a b"', "a; max=1; max=1", "a; max_tokens=9007199254740992",
    ],
)  # fmt: skip
def test_what_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"must|has|takes"):
        read_run(said)


@pytest.mark.parametrize("most", ["9007199.254740992", "10000000", "9" * 40])
def test_an_amount_that_is_too_large_is_told_how_large_one_may_be(most: str) -> None:
    with pytest.raises(ValueError, match=re.escape("up to 9007199.254740991")):
        read_run(f"a; max={most}")


@given(st.binary(min_size=8, max_size=8))
def test_ids_of_windows_are_those_of_no_budget_and_exact_in_the_scripts(random: bytes) -> None:
    number = budget_id_of(random)
    assert BUDGET_ID_MIN <= number < BUDGET_ID_MIN + BUDGET_IDS <= INTEGER_MAX - 1
    assert number % 2 == 0
