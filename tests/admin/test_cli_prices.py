"""The commands about prices: one set, one asked for, and the bundled list compared and taken over."""

from __future__ import annotations

from typing import Any

from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run

__all__ = ["run"]


async def test_a_price_is_set_and_asked_for(run: Run) -> None:
    made = await from_json(
        run, "price", "create", "cli-x", "USD", "--input", "2.50", "--output", "10", "--from",
        "2026-01-01T00:00:00Z", "--tools", "web_search=10", "--service-tiers", "batch=0.5",
        "--context-tiers", '[{"above": 200000, "input": "5"}]',
    )  # fmt: skip
    assert (made["input"], made["tools"], made["service_tiers"]) == (
        "2.50", {"web_search": "10"}, {"batch": "0.5"},
    )  # fmt: skip
    quote = await from_json(
        run, "price", "quote", "cli-x", "--input", "1k", "--tools", "web_search=7", "--service-tier", "batch"
    )
    assert quote["cost"] == "0.07125"
    shown = (await run("price", "quote", "cli-x", "--output", "1M")).stdout
    assert "cost" in shown
    assert "10" in shown
    listed = (await run("price", "list", "--model", "cli-x")).stdout
    assert "2.50" in listed
    said = await run("price", "create", "cli-x", "USD", "--input", "-1")
    assert (said.exit_code, "--input" in said.stderr) == (1, True)
    assert (await run("price", "quote", "cli-unknown")).exit_code == 1


async def test_a_price_is_in_force_from_now_on_where_nothing_is_said(run: Run) -> None:
    await from_json(run, "price", "create", "cli-now", "USD", "--input", "3")
    quote = await from_json(run, "price", "quote", "cli-now", "--input", "1000000")
    assert quote["cost"] == "3"


async def differences(run: Run, *more: str) -> list[dict[str, Any]]:
    found = await from_json(run, "prices", "diff", "--provider", "cohere", *more)
    items: list[dict[str, Any]] = found["items"]
    return items


async def test_the_bundled_list_is_compared_and_taken_over(run: Run, api: Api) -> None:
    since = ("--from", "2026-01-01T00:00:00Z")
    first = await differences(run, *since)
    assert {each["change"] for each in first} == {"new"}
    assert "command-r" in {each["model"] for each in first}
    assert (await api.get("prices?provider=cohere&source=bundled")).json["items"] == []
    assert await differences(run, *since, "--apply") == first
    assert await differences(run) == []
    assert (await from_json(run, "price", "quote", "command-r", "--input", "1000000"))["cost"] != "0"

    await from_json(run, "price", "create", "command-r", "USD", "--provider", "cohere", "--input", "9",
                    "--source", "bundled", "--from", "2026-01-02T03:04:05Z")  # fmt: skip
    await from_json(run, "price", "create", "command-zz", "USD", "--provider", "cohere", "--input", "9",
                    "--source", "bundled")  # fmt: skip
    at = "2099-01-01T00:00:00Z"
    changed, gone = sorted(await differences(run, "--from", at), key=lambda each: str(each["change"]))
    assert (changed["change"], changed["model"], changed["effective_from"]) == ("changed", "command-r", at)
    assert changed["says"]["input"]["before"] == "9"
    assert (gone["change"], gone["model"]) == ("gone", "command-zz")
    assert "command-r" in (await run("prices", "diff", "--provider", "cohere", "--apply")).stdout
    assert [each["change"] for each in await differences(run)] == ["gone"]


async def test_what_prices_cannot_say_is_told(run: Run) -> None:
    found = await from_json(run, "prices", "diff", "--left-out")
    assert any("hours of the day" in line for line in found["left_out"])
    assert "audio_hours" in (await run("prices", "diff", "--left-out")).stdout


async def test_a_time_that_is_none_is_refused(run: Run) -> None:
    for since in ("soon", "2026-01-01T00:00:00"):
        said = await run("prices", "diff", "--from", since)
        assert (said.exit_code, "--from must" in said.stderr) == (1, True)
