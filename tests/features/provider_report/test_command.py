"""`tollkeeper reconcile-provider` on the real Admin API: files, the vendors' APIs, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.admin.client import CommandFailed
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.features.provider_report import api as provider_api
from gateway.features.provider_report.api import FILE_BYTES_MAX
from gateway.features.provider_report.comparison import BadReport
from gateway.features.provider_report.reading import FORMATS
from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, run
from tests.features.provider_report.provider_fake import Vendor, vendor
from tests.persistence.scenario import batch_of, settle_in

__all__ = ["run"]

DAY = datetime(2026, 3, 1, tzinfo=UTC)
DAY_S = int(DAY.timestamp())
KEY = "sk-admin-of-the-tests"
FIELDS = ("requests", "input", "cache_read", "cache_write", "output")
SPAN = ("--from", "2026-03-01", "--to", "2026-03-02")


@pytest.fixture
def fake() -> Iterator[Vendor]:
    with vendor() as server:
        yield server


@pytest.fixture
async def services(api: Api) -> dict[str, int]:
    """The services of the built-in routes, and one of somebody's own."""
    models = (await api.get("business-models")).json["items"]
    body = {"name": "own", "key": "own", "credits": 0, "service_type": "Pay-As-You-Go"}
    assert (await api.post("services", {**body, "business_model_id": models[0]["id"]})).status == 201
    return {row["key"]: row["id"] for row in (await api.get("services?limit=100")).json["items"]}


async def used(
    url: str,
    *calls: tuple[int, str, tuple[int, ...], int],
    answered: str = "",
    day: int = 0,
    currency: str = "USD",
) -> None:
    """Calls of a day as the flusher stores them: service, model, counts by kind, cost in nano-units."""
    [account] = settle_in(url, 10**9)
    account.reset()
    account.at_ms = (DAY_S + day * 86_400 + 3_600) * 1000
    for service_id, model, counts, cost in calls:
        account.service_id = service_id
        facts = CallFacts(
            model=model, response_model=answered or model, status=200,
            counts=(*counts, *[0] * (10 - len(counts))), total=sum(counts), units=1, cost=cost,
            currency=currency,
        )  # fmt: skip
        account.consume(facts.total, metadata=write_facts(facts))
    writer = LedgerWriter(url)
    await writer.write(batch_of(account))
    writer.close()


def bucket(*results: dict[str, Any], start_s: int = DAY_S) -> dict[str, Any]:
    return {"start_time": start_s, "end_time": start_s + 86_400, "results": list(results)}


def completions(model: str, requests: int, read: int, cached: int, output: int) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result", "model": model, "num_model_requests": requests,
        "input_tokens": read, "input_cached_tokens": cached, "output_tokens": output,
    }  # fmt: skip


def costs(line_item: str, value: object) -> dict[str, Any]:
    amount = {"value": value, "currency": "usd"}
    return {"object": "organization.costs.result", "line_item": line_item, "amount": amount}


def file(folder: Path, *results: dict[str, Any]) -> str:
    path = folder / "report.json"
    path.write_text(json.dumps({"data": [bucket(*results)], "has_more": False}))
    return str(path)


async def test_reconcile_provider_compares_days_and_models_with_a_report_file(
    run: Run, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    await used(
        admin_database,
        (services["chat"], "gpt-4o", (300, 700, 0, 0, 50), 5_000_001),
        (services["chat"], "gpt-4o", (10, 0, 0, 0, 5), 1),
        (services["chat"], "o3", (9, 0, 0, 0, 1), 0),
        (services["own"], "gpt-4o", (8, 0, 0, 0, 8), 0),
        (services["messages"], "claude", (8, 0, 0, 0, 8), 0),
        (services["chat"], "not found", (0, 0, 0, 0, 0), 0),
    )
    report = file(
        tmp_path,
        completions("gpt-4o-2024-08-06", 2, 1010, 700, 55), completions("o3-2025-04-16", 1, 10, 0, 1),
        completions("gpt-5-2025-08-07", 1, 2, 0, 2),
        costs("gpt-4o-2024-08-06, input", 0.005), costs("gpt-4o-2024-08-06, output", "2e-9"),
    )  # fmt: skip
    said = await run("reconcile-provider", "openai", report, "--json")
    assert said.exit_code == 1, said.output
    found = json.loads(said.stdout)
    assert (found["from"], found["to"], found["services"]) == (
        "2026-03-01",
        "2026-03-02",
        ["chat", "completions", "embeddings", "responses"],
    )
    assert (found["compared"], found["currency"]) == ([*FIELDS, "cost"], "USD")
    assert found["verdicts"] == {"matched": 1, "differs": 1, "ours only": 0, "theirs only": 1}
    named = {row["model"]: row for row in found["items"]}
    assert named["gpt-4o"] == {
        "day": "2026-03-01", "model": "gpt-4o", "verdict": "matched", "matched_by": "date",
        "our_models": ["gpt-4o"], "their_models": ["gpt-4o-2024-08-06"],
        "ours": dict(zip(FIELDS, (2, 310, 700, 0, 55), strict=True)) | {"cost": "0.005000002"},
        "theirs": dict(zip(FIELDS, (2, 310, 700, 0, 55), strict=True)) | {"cost": "0.005000002"},
        "difference": dict.fromkeys(FIELDS, 0) | {"cost": "0"},
        "percent": {"requests": "0.00", "input": "0.00", "cache_read": "0.00", "cache_write": None,
                    "output": "0.00", "cost": "0.00"},
    }  # fmt: skip
    assert (named["o3"]["difference"]["input"], named["o3"]["percent"]["input"]) == (-1, "-10.00")
    assert (named["gpt-5-2025-08-07"]["verdict"], named["gpt-5-2025-08-07"]["ours"]) == ("theirs only", None)
    assert found["total"]["difference"]["input"] == -3

    shown = (await run("reconcile-provider", "openai", report)).stdout
    assert "9 / 10 (-1, -10.00 %)" in shown
    assert "gpt-4o / gpt-4o-2024-08-06 (by date)" in shown
    flat = (await run("reconcile-provider", "openai", report, "--csv")).stdout
    lines = {line["model"]: line for line in csv.DictReader(io.StringIO(flat))}
    assert (lines["o3"]["ours_input"], lines["o3"]["theirs_input"]) == ("9", "10")
    assert (lines["total"]["ours_cost"], lines["total"]["verdict"]) == ("0.005000002", "differs")

    services_ = ("--service", "own", "--service", "chat", "--service", str(services["chat"]))
    own = await run("reconcile-provider", "openai", report, *services_, "--json")
    assert json.loads(own.stdout)["services"] == ["chat", "own"]
    assert json.loads(own.stdout)["total"]["ours"]["requests"] == 4
    some = ("--tolerance", "10%", "--tolerance", "requests=0")
    lenient = json.loads((await run("reconcile-provider", "openai", report, "--json", *some)).stdout)
    assert lenient["verdicts"] == {"matched": 2, "differs": 0, "ours only": 0, "theirs only": 1}


async def test_reconcile_provider_matches_equal_anthropic_usage_and_cost_files(
    run: Run, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    await used(
        admin_database, (services["messages"], "claude-haiku-4-5-20251001", (3, 4, 5, 6, 7), 70_000_000)
    )
    usage = tmp_path / "usage.csv"
    usage.write_text(
        "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
        "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n"
        "2026-03-01,claude-haiku-4-5-20251001,3,5,6,4,7\n"
    )
    # What moved from five minutes to an hour costs more: it is seen, though the sum is the same.
    moved = tmp_path / "moved.csv"
    moved.write_text(usage.read_text().replace(",3,5,6,4,7", ",3,4,7,4,7"))
    said = await run("reconcile-provider", "anthropic", str(moved), "--json")
    [row] = json.loads(said.stdout)["items"]
    assert (said.exit_code, row["verdict"]) == (1, "differs")
    assert {name: gap for name, gap in row["difference"].items() if gap} == {"cache_write_1h": -1}
    bill = tmp_path / "cost.csv"
    bill.write_text("usage_date_utc,model,cost_usd\n2026-03-01,Claude Haiku 4.5,0.07\n")
    said = await run("reconcile-provider", "anthropic", str(usage), str(bill), "--json")
    assert (said.exit_code, json.loads(said.stdout)["verdicts"]["matched"]) == (0, 1)
    shown = await run("reconcile-provider", "anthropic", str(usage))
    assert (shown.exit_code, "1 matched" in shown.stderr) == (0, True)
    # A day outside the report is no part of it, unless it is asked for.
    wide = await run(
        "reconcile-provider", "anthropic", str(usage), "--from", "2026-02-01", "--to", "2026-03-01"
    )
    assert (wide.exit_code, "Neither side" in wide.stderr) == (0, True)


async def test_reconcile_provider_compares_usage_although_gateway_costs_are_in_two_currencies(
    run: Run, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    for currency in ("USD", "EUR"):
        await used(admin_database, (services["chat"], "gpt-4o", (10, 0, 0, 0, 5), 7), currency=currency)
    usage = completions("gpt-4o", 2, 20, 0, 10)
    done = await run("reconcile-provider", "openai", file(tmp_path, usage), *SPAN, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["compared"], found["currency"], found["verdicts"]["matched"]) == ([*FIELDS], None, 1)
    both = file(tmp_path, usage, costs("gpt-4o, input", "0.00000001"))
    done = await run("reconcile-provider", "openai", both, *SPAN)
    assert done.exit_code == 2
    assert "costs must be in one currency" in done.stderr


async def test_reconcile_provider_reads_a_provider_report_from_standard_input(
    run: Run, services: dict[str, int], tmp_path: Path
) -> None:
    report = file(tmp_path, completions("gpt-4o", 1, 1, 0, 1))
    said = await run("reconcile-provider", "openai", "-", "--json", stdin=Path(report).read_text())
    assert (said.exit_code, json.loads(said.stdout)["verdicts"]["theirs only"]) == (1, 1)
    said = await run("reconcile-provider", "openai", "-", stdin="{")
    assert (said.exit_code, "standard input: Input data was truncated" in said.stderr) == (2, True)


async def test_reconcile_provider_ignores_unknown_model_names_that_callers_sent_without_use(
    run: Run, api: Api, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    # A caller may ask for a model that is nobody's, under another name each time: more than a page of them.
    for day in range(3):
        for number in range(2):
            made_up = [f"none-{number}-{each}" for each in range(400)]
            await used(admin_database, *((services["chat"], name, (0,), 0) for name in made_up), day=day)
        await used(admin_database, (services["chat"], "o3", (7, 0, 0, 0, 1), 0), day=day)
    report = tmp_path / "report.json"
    items = (await api.get("usage?group_by=model&interval=day&from=2026-03-01T00:00:00Z&limit=10000")).json
    assert len(items["items"]) == 3 * 801
    days = [bucket(completions("o3", 1, 7, 0, 1), start_s=DAY_S + day * 86_400) for day in range(3)]
    report.write_text(json.dumps(days))
    said = await run("reconcile-provider", "openai", str(report), "--json")
    assert (said.exit_code, json.loads(said.stdout)["verdicts"]["matched"]) == (0, 3), said.output


async def test_reconcile_provider_compares_a_model_alias_under_the_model_that_answered(
    run: Run, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    await used(admin_database, (services["chat"], "house", (10, 0, 0, 0, 1), 0), answered="gpt-5-2025-08-07")
    report = file(tmp_path, completions("gpt-5-2025-08-07", 1, 10, 0, 1))
    said = await run("reconcile-provider", "openai", report, "--json")
    [row] = json.loads(said.stdout)["items"]
    assert (said.exit_code, row["verdict"], row["matched_by"]) == (0, "matched", "answered")


async def test_reconcile_provider_reads_openai_and_anthropic_apis_page_by_page(
    run: Run, services: dict[str, int], admin_database: str, fake: Vendor
) -> None:
    await used(
        admin_database,
        (services["chat"], "gpt-4o", (7, 3, 0, 0, 2), 10**9),
        (services["embeddings"], "text-embedding-3-small", (5,), 10**6),
        (services["messages"], "claude-haiku-4-5", (3, 4, 5, 6, 7), 123_000_000),
    )
    root = "/v1/organization"
    fake.pages = {
        f"{root}/usage/completions": [
            [bucket(completions("gpt-4o-2024-08-06", 1, 10, 3, 2))], [bucket(start_s=DAY_S + 86_400)], [],
        ],
        f"{root}/usage/embeddings": [[bucket(
            {"object": "organization.usage.embeddings.result", "model": "text-embedding-3-small",
             "num_model_requests": 1, "input_tokens": 5})]],
        f"{root}/costs": [[bucket(costs("gpt-4o-2024-08-06, output", 1))],
                          [bucket(costs("text-embedding-3-small, input", 0.001))]],
        "/v1/organizations/usage_report/messages": [[{
            "starting_at": "2026-03-01T00:00:00Z", "ending_at": "2026-03-02T00:00:00Z",
            "results": [{"model": "claude-haiku-4-5-20251001", "uncached_input_tokens": 3, "output_tokens": 7,
                         "cache_read_input_tokens": 4, "cache_creation": {
                             "ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 6}}]}]],
        "/v1/organizations/cost_report": [[{
            "starting_at": "2026-03-01T00:00:00Z", "ending_at": "2026-03-02T00:00:00Z",
            "results": [{"model": "claude-haiku-4-5-20251001", "description": None, "currency": "USD",
                         "amount": "12.3"}]}]],
    }  # fmt: skip
    asked = ("--api", fake.url, *SPAN, "--json")
    said = await run("reconcile-provider", "openai", *asked, OPENAI_ADMIN_KEY=KEY)
    assert (said.exit_code, json.loads(said.stdout)["verdicts"]["matched"]) == (0, 2), said.output
    assert [path.removeprefix(root) for path, *_ in fake.asked] == [
        *["/usage/completions"] * 3, "/usage/embeddings", *["/costs"] * 2,
    ]  # fmt: skip
    _, query, headers = fake.asked[1]
    assert query == {
        "start_time": [str(DAY_S)], "end_time": [str(DAY_S + 86_400)], "bucket_width": ["1d"],
        "limit": ["31"], "group_by": ["model"], "page": ["page-1"],
    }  # fmt: skip
    assert headers["authorization"] == f"Bearer {KEY}"

    fake.asked.clear()
    there = (fake.url, *SPAN, "--json")  # an address may stand where a file does
    said = await run("reconcile-provider", "anthropic", *there, ANTHROPIC_ADMIN_KEY=KEY)
    assert (said.exit_code, json.loads(said.stdout)["verdicts"]["matched"]) == (0, 1), said.output
    (_, query, headers), (_, of_costs, _) = fake.asked
    assert query == {
        "starting_at": ["2026-03-01T00:00:00Z"], "ending_at": ["2026-03-02T00:00:00Z"],
        "bucket_width": ["1d"], "limit": ["31"], "group_by[]": ["model"],
    }  # fmt: skip
    assert of_costs["group_by[]"] == ["description"]
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")


async def test_reconcile_provider_reads_the_api_key_from_a_file_and_never_prints_the_key(
    run: Run, services: dict[str, int], fake: Vendor, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    asked = ("reconcile-provider", "openai", "--api", f"{fake.url}/v1/", *SPAN)
    said = await run(*asked, OPENAI_ADMIN_KEY_FILE=str(key))
    assert (said.exit_code, fake.asked[0][2]["authorization"]) == (0, f"Bearer {KEY}")
    fake.fails = [(401, {}, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode())]
    refused = await run(*asked, OPENAI_ADMIN_KEY_FILE=str(key))
    assert (refused.exit_code, KEY in refused.output) == (2, False)
    assert "OPENAI_ADMIN_KEY must hold one of an administrator" in refused.stderr
    for environ, said_of_it in (
        ({}, "set OPENAI_ADMIN_KEY (or OPENAI_ADMIN_KEY_FILE)"),
        ({"OPENAI_ADMIN_KEY": KEY, "OPENAI_ADMIN_KEY_FILE": str(key)}, "expected one of them"),
        ({"OPENAI_ADMIN_KEY": f"{KEY}\r\nx-other: 1"}, "a control character"),
        ({"OPENAI_ADMIN_KEY": "ключ"}, "one word"),
        ({"OPENAI_ADMIN_KEY": "k" * 5_000}, "at most 4,096"),
        ({"OPENAI_ADMIN_KEY_FILE": str(tmp_path / "nothing")}, "cannot be read"),
        ({"OPENAI_ADMIN_KEY_FILE": "/dev/zero"}, "no regular file"),
    ):
        refused = await run(*asked, **environ)
        assert (refused.exit_code, said_of_it in refused.stderr) == (2, True), refused.stderr
        assert KEY not in refused.output


async def test_reconcile_provider_never_sends_the_api_key_to_a_redirect_target_or_a_plain_http_host(
    run: Run, services: dict[str, int], fake: Vendor
) -> None:
    with vendor() as other:
        fake.fails = [(302, {"location": f"{other.url}/v1/organization/usage/completions"}, b"")]
        said = await run(
            "reconcile-provider",
            "openai",
            "--api",
            fake.url,
            *SPAN,
            OPENAI_ADMIN_KEY=KEY,
            HTTP_PROXY=other.url,
        )
        assert (said.exit_code, "answered 302" in said.stderr, other.asked) == (2, True, [])
    for url in (
        "http://vendor.example",
        "ftp://127.0.0.1",
        "https://u:p@vendor.example",
        "https://",
        "https://x?y=1",
    ):
        said = await run("reconcile-provider", "openai", "--api", url, *SPAN, OPENAI_ADMIN_KEY=KEY)
        assert (said.exit_code, "with https unless it is this machine" in said.stderr) == (2, True), url


def caller(fake: Vendor, paused: list[float]) -> provider_api.ProviderApi:
    made = provider_api.provider_api(FORMATS["openai"], fake.url, {"OPENAI_ADMIN_KEY": KEY})
    return replace(made, sleep=paused.append)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_reconcile_provider_retries_when_the_provider_api_is_busy(fake: Vendor, status: int) -> None:
    fake.pages["/v1/organization/costs"] = [[bucket(costs("gpt-4o, input", 2))]]
    fake.fails = [
        (status, {"retry-after": "7"}, b""),
        (status, {}, b""),
        (status, {"retry-after": "9999"}, b""),
    ]
    paused: list[float] = []
    found = caller(fake, paused).read(DAY.date(), date(2026, 3, 2))
    assert (found.currency, paused) == ("USD", [7.0, 2.0, provider_api.PAUSE_S_MAX])
    fake.fails = [(status, {"retry-after": "soon"}, b"")] * provider_api.TRIES_MAX
    with pytest.raises(CommandFailed, match=rf"answered {status}, 4 times"):
        caller(fake, []).read(DAY.date(), date(2026, 3, 2))


def test_reconcile_provider_requests_a_long_time_span_in_pieces_of_31_days(fake: Vendor) -> None:
    caller(fake, []).read(date(2026, 1, 1), date(2026, 3, 10))
    asked = [(int(query["start_time"][0]), int(query["end_time"][0])) for _, query, _ in fake.asked[:3]]
    assert [(last - first) // 86_400 for first, last in asked] == [31, 31, 6]
    assert [first for first, _ in asked[1:]] == [last for _, last in asked[:-1]]


def test_reconcile_provider_stops_at_too_many_pages_bytes_or_seconds_of_provider_answers(
    fake: Vendor,
) -> None:
    span = DAY.date(), date(2026, 3, 2)
    fake.pages["/v1/organization/usage/completions"] = [[], [], [], []]
    with pytest.raises(CommandFailed, match="more than 3 pages"):
        replace(caller(fake, []), pages_max=3).read(*span)
    fake.fails = [(200, {}, b'{"data":[],"has_more":true,"next_page":"a"}')] * 3
    with pytest.raises(CommandFailed, match="or one twice"):
        caller(fake, []).read(*span)
    assert len(fake.fails) == 1
    fake.fails = [(200, {}, b" " * (provider_api.PAGE_BYTES_MAX + 1))]
    with pytest.raises(CommandFailed, match="16,777,216 bytes"):
        caller(fake, []).read(*span)
    ticks = iter((0.0, provider_api.PAGE_S_MAX + 1))
    fake.fails = [(200, {}, b"{}")]
    with pytest.raises(CommandFailed, match="more than 60 s"):
        replace(caller(fake, []), clock=lambda: next(ticks)).read(*span)
    fake.fails = [(200, {"content-length": "90", "connection": "close"}, b'{"data":[')]
    with pytest.raises(BadReport, match="usage/completions, page 1: Input data was truncated"):
        caller(fake, []).read(*span)


async def test_reconcile_provider_exits_2_on_bad_input_and_explains_the_mistake(
    run: Run, services: dict[str, int], admin_database: str, tmp_path: Path
) -> None:
    report = file(tmp_path, completions("gpt-4o", 1, 1, 0, 1), costs("gpt-4o, input", 1))
    large = tmp_path / "large.json"
    with large.open("wb") as sparse:
        sparse.truncate(FILE_BYTES_MAX + 1)
    broken = tmp_path / "broken.csv"
    broken.write_text("start_time,model,num_model_requests,input_tokens\n1772323200,m,1,many\n")
    for arguments, said in (
        (("openai", str(broken)), f"{broken}, line 2: column input_tokens must be a whole number"),
        (("anthropic", report), "`starting_at`"),
        (("openai", str(tmp_path / "none.json")), "No such file"),
        (("openai", str(tmp_path)), "directory"),
        (("openai", report, "--api", "https://x.example"), "not both"),
        (("openai", report, "https://x.example"), "not both"),
        (("openai", report, "--from", "yesterday"), "--from must be a day"),
        (("openai", report, "--from", "2026-03-02"), "--from must be before --to"),
        (("openai", report, "--from", "2020-03-02"), "At most 366 days"),
        (("openai", report, "--tolerance", "some"), "--tolerance must be a decimal"),
        (("openai", report, "--service", "nobody's"), "no service named"),
        (("openai", *[report] * 101), "At most 100 files"),
        (("openai", str(large)), "more than 67,108,864 bytes"),
        (("gemini", report), "openai"),
    ):
        refused = await run("reconcile-provider", *arguments)
        assert (refused.exit_code, said in " ".join(refused.output.split())) == (2, True), refused.output


async def test_reconcile_provider_exits_2_without_matching_services_admin_api_or_days_in_the_report(
    run: Run, api: Api, tmp_path: Path
) -> None:
    report = file(tmp_path, completions("gpt-4o", 1, 1, 0, 1))
    for row in (await api.get("services?limit=100")).json["items"]:
        assert (await api.delete(f"services/{row['id']}")).status == 204
    said = await run("reconcile-provider", "openai", report)
    assert (said.exit_code, "name yours with --service" in said.stderr) == (2, True)
    away = await run("reconcile-provider", "openai", report, TOLLKEEPER_ADMIN_URL="http://127.0.0.1:9")
    assert (away.exit_code, "Nothing usable answers" in away.stderr) == (2, True)
    empty = tmp_path / "empty.json"
    empty.write_text('{"data": [], "has_more": false}')
    said = await run("reconcile-provider", "openai", str(empty))
    assert (said.exit_code, "The report has no days" in said.stderr) == (2, True)
