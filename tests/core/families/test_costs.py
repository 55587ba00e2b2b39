"""Each tool, part and member that the types of the SDKs have is in the table of costs, and nothing else is."""

from __future__ import annotations

import re
from functools import cache

import pytest

from deploy.costs import Drawn, differences, draw, main, render
from gateway.core.families.controlled import models_of
from gateway.core.families.costs import (
    BY_HAND,
    PAGES,
    PICTURE,
    SOUND,
    TEXT,
    UNKNOWN,
    VIDEO,
    costs_of,
    names_of,
    read_rows,
    tool_costs,
)
from gateway.core.families.costs_table import ROWS
from gateway.core.families.registry import SHAPES

MEDIA = {PICTURE, PAGES, SOUND, VIDEO}
COSTS = {
    "parts": {TEXT, "parts", "stated", "source", "setting", UNKNOWN, *MEDIA},
    "members": {"object", "model", "models", "medium", "parts", "data", "nothing", UNKNOWN},
    "limits": {"tool", "model", UNKNOWN},
}
COSTS["fields"] = COSTS["parts"]
# Media in parts that no call of ours takes: of assistants, and of events that a live session reads itself.
ELSEWHERE = {
    "image_file", "audio", "audio_sample", "input_audio_buffer.append", "session.input_audio.append",
    "session.input_audio_buffer.append", "output_audio",
}  # fmt: skip


@cache
def drawn() -> Drawn:
    return draw()


def test_the_table_has_a_row_for_each_name_of_an_sdk_and_for_no_other() -> None:
    assert {section.partition(" ")[0] for section in drawn()} == {"openai", "anthropic", "gemini", "bedrock"}
    assert sum(map(len, drawn().values())) > 1_000
    assert differences(drawn()) == []


def test_the_table_has_each_name_once_and_only_costs_that_are_explained() -> None:
    for section, rows in read_rows(ROWS).items():
        block = ROWS.partition(f"[{section}]\n")[2].partition("\n\n")[0]
        lines = [re.sub(r"^\w+: ", "", line) for line in block.splitlines() if not line.startswith("#")]
        names = " ".join(lines).split()
        assert len(names) == len(set(names)) == len(rows), section
        what = section.removesuffix(f" {BY_HAND}").partition(" ")[2]
        assert set(rows.values()) <= COSTS.get(what, set(rows.values())), section


def test_differences_names_what_is_new_and_what_is_gone() -> None:
    names = set(read_rows(ROWS)["openai tools"]) - {"shell"} | {"x_20270101", "openrouter:datetime"}
    assert differences({"openai tools": names}) == [
        "openai tools: x_20270101 is new",
        "openai tools: shell is gone",
    ]
    assert differences({"mcp tools": {"a"}}) == ["mcp tools: a is new"]


def test_render_keeps_what_people_wrote_and_adds_the_rest_as_unknown() -> None:
    rows = "[a tools]\n# why\nfree: b\n  a\nsearch: s\n\n[a tools by hand]\nfree: x\n"
    assert render(rows, {"a tools": {"a", "b", "n", "m"}}) == (
        "[a tools]\n# why\nfree: a b\nsearch: s\nunknown: m n\n\n[a tools by hand]\nfree: x\n"
    )
    assert render(ROWS, drawn()) == ROWS


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_member_that_ends_like_an_id_is_an_object_or_nothing(sdk: str) -> None:
    """Others are judged by their value alone."""
    ids = {
        name: cost for name, cost in read_rows(ROWS)[f"{sdk} members"].items() if re.search("_ids?$", name)
    }
    assert len(ids) > 20
    assert set(ids.values()) == {"object", "nothing"}


def test_a_member_that_names_a_model_is_found_in_a_tool() -> None:
    apis = ("openai", "anthropic", "gemini")
    members = {name for api in apis for name, cost in costs_of(f"{api} members").items() if cost == "model"}
    assert members >= {"model", "modelName", "model_name"}
    for name in members:
        assert models_of({"type": "x", name: "other"}, "tools") == ["other"]


@pytest.mark.parametrize("api", ["openai", "anthropic", "gemini", "bedrock"])
def test_a_part_with_a_medium_has_a_place_where_its_size_is_read(api: str) -> None:
    places = [shape.media for meter, shape in SHAPES.items() if meter.startswith((api, "mistral", "vllm"))]
    known = {name for place in places for name in (*place.by_type, *place.by_name)}
    parts = {name for what in ("parts", "fields") for name, cost in costs_of(f"{api} {what}").items()
             if cost in MEDIA or cost == "stated"}  # fmt: skip
    assert parts
    of_others = {"audio_embeds", "image_embeds", "input_video", "output_image", "blob", "pdf", "video"}
    of_openai = {"image"} | ELSEWHERE if api == "openai" else set()
    assert parts - known - of_others - of_openai == set()


def test_a_part_that_is_a_medium_in_one_api_is_text_in_none() -> None:
    media = names_of("parts", *MEDIA)
    assert media
    assert media & names_of("parts", TEXT) == set()


@pytest.mark.parametrize(
    ("api", "name", "cost"),
    [
        ("openai", "function", "safe"), ("openai", "Function", UNKNOWN), ("openai", "x_20270101", UNKNOWN),
        ("anthropic", "web_search_20260209", "web_search"), ("anthropic", "web_search", UNKNOWN),
        ("bedrock", "bash_20250124", "safe"), ("bedrock", "toolSpec", "safe"), ("bedrock", "tool_spec", UNKNOWN),
        ("gemini", "google_search", "web_search"), ("gemini", "googleSearch", "web_search"),
        ("gemini", "mcp_servers", "free"), ("cohere", "function", "safe"), ("generic", "function", UNKNOWN),
    ],
)  # fmt: skip
def test_tool_costs_go_by_the_whole_name_in_the_table_of_its_api(api: str, name: str, cost: str) -> None:
    assert tool_costs(api).get(name, UNKNOWN) == cost


def test_the_program_writes_nothing_where_the_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""
