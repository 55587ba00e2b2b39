"""`tollkeeper apply`, `diff` and `export`: what files say is planned on the server, shown, and done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gateway.admin.configuration.words import KINDS, schema
from gateway.admin.resources.configuration import DEFAULT_NAME
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.configuration import printing, secrets, sources
from gateway.cli.admin.configuration.documents import written
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, print_json, say, waiting

TIMEOUT_S = 320.0
WHERE = "configuration"
DIFFERENT, FAILED = 1, 2

Files = Annotated[
    list[str], typer.Option("--file", "-f", help="A file, a directory, or - for what comes in.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Delete what apply made under this name and files no longer say.")
]
Name = Annotated[str, typer.Option("--name", help="Whose files these are, where there are several.")]


def apply(
    *,
    file: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it, show it, and undo it.")] = False,
    prune: Prune = False,
    name: Name = DEFAULT_NAME,
    secrets_dir: Annotated[
        Path | None, typer.Option(help="Where keys and webhooks' secrets go that are made: a file each.")
    ] = None,
    secrets_as: Annotated[
        secrets.Form, typer.Option(help="As they are, or as manifests of Kubernetes Secrets.")
    ] = secrets.Form.FILE,
    as_json: AsJson = False,
) -> None:
    """Make what is there as files say it: all of it, or nothing."""
    with _files(file, failed=1) as (api, wanted):
        asked = {**sources.body(wanted), "prune": prune, "name": name}
        with waiting("Planning"):
            plan = api.post(WHERE, {**asked, "trial": True})
        if dry_run or not (plan["changes"] or plan["noted"] or plan["forgotten"]):
            printing.plan(plan, wanted, as_json=as_json)
            return
        if not as_json:
            printing.plan(plan, wanted, as_json=False)
        with secrets.kept(secrets_dir, secrets_as, _with_secrets(plan)) as keeping:
            with waiting("Applying"):
                done = api.post(WHERE, {**asked, "digest": plan["digest"]})
            done.pop("_later", None)
            paths, lost = keeping.keep_all(done["secrets"])
        done["secrets"] = [
            {"resource": each["resource"], "name": each["name"], "path": str(path)} for each, path in paths
        ]
        printing.done(done, as_json=as_json)
        if done["refused"]:
            lost.append(f"It is stored, but not in force. {done['refused']}")
        if left := sum(bool(each["stays"] and each["at"]) for each in plan["changes"]):
            lost.append(f"{left:,} of the objects stay undone: see why above. All else was applied.")
        if lost:
            raise CommandFailed("\n".join(lost))


def diff(*, file: Files, prune: Prune = False, name: Name = DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Show what apply would do: exit code 1 where there is something, 0 where not, 2 where it fails."""
    with _files(file, failed=FAILED) as (api, wanted):
        asked = {**sources.body(wanted), "prune": prune, "name": name}
        with waiting("Comparing"):
            plan = api.post(WHERE, asked)
        printing.plan(plan, wanted, as_json=as_json)
    if any(each["at"] or not each["stays"] for each in plan["changes"]):
        raise typer.Exit(DIFFERENT)


def export(
    *,
    to: Annotated[
        Path | None, typer.Option("--to", help="A directory for a file of each kind; else all is printed.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only these, such as tenants.")] = None,
    only_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of files instead, for editors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write down all that is configuration, as apply reads it; secrets are not part of it."""
    if only_schema:
        typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    with admin() as api:
        unknown = [each for each in kind or () if each not in KINDS]
        if unknown:
            raise CommandFailed(f"There is no kind {unknown[0]!r}: known are {', '.join(KINDS)}.")
        found = replace(api, timeout_s=TIMEOUT_S).get(WHERE)
        objects = {each: some for each, some in found["objects"].items() if not kind or each in kind}
        for line in found["left_out"]:
            say(f"Not written down: {line}")
        if as_json:
            print_json(objects)
        elif to is None:
            typer.echo(written(objects), nl=False)
        else:
            _write(to, objects)


def _write(to: Path, objects: Mapping[str, object]) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
        for each, some in objects.items():
            (to / f"{each}.yaml").write_text(written({each: some}), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}.") from error
    say(f"{len(objects)} files are in {to}.")


@contextmanager
def _files(names: list[str], *, failed: int) -> Iterator[tuple[AdminClient, sources.Sources]]:
    """The Admin API, and what files say; what is wrong with them is told by its place."""
    with admin(failed=failed) as api:
        wanted = sources.read(names)
        try:
            yield replace(api, timeout_s=TIMEOUT_S), wanted
        except CommandFailed as refused:
            raise CommandFailed(wanted.located(refused.message)) from refused


def _with_secrets(plan: Json) -> list[Json]:
    """The objects that are to be made and have a secret."""
    return [
        each
        for each in plan["changes"]
        if each["change"] == "create"
        and (secret := KINDS[each["resource"]].secret) is not None
        and secret.is_made({name: field["after"] for name, field in each["fields"].items()})
    ]
