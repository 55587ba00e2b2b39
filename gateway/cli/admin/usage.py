"""`tollkeeper usage`: usage and cost; without options quotas and the latest ledger rows."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.admin.resources.form_fields import FormField
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.commands import tag_filters
from gateway.cli.admin.commands import value as value_of
from gateway.cli.admin.output import AsJson, admin, console, escape, print_json, rows
from gateway.core.accounts.usage import GROUPS
from gateway.core.accounts.usage_sums import SUMS, USAGE_SUMS
from gateway.core.histograms import quantile_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

COLUMNS = (
    "tenant_id", "tenant", "tokens_used", "tokens_remaining", "tokens_held", "is_blocked", "next_reset_at",
)  # fmt: skip
RECENT = (
    "tenant", "seq", "created_at", "transaction_type", "direction", "amount", "total_remaining", "request_id",
)  # fmt: skip
# Columns of a table of sums; JSON and CSV have all columns.
ADDED = (*(usage_sum.name for usage_sum in USAGE_SUMS if usage_sum.in_table), "currency")
# The options of a report's query parameters, for messages.
CALLED = {
    "from": "--from", "to": "--to", "group_by": "--by", "interval": "--interval", "tenant_id": "--tenant",
}  # fmt: skip
_TAGS = FormField("tags", "json", of_texts=True)
LEDGERS_READ_MAX = 20
# How long the quotas wait for uses from before the command to be stored, and between two looks.
STORED_S_MAX, LOOK_S = 2.0, 0.1
ITEMS_MAX = 10_000


def usage(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant: id or name.")] = None,
    limit: Annotated[int, typer.Option(help="Most tenants to show.", min=1, max=100_000)] = 100,
    recent: Annotated[int, typer.Option(help="Latest ledger rows to show.", min=0, max=1_000)] = 10,
    by: Annotated[
        str | None, typer.Option(help=f"Group by {', '.join(GROUPS)}, tag:NAME, with commas.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Only calls of this group: id or name.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option(help="Only calls with these tags. NAME=VALUE; no VALUE: without NAME.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="From this day or time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this day or time, UTC.")] = None,
    interval: Annotated[str | None, typer.Option(help="hour, day, month or none.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write Parquet to this file.")] = None,
    as_focus: Annotated[
        bool,
        typer.Option("--focus", help="Charges of each day as FOCUS 1.4 has them, as CSV or with --parquet."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what was used and what it cost; without --by and its like, quotas and the latest ledger rows."""
    with admin() as client:
        api = replace(client, called=CALLED)
        tenant_id = api.id_of("tenants", tenant) if tenant else None
        query: Json = {
            "group_by": by, "from_": since, "to": until, "interval": interval, "tenant_id": tenant_id,
        }  # fmt: skip
        query |= tag_filters(value_of(api, _TAGS, tags) if tags else None)
        if group:
            query["group_id"] = api.id_of("groups", group)
        if as_focus:
            _write_focus(api, query, parquet)
        elif parquet is not None:
            parquet.write_bytes(api.download("usage.parquet", **query))
        elif as_csv or any(option is not None for option in (by, since, until, interval, group, tags)):
            _print_sums(api, query, as_csv, as_json)
        else:
            _show_quotas(api, tenant_id, limit, recent, as_json=as_json)


def _write_focus(api: AdminClient, query: Json, parquet: Path | None) -> None:
    """Write charges as FOCUS to a Parquet file; without one print them as CSV."""
    if parquet is not None:
        parquet.write_bytes(api.download("usage/focus.parquet", **query))
    else:
        typer.echo(api.download("usage/focus.csv", **query), nl=False)


def _show_quotas(api: AdminClient, tenant_id: int | None, limit: int, recent: int, *, as_json: bool) -> None:
    """Print the quotas of tenants, at most `limit`, and their `recent` latest ledger rows."""
    if not as_json:
        _await_stored(api)
    quotas = api.items("tenant-quotas", limit, tenant_id=tenant_id)
    names = api.names("tenants", {quota["tenant_id"] for quota in quotas}, limit)
    for quota in quotas:
        quota["tenant"] = names.get(quota["tenant_id"], "")
    latest = _latest(api, quotas, recent)
    if as_json:
        items = [{**quota, "ledger": latest.get(quota["tenant_id"], [])} for quota in quotas]
        rows(items, (), as_json=True)
        return
    rows(quotas, COLUMNS, as_json=False, title="Quotas")
    movements = [
        {**row, "tenant": names.get(row["tenant_id"], "")} for part in latest.values() for row in part
    ]
    movements.sort(key=lambda row: str(row["created_at"]), reverse=True)
    rows(movements[:recent], RECENT, as_json=False, title="Latest movements")


def _await_stored(api: AdminClient) -> None:
    """Wait until uses from before the command are stored, so that a call made just now is in the ledger."""
    began = time.monotonic()
    while (elapsed_s := time.monotonic() - began) < STORED_S_MAX:
        waiting_s = api.get("activity", window=5, limit=1).get("waiting_s")
        if waiting_s is None or waiting_s < elapsed_s:
            return
        time.sleep(LOOK_S)


def _print_sums(api: AdminClient, asked: Json, as_csv: bool, as_json: bool) -> None:
    """Print the sums of calls by group, with the query parameters `asked`.

    A table shows names instead of ids.
    """
    if as_csv:
        typer.echo(api.download("usage.csv", **asked), nl=False)
        return
    items = api.items("usage", ITEMS_MAX, **asked)
    columns = items[0] if items else ()
    told = [name for name in columns if name not in SUMS and name not in ADDED]
    groups = [name for name in told if not name.endswith("_id") or name.removesuffix("_id") not in told]
    rows(items, [*(name for name in groups if name != "start" or asked["interval"]), *ADDED], as_json=as_json)


def _latest(api: AdminClient, quotas: list[Json], recent: int) -> dict[int, list[Json]]:
    """Return the `recent` latest ledger rows of each tenant in `quotas` by tenant id, newest first."""
    if recent == 0:
        return {}
    return {
        int(quota["tenant_id"]): api.items("token-ledger", recent, tenant_id=quota["tenant_id"], order="desc")
        for quota in quotas[:LEDGERS_READ_MAX]
    }


# The part of a scrape of `/metrics` that `top` shows. Pure.

_SAMPLE = re.compile(r'^tollkeeper_(\w+?)(?:\{le="([^"]+)"\})? (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scrape:
    """Metrics without labels by name, and histograms: the count of values up to each bound in seconds."""

    values: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def quantile(self, histogram: str, share: float, since: Scrape | None = None) -> float | None:
        """Return the quantile `share` (0 to 1) of a histogram in seconds; None without calls.

        Only calls after the scrape `since` count, if it is given.
        """
        earlier = since.histograms.get(histogram, {}) if since is not None else {}
        known = sorted(self.histograms.get(histogram, {}).items())
        sums = [count - earlier.get(bound, 0.0) for bound, count in known]
        counts = [most - least for least, most in pairwise([0.0, *sums])]
        return quantile_of(counts, [bound for bound, _ in known[:-1]], share)


def read_scrape(text: str) -> Scrape:
    """Return the numbers in Prometheus' text format: metrics without labels, and histograms by upper bound.

    Metrics with other labels are left out.
    """
    values: dict[str, float] = {}
    histograms: dict[str, dict[float, float]] = {}
    for name, bound, number in _SAMPLE.findall(text):
        if bound and name.endswith("_bucket"):
            histograms.setdefault(name.removesuffix("_bucket"), {})[float(bound)] = float(number)
        elif not bound:
            values[name] = float(number)
    return Scrape(values, histograms)


# `tollkeeper top`: busy tenants, refusals, latencies, and the lag of rows.

WINDOW_S = 10
NARROW_COLUMNS = 80
CRAMPED_COLUMNS = 50
QUITS = frozenset({"q", "Q", "\x1b", "\x03"})


def top(
    *,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5, max=60)] = 2.0,
    window: Annotated[int, typer.Option(help="Seconds the rates are of.", min=5, max=60)] = WINDOW_S,
    limit: Annotated[int, typer.Option(help="Most tenants to show.", min=1, max=100)] = 20,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch requests, tokens, refusals by tenant, latency and the outbox; q quits."""
    with admin() as api:
        look, scrape = _measure_activity(api, window, limit, None)
        if once or not (console().is_terminal or as_json):
            print_json(look) if as_json else console().print(_render_look(look, api.url, console().width))
            return
        if as_json:
            while True:
                print_json(look)
                time.sleep(interval)
                look, scrape = _measure_activity(api, window, limit, scrape)
        _watch(api, interval, lambda earlier: _measure_activity(api, window, limit, earlier), (look, scrape))


def _watch(
    api: AdminClient,
    interval_s: float,
    again: Callable[[Scrape | None], tuple[Json, Scrape]],
    first: tuple[Json, Scrape],
) -> None:
    """Show measurements every `interval_s` seconds until a key quits, starting with `first`.

    `again` measures once more. A failed measurement is reported on the screen, and repeated.
    """
    from rich.live import Live  # the request is sent before it is loaded

    look, scrape = first
    failed = ""
    with Live(console=console(), screen=True, auto_refresh=False) as live, _keys() as key:
        while True:
            live.update(_render_look(look, api.url, console().width, failed, keys=True), refresh=True)
            if key(interval_s) in QUITS:
                return
            try:
                look, scrape = again(scrape)
                failed = ""
            except CommandFailed as failure:
                failed = failure.message


def _measure_activity(
    api: AdminClient, window: int, limit: int, earlier: Scrape | None
) -> tuple[Json, Scrape]:
    """Measure the present activity; return it for display, and the scrape of the metrics.

    Latencies are those since the scrape `earlier`, or since the gateway's start if that is None.
    """
    activity = api.get("activity", window=window, limit=limit)
    scrape = read_scrape(api.metrics())
    seconds = max(activity["window_s"], 0.001)
    return {
        "window_s": activity["window_s"],
        **_rates(activity, seconds),
        "latency_s": {
            "p50": scrape.quantile("request_seconds", 0.5, earlier),
            "p99": scrape.quantile("request_seconds", 0.99, earlier),
            "added_p99": scrape.quantile("overhead_seconds", 0.99, earlier),
        },
        "holds": scrape.values.get("holds"),
        "outbox": {
            "entries": scrape.values.get("outbox_entries"),
            "oldest_s": scrape.values.get("outbox_oldest_seconds"),
        },
        "tenants": [
            {"tenant_id": item["tenant_id"], "tenant": item["tenant"], **_rates(item, seconds)}
            for item in activity["items"]
        ],
    }, scrape


def _rates(counts: Json, seconds: float) -> Json:
    return {
        "requests_per_s": round(counts["requests"] / seconds, 3),
        "tokens_per_s": round(counts["tokens"] / seconds, 3),
        "refused_per_s": round(sum(counts["refused"].values()) / seconds, 3),
        "refused": counts["refused"],
    }


def _render_look(look: Json, url: str, columns: int, failed: str = "", *, keys: bool = False) -> Group:
    """Return a measurement for a screen of `columns` characters; `failed` is the last error, if any.

    With `keys`, the text names the key that quits.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    latency, outbox = look["latency_s"], look["outbox"]
    head = Text.assemble(("tollkeeper ", "bold"), f"{url}, last {look['window_s']:.0f} s")
    if keys:
        head.append("; q quits", "dim")
    facts = [
        ("requests/s", _number(look["requests_per_s"])),
        ("tokens/s", _number(look["tokens_per_s"])),
        ("refused/s", _number(look["refused_per_s"])),
        ("p50", _duration(latency["p50"])),
        ("p99", _duration(latency["p99"])),
        ("added p99", _duration(latency["added_p99"])),
        ("holds", _number(look["holds"])),
        ("outbox", f"{_number(outbox['entries'])}, oldest {_duration(outbox['oldest_s'])}"),
    ]
    lines = [head, *([Text(failed, "bold red")] if failed else []), *_render_facts(facts, columns)]
    if look["refused"]:
        lines.append(Text.assemble(("refused for ", "dim"), (_reasons(look["refused"]), "bold")))
    table = Table(expand=True)
    table.add_column("tenant", no_wrap=True, overflow="ellipsis", ratio=2)
    rates = ("requests/s", "tokens/s", "refused/s")
    if columns < NARROW_COLUMNS:
        rates = ("requests", "tokens", "refused")
    for name in rates:
        table.add_column(name if columns >= CRAMPED_COLUMNS else name[:3], justify="right", no_wrap=True)
    if columns >= NARROW_COLUMNS:
        table.add_column("refused for", no_wrap=True, overflow="ellipsis", ratio=2)
    for row in look["tenants"]:
        cells = [
            escape(str(row["tenant"] or f"tenant {row['tenant_id']}, deleted")),
            *(_number(row[name]) for name in ("requests_per_s", "tokens_per_s", "refused_per_s")),
            _reasons(row["refused"]),
        ]
        table.add_row(*cells[: len(table.columns)])
    return Group(*lines, table)


def _render_facts(facts: list[tuple[str, str]], columns: int) -> list[Text]:
    """Return the facts in lines of at most `columns` characters; a line ends only between two facts."""
    from rich.text import Text

    lines = [Text()]
    for name, value in facts:
        fact = Text.assemble((f"{name} ", "dim"), (value, "bold"))
        if lines[-1] and len(lines[-1]) + 3 + len(fact) > columns:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(fact)
    return lines


def _reasons(refused: Json) -> str:
    """Return the reasons of refusals with their counts, the most frequent first."""
    ranked = sorted(refused.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{reason} {count:,}" for reason, count in ranked)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if 0 < value < 100 and value != int(value) else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:,.1f} ms"


def _slept(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits up to some seconds for a key; it returns the key, or an empty text."""
    if not sys.stdin.isatty():
        yield _slept
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        return os.read(keyboard, 1).decode("latin-1") if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
