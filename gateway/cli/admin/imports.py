"""`tollkeeper import`: what its commands share, which features add for one gateway each.

A command translates another gateway's configuration into a `Translated`. Nothing of a source is dropped without a
word: what is not translated is in `left`. An import opens nothing: a key is made only if all members of its record, and
of its owners' records, are known to limit nothing or are translated whole; other keys are in `shut`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import typer

from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.configuration import written
from gateway.cli.admin.output import print_json, say
from gateway.core.text import read_json, visible
from gateway.feature import features

CONFIG, OBJECTS, KEYS = "tollkeeper.yaml", "objects.yaml", "keys"
BYTES_MAX = 4 * 2**20
PLAN, EVERYBODY = "Tokens without a limit", "Everybody"
# Names that may be those of limits, in parts that people fill freely: anything else there limits nothing.
LIMIT = re.compile(r"(?i)limit|budget|quota|max|credit|concurren|parallel|(?:\b|_)[rt]p[smhd]")
# Files with the pages of a list.
Pages = list[Path] | None


@dataclass(slots=True)
class Translated:
    """The result: a configuration file, objects to apply, secrets by file name, and omissions.

    `shut` are keys, or owners of keys, that are not made, because one of their limits cannot be said.
    """

    config: Json = field(default_factory=dict)
    objects: Json = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    shut: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_section() -> typer.Typer:
    """Return the commands that translate configurations of other gateways."""
    made = typer.Typer(no_args_is_help=True, help="Take over another gateway's configuration.")

    @made.callback()
    def about() -> None:
        """Take over another gateway's configuration."""

    for feature in features():
        feature.imports(made)
    return made


def leaves(rest: object, place: str) -> Iterator[tuple[str, object]]:
    """Yield each value that is left in a document, after its path."""
    if isinstance(rest, dict):
        for name, value in rest.items():
            yield from leaves(value, f"{place}.{name}" if place else str(name))
    elif isinstance(rest, list) and any(isinstance(item, dict | list) for item in rest):
        for number, item in enumerate(rest):
            yield from leaves(item, f"{place}[{number}]")
    elif rest not in (None, "", []):
        yield place, rest


def is_empty(value: object) -> bool:
    return value is False or value in (None, "", [], {})


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name, with a number appended if it is taken."""
    numbered = (name if number == 1 else f"{name} {number}" for number in range(1, len(taken) + 2))
    return next(name_ for name_ in numbered if name_ not in taken)


def deliver(made: Translated, to: Path, *, as_json: bool) -> None:
    """Write the files of a translation to a new directory, and print what it left out."""
    if to.exists():
        raise CommandFailed(f"{to} is there already: name a new directory with --to.")
    directory = to.absolute()
    write_files(directory, made)
    if as_json:
        left = [{"place": place, "why": why} for place, why in (*made.shut, *made.left)]
        print_json({"directory": str(directory), "left_out": left, "notes": made.notes})
        return
    counts = {name: len(made.config[name]) for name in ("models", "upstreams") if made.config}
    counts |= {name: len(rows) for name, rows in made.objects.items()}
    typer.echo(f"Written to {to}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ".")
    if made.shut:
        typer.echo(f"Not made, as a limit of theirs cannot be said: {len(made.shut)}.")
    for place, why in made.shut:
        typer.echo(visible(f"  {place}: {why}"))
    for note in made.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"Left out: {len(made.left)} settings." if made.left else "Nothing is left out.")
    for place, why in made.left:
        typer.echo(visible(f"  {place}: {why}"))
    if made.config:
        say(f"Start it:  tollkeeper up --no-demo --config {to / CONFIG}")
    say(f"Then:      tollkeeper apply -f {to / OBJECTS} --secrets-dir secrets")


def read_source(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) > BYTES_MAX:
        raise CommandFailed(f"{path} has more than {BYTES_MAX} bytes.")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{path} is not UTF-8 text (at byte {error.start}).") from error


def read_answer(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return read_json(read_source(path))
    except ValueError as error:
        raise CommandFailed(f"{path} is no JSON: {error}.") from error


def read_rows(
    pages: Pages, field: str = "data", key: str = "id", *, is_whole: bool = True
) -> list[tuple[str, Json]]:
    """Return the rows of a list, which pages have in a `field`, with the place of each.

    Raise `CommandFailed` if a file is no page of a list. If the list `is_whole`, raise it too if a page is missing, or
    if two rows share a `key` and differ.
    """
    rows, answers = dict[str, tuple[str, Json]](), dict[Path, Json]()
    for path in pages or ():
        answer = read_answer(path)
        data = answer.get(field) if isinstance(answer, dict) else field != "data" and answer
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            raise CommandFailed(f"{path}: {field} must be a list of objects, as the API answers it.")
        answers[path] = answer if isinstance(answer, dict) and is_whole else {}
        for number, row in enumerate(data):
            place = f"{path.name}: {field}[{number}]"
            own = row.get(key) if is_whole else None
            first, known = rows.setdefault(str(own or f"{path} {number}"), (place, row))
            if known != row:
                fault = f"{first} has the same {key} and other fields"
                raise CommandFailed(f"{place}.{key}: {fault}. Save all pages at one time.")
    counts = {"total": len(rows), "total_count": len(rows), "total_pages": len(answers)}
    for (path, answer), (name, count) in product(answers.items(), counts.items()):
        if isinstance(most := answer.get(name), int) and most > count:
            fault = f"{name} is {most}, and there are {count} here"
            raise CommandFailed(f"{path}: {fault}. Save the other pages too, and name all files.")
    return list(rows.values())


def write_files(directory: Path, made: Translated) -> None:
    """Write all files; those with secrets are readable by their owner only."""
    try:
        directory.mkdir(mode=0o700, parents=True)
        for name, secret in made.secrets.items():
            (directory / KEYS).mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(directory / KEYS / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{secret}\n")
        if made.config:
            (directory / CONFIG).write_text(written(made.config), encoding="utf-8")
        (directory / OBJECTS).write_text(written(made.objects), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}.") from error
