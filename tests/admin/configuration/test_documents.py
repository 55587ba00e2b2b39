"""YAML of configuration: what is written reads the same; what is hostile is refused, soon."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.configuration import BYTES_MAX, documents, read_sources, written

texts = st.text(st.characters(codec="utf-8"), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts | floats,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(("tenants", "budgets", "no", "2024")), values, min_size=1))
def test_what_is_written_reads_the_same(value: dict[str, object]) -> None:
    [document] = documents(written(value), "it")
    assert document.value == value


def test_plain_values_are_those_of_yaml_1_2() -> None:
    text = """
        country: NO
        day: 2026-01-31
        time: 12:30:00
        octal: 0755
        grouped: 1_000
        whole: -12
        part: 0.25
        quoted: "12"
        nothing: ~
        empty:
        truth: true
        power: 1e3
        small: 1.0e-05
        signless: 1.0e5
        endless: 1.0e+999
        folded: >-
          one
          line
    """
    [document] = documents(text, "it")
    assert document.value == {
        "country": "NO", "day": "2026-01-31", "time": "12:30:00", "octal": "0755", "grouped": "1_000",
        "whole": -12, "part": 0.25, "quoted": "12", "nothing": None, "empty": None, "truth": True,
        "power": "1e3", "small": 0.00001, "signless": "1.0e5", "endless": "1.0e+999", "folded": "one line",
    }  # fmt: skip


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "line 1: anchors and aliases"),
        ("tenants: *them", "anchors and aliases"),
        ("tenants:\n  - name: A\n    name: B", "line 3: name stands here a second time"),
        ("tenants: []\ntenants: []", "line 2: tenants stands here a second time"),
        ("tenants: !!python/object/apply:os.system [id]", "tags such as"),
        ("name: !!str 5", "tags such as"),
        ("!!str name: 5", "tags such as"),
        ("&a name: 5", "anchors and aliases"),
        ("<<: {a: 1}", "a field must have a plain name"),
        ("? [a, b]\n: c", "a field must have a plain name"),
        ("tenants:\n\t- a", "not valid YAML"),
        ("tenants: [", "not valid YAML"),
        ("tenants: \x00", "not valid YAML"),
        ("a: " + "[" * 1_000_000, "nested more than 32 deep"),
        ("a: " + "{b: " * 1_000_000, "nested more than 32 deep"),
        ("- " * 100_000, "nested more than 32 deep"),
        ("a: [" + "1," * 1_000_001 + "]", "more than 1000000 values"),
    ],
)
def test_what_is_hostile_or_ambiguous_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        list(documents(text, "it.yaml"))
    assert said in refused.value.message
    assert refused.value.message.startswith("it.yaml, ")
    assert len(refused.value.message) < 300


def test_what_is_wrong_has_its_own_place_behind_a_file_that_names_the_kind_and_nothing_of_it(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("# none yet\ntenants: []\nplans:\n")
    second.write_text("tenants:\n  - name: A\n  - nme: B\n")
    sources = read_sources([str(tmp_path)])
    assert sources.located("tenants.1.nme: unknown field") == (
        f"{second}, document 1, line 3, tenants, nme: unknown field"
    )
    assert sources.located("tenants.2: there is none") == "tenants.2: there is none"
    assert sources.located("  tenants: too many") == f"  {first}, document 1, line 2, tenants: too many"
    assert sources.located("  plans: unknown kind") == f"  {first}, document 1, line 3, plans: unknown kind"
    assert sources.located("  tenant: unknown kind") == "  tenant: unknown kind"


def test_of_files_and_bytes_there_are_so_many_at_most(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (BYTES_MAX + 1))
    with pytest.raises(CommandFailed, match="too much"):
        read_sources([str(tmp_path)])
    (tmp_path / "big.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandFailed, match="UTF-8"):
        read_sources([str(tmp_path)])
    (tmp_path / "big.yaml").unlink()
    with pytest.raises(CommandFailed, match=r"no \.yaml"):
        read_sources([str(tmp_path)])
    for number in range(1_001):
        (tmp_path / f"{number}.yaml").touch()
    with pytest.raises(CommandFailed, match="too much"):
        read_sources([str(tmp_path)])
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(CommandFailed, match="document 1: must be kinds"):
        read_sources([str(tmp_path / "list.yaml")])
    (tmp_path / "list.yaml").write_text("---\n---\ntenants: 5")
    with pytest.raises(CommandFailed, match="document 2, line 3: tenants must be a list"):
        read_sources([str(tmp_path / "list.yaml")])
