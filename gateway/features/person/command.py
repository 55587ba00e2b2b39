"""`tollkeeper person`: all data of one user, written to a file or deleted."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.output import AsJson, print_json
from gateway.cli.databases import Config, Database, DataDir, owner_url

User = Annotated[str, typer.Argument(help="The user's id, as callers say it.")]
Of = Annotated[str | None, typer.Option("--org", help="Its organization: id or name.")]


def add_person(app: typer.Typer) -> None:
    """Add the section `person`, with its commands, to the program."""
    person = typer.Typer(help="All data of one user.", no_args_is_help=True)
    person.command()(export)
    person.command()(delete)
    app.add_typer(person, name="person")


def export(
    user: User, *, of: Of = None,
    to: Annotated[Path | None, typer.Option(help="Write to this file, not to standard output.")] = None,
    config: Config = None, data_dir: DataDir = None, database_url: Database = None,
) -> None:  # fmt: skip
    """Write every row of a user, a JSON object a line, without secrets."""
    from persistence.person import connect, find_person, read_person

    with connect(owner_url(config, database_url, data_dir)) as connection:
        person = find_person(connection, user, of)
        out = to.open("w", encoding="utf-8") if to is not None else sys.stdout
        try:
            for row in read_person(connection, person):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        finally:
            if to is not None:
                out.close()


def delete(
    user: User, *, of: Of = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Also rows of a signed ledger, whose proof misses them then.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None, data_dir: DataDir = None, database_url: Database = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take out names, sign-ins, sessions and metadata of a deleted user. Amounts and counts stay."""
    from persistence.ledger.copying import KNOWN_S
    from persistence.person import connect, count_mentions, delete_person, find_person

    with connect(owner_url(config, database_url, data_dir)) as connection:
        person = find_person(connection, user, of)
        if not yes:
            typer.confirm(
                f"Take out the data of {user} (user {person.id})? It does not come back.", abort=True
            )
        done = delete_person(connection, person, signed=signed)
        connection.commit()
        mentions = count_mentions(connection, person)
    # Keepers cache the id of the name until then. Later calls by this name are of a new user.
    time.sleep(KNOWN_S)
    if as_json:
        print_json(done | {"mentions": mentions})
        return
    for table, rows in done.items():
        if rows:
            typer.echo(f"{table}: {rows:,} rows")
    for column, rows in mentions.items():
        typer.echo(f"{column}: {rows:,} rows still have the id")
