"""`tollkeeper budget replay`: what budgets of a file would have done with stored calls.

It asks the Admin API. With `--archive` it reads archived calls as well: then it needs the database itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace as with_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.admin.client import CommandFailed, Json, find
from gateway.cli.admin.output import AsJson, failing, print_json, report, say, waiting
from gateway.cli.databases import Config, Database, DataDir, owner_url
from gateway.errors import StartError
from gateway.feature import features

if TYPE_CHECKING:
    from persistence.replay import ArchivedCalls

COLUMNS = (
    "name", "refused", "refused_cost", "substituted", "saved", "first_refusal_at", "least_amount", "suggestions",
)  # fmt: skip


def replay(
    *,
    file: Annotated[
        Path, typer.Option("--file", "-f", help="Body of POST budgets/replay, JSON; - is the input.")
    ],
    since: Annotated[str | None, typer.Option("--from", help="RFC 3339; instead of the file's.")] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="RFC 3339, not included; instead of the file's.")
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            help="Archived months as well as the database's: a directory, file:///… or s3://bucket/….",
        ),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: Database = None,
    as_json: AsJson = False,
) -> None:
    """Replay budgets over the calls of a time: which would have been refused, and whose."""
    moments = {name: moment for name, moment in (("from", since), ("to", until)) if moment is not None}
    with failing(), waiting("Replaying calls"):
        body = {**_read_body(file), **moments}
        if archive is None:
            api = find()
            answer = with_(api, timeout_s=api.timeout_s + _seconds_max()).post("budgets/replay", body)
        else:
            try:
                url = owner_url(config, database_url, data_dir)
            except StartError as unknown:
                why = "--archive needs the database too, with later calls, groups, prices and names of users"
                raise CommandFailed(f"{why}: {unknown.message}.") from unknown
            answer = _replay_here(body, archive, url)
    if as_json:
        print_json(answer)
        return
    items = [{**item, "suggestions": _words(item["suggestions"])} for item in answer["items"]]
    report({**answer, "items": items}, "Budgets", COLUMNS, as_json=False)


def _words(suggestions: Json | None) -> str:
    return ", ".join(f"{part} %: {amount}" for part, amount in (suggestions or {}).items())


def _read_body(file: Path) -> Json:
    """Return the JSON object in a file; "-" is standard input."""
    try:
        body = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{file} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise CommandFailed(f"{file} must hold a JSON object, as POST budgets/replay takes it.")
    return body


def _seconds_max() -> float:
    from gateway.core.accounts.replay.fold import REPLAY_S_MAX  # only asked here

    return REPLAY_S_MAX


def _replay_here(body: Json, archive: str, url: str) -> Json:
    """Return the answer to a replay over archived calls and those of the database, as its owner."""
    import asyncio  # heavy as the next one, and only asked here

    from gateway.admin.replay import render_replay
    from gateway.errors import Unprocessable
    from gateway.run.replay_process import answer_of

    try:
        asked = asyncio.run(_checked(body, url))
        return dict(render_replay(answer_of({**asked, "url": url}, _archived(archive))))
    except Unprocessable as refused:
        faults = "; ".join(f"{name}: {fault}" for name, fault in refused.errors)
        raise CommandFailed(f"{refused.message} {faults}") from refused


async def _checked(body: Json, url: str) -> Json:
    """Return the body of a replay, checked against the database."""
    from gateway.admin.replay import check_replay  # as above
    from gateway.core.accounts.administration import KEEPER
    from persistence import engine as engines
    from persistence.store import Store

    engine = engines.create(url, connections_max=1)
    try:
        return dict(await check_replay(Store(engine, lambda _: 0), KEEPER, body, "replay"))
    finally:
        await engine.dispose()


def _archived(archive: str) -> ArchivedCalls:
    """Return what reads the calls of an archive; raise `CommandFailed` if no feature can."""
    readers: list[Any] = [feature.archived_calls() for feature in features()]
    for reader in filter(None, readers):
        calls: ArchivedCalls = reader(archive, say)
        return calls
    raise CommandFailed("Nothing here reads archives: leave --archive out.")
