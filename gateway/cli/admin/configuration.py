"""`tollkeeper apply`, `diff`, `export`: configuration in files, planned by the server, shown and applied."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gateway import yaml_reader
from gateway.cli.admin import described
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.output import AsJson, admin, console, escape, print_json, say, waiting
from gateway.core.accounts.administration import DEFAULT_NAME
from gateway.yaml_reader import UnreadableYaml, YamlDocument

# YAML of configuration: read like all YAML of this program, and written so that it reads the same.

_DUMPER: Any = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper


def documents(text: str, file: str) -> Iterator[YamlDocument]:
    """Yield the documents of a YAML file; raise `CommandFailed` with the line of a fault."""
    try:
        yield from yaml_reader.documents(text, file)
    except UnreadableYaml as error:
        if not error.document:
            raise CommandFailed(f"{file}, line {error.line}: not valid YAML ({error.said}).") from error
        place = f"{file}, document {error.document}, line {error.line}"
        raise CommandFailed(f"{place}: {error.said}.") from error


def written(value: Json) -> str:
    """Return a document as YAML, with its fields in the given order."""
    made: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return made


class _Dumper(_DUMPER):  # type: ignore[misc]  # the C dumper if it is installed
    def ignore_aliases(self, _: object) -> bool:
        return True


# Credentials that are shown once go to a file each, readable by its owner only, never to the screen.
#
# The files are created, empty, before the objects: an object whose secret cannot be stored is not created.

NAME_CHARS_MAX = 48
# Files that are written at a time: most of the time is the disk's.
WRITTEN_AT_ONCE = 32


class SecretFormat(StrEnum):
    FILE = "file"
    KUBERNETES = "kubernetes"


@contextmanager
def keep_secrets(directory: Path | None, form: SecretFormat, coming: Sequence[Json]) -> Iterator[SecretFiles]:
    """Create an empty file for the secret of each object in `coming`; at the end remove unused ones.

    Raise `CommandFailed` if there are secrets to come and no `directory`.
    """
    if coming and directory is None:
        names = ", ".join(f"{change['resource']} {change['name']}" for change in coming[:5])
        raise CommandFailed(f"Secrets would be made (of {names}): say with --secrets-dir where they go.")
    keeping = SecretFiles(directory or Path(), form)
    try:
        for change in coming:
            keeping.prepare(change)
        yield keeping
    finally:
        keeping.tidy()


class SecretFiles:
    def __init__(self, directory: Path, form: SecretFormat) -> None:
        self._directory = directory
        self._form = form
        self._waiting: dict[Path, Path] = {}

    def prepare(self, change: Json) -> None:
        try:
            self._make(self.path_of(change))
        except OSError as error:
            raise CommandFailed(
                f"{error.filename} cannot be made: {error.strerror}. Nothing was applied."
            ) from error

    def keep_all(self, secrets: Sequence[Json]) -> tuple[list[tuple[Json, Path]], list[str]]:
        with ThreadPoolExecutor(WRITTEN_AT_ONCE) as writers:
            kept = list(zip(secrets, writers.map(self._store_secret, secrets), strict=True))
        paths = [(secret, path) for secret, path in kept if isinstance(path, Path)]
        return paths, [why for _, why in kept if isinstance(why, str)]

    def _store_secret(self, secret: Json) -> Path | str:
        try:
            return self._keep(secret)
        except OSError as error:
            return (
                f"The secret of {secret['resource']} {secret['name']} could not be written"
                f" ({error.strerror}) and is lost: revoke or delete it, and apply again."
            )

    def _make(self, path: Path) -> Path:
        """Return an empty file that only its owner can read; it is renamed to `path` once written."""
        waiting = path.with_name(f".{path.name}.{os.getpid()}")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(waiting, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._waiting[path] = waiting
        return waiting

    def _keep(self, secret: Json) -> Path:
        """Write a secret to its file, whole or not at all."""
        path = self.path_of(secret)
        waiting = self._waiting.get(path) or self._make(path)
        with waiting.open("w", encoding="utf-8") as file:
            file.write(self._text(path, secret))
            file.flush()
            os.fsync(file.fileno())
        waiting.replace(path)
        del self._waiting[path]
        return path

    def tidy(self) -> None:
        for path in self._waiting.values():
            with suppress(OSError):
                path.unlink()

    def path_of(self, change: Json) -> Path:
        suffix = ".yaml" if self._form is SecretFormat.KUBERNETES else ""
        return self._directory / f"{_name(change)}{suffix}"

    def _text(self, path: Path, secret: Json) -> str:
        if self._form is SecretFormat.FILE:
            return f"{secret['value']}\n"
        return written(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": path.stem, "labels": {"app.kubernetes.io/managed-by": "tollkeeper"}},
                "type": "Opaque",
                "stringData": {secret["field"]: secret["value"]},
            }
        )


def _name(change: Json) -> str:
    """Return a unique name for a secret that is valid for a file and a Kubernetes Secret."""
    name = f"{change['resource']} {change['name']}"
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_CHARS_MAX].strip("-")
    return f"{plain}-{sha256(name.encode()).hexdigest()[:8]}"


# Files of configuration: the objects in them, and the position of each.

FILES_MAX = 1_000
BYTES_MAX = 12 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
STANDARD_INPUT = "-"

# An object in messages of the Admin API, and its field.
_AT = re.compile(r"\b(?P<kind>[a-z][a-z-]*)\.(?P<index>\d+)(?:\.(?P<field>[a-z_]+)(?P<rest>[\w.]*))?")
_KIND = re.compile(r"^  (?P<kind>[\w-]+): ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ObjectPosition:
    document: YamlDocument
    index: int


@dataclass(slots=True)
class Sources:
    """All objects by kind in the order of the files, their positions, and the first document of each kind."""

    objects: dict[str, list[object]] = field(default_factory=dict)
    places: dict[str, list[ObjectPosition]] = field(default_factory=dict)
    kinds: dict[str, YamlDocument] = field(default_factory=dict)

    def take(self, document: YamlDocument) -> None:
        """Add the objects of a document."""
        value, place = document.value, f"{document.file}, document {document.number}"
        if value is None:
            return
        if not isinstance(value, dict):
            raise CommandFailed(f"{place}: must be kinds with a list of objects each, such as tenants: […].")
        for kind, some in value.items():
            if not isinstance(some, list | None):
                line = document.lines[(kind,)]
                raise CommandFailed(f"{place}, line {line}: {kind} must be a list of objects.")
            objects = some or []
            self.objects.setdefault(kind, []).extend(objects)
            self.places.setdefault(kind, []).extend(
                ObjectPosition(document, index) for index in range(len(objects))
            )
            self.kinds.setdefault(kind, document)

    def located(self, message: str) -> str:
        """Return a message of the Admin API with positions in files for its objects."""
        return _KIND.sub(self._kind_place, _AT.sub(self._object_place, message))

    def _object_place(self, match: re.Match[str]) -> str:
        """Return where an error's field stands: file, document and line."""
        kind, index = match["kind"], int(match["index"])
        if kind not in self.places or index >= len(self.places[kind]):
            return match[0]
        place = self.places[kind][index]
        lines, path = place.document.lines, (kind, place.index)
        name = match["field"]
        line = lines.get((*path, name), lines[path]) if name else lines[path]
        rest = f", {name}{match['rest']}" if name else ""
        return f"{place.document.file}, document {place.document.number}, line {line}, {kind}{rest}"

    def _kind_place(self, match: re.Match[str]) -> str:
        document = self.kinds.get(match["kind"])
        if document is None:
            return match[0]
        line = document.lines[(match["kind"],)]
        return f"  {document.file}, document {document.number}, line {line}, {match['kind']}: "


def read_sources(names: Sequence[str]) -> Sources:
    """Read files and directories; raise `CommandFailed` with the file and line of a fault."""
    sources, count, size = Sources(), 0, 0
    for name in names:
        for file, text in _texts(name):
            count, size = count + 1, size + len(text)
            if count > FILES_MAX or size > BYTES_MAX:
                raise CommandFailed(
                    f"There is too much: at most {FILES_MAX} files of {BYTES_MAX} bytes in all."
                )
            for document in documents(_decoded(file, text), file):
                sources.take(document)
    if not count:
        raise CommandFailed(f"There is no {', '.join(SUFFIXES)} file in {', '.join(names)}.")
    return sources


def body_of(sources: Sources) -> Json:
    return {"objects": sources.objects}


def _texts(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of a file, or of the files in a directory; hidden ones are skipped."""
    path = Path(name)
    try:
        if name == STANDARD_INPUT:
            yield "standard input", sys.stdin.buffer.read(BYTES_MAX + 1)
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                shown = file.relative_to(path)
                hidden = any(part.startswith(".") for part in shown.parts)
                if file.suffix in SUFFIXES and not hidden and file.is_file():
                    yield str(file), _start(file)
        else:
            yield name, _start(path)
    except OSError as error:
        raise CommandFailed(f"{name} cannot be read: {error.strerror}.") from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BYTES_MAX + 1)


def _decoded(file: str, text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file}: is not UTF-8 text (at byte {error.start}).") from error


# Plans on the screen: one line a row and one a field for people, JSON for programs.

SHOWN_MAX = 1_000
MARKS = {"create": ("green", "+"), "delete": ("red", "-")}
CHANGED = ("yellow", "~")


def print_plan(plan: Json, wanted: Sources, *, as_json: bool) -> None:
    """Print the changes that a plan would make; unchanged rows are left out."""
    if as_json:
        for change in plan["changes"]:
            change["at"] = wanted.located(change["at"])
        print_json(plan)
        return
    out = console()
    for change in plan["changes"][:SHOWN_MAX]:
        out.print(_render_change(change), highlight=False, soft_wrap=True)
    more = len(plan["changes"]) - SHOWN_MAX
    if more > 0:
        out.print(f"and {more:,} more", highlight=False)
    for object_ in plan["taken"]:
        line = f"{escape(object_['resource'])} {escape(object_['name'])}: {object_['id']}, which no file made"
        out.print(f"[yellow]=[/] takes {line}", highlight=False, soft_wrap=True)
    more = plan["taken_count"] - len(plan["taken"])
    if more > 0:
        out.print(f"and takes {more:,} more", highlight=False)
    out.print(_summarize(plan), highlight=False)
    if plan["changes"] and not plan["tried"] and not plan["applied"]:
        say("It was compared, not tried: what PostgreSQL or its rules refuse shows when it is applied.")


def print_done(result: Json, *, as_json: bool) -> None:
    """Print the result of an applied plan: the files with new secrets, and whether Redis lags behind."""
    if as_json:
        print_json(result)
        return
    say("Applied.")
    for secret in result["secrets"]:
        say(
            f"The secret of {escape(secret['resource'])} {escape(secret['name'])} is in {escape(secret['path'])}."
        )
    if result["pending"]:
        say("Stored; not all of it is in force yet: gateways are told within seconds, once Redis answers.")


def _render_change(each: Json) -> str:
    """Return a planned change and its fields as lines for a terminal."""
    colour, mark = MARKS.get(each["change"], CHANGED)
    lines = [f"[{colour}]{mark}[/] {escape(each['resource'])} {escape(each['name'])}"]
    for name, change in each["fields"].items():
        before, after = _value(change["before"]), _value(change["after"])
        values = after if each["change"] == "create" else f"{before} → {after}"
        lines.append(f"    {escape(name)}: {escape(values)}")
    if each["stays"]:
        lines.append(f"    stays: {escape(each['stays'])}")
    return "\n".join(lines)


def _kind_of(change: Json) -> str:
    if change["stays"]:
        return "waits" if change["at"] else "stays"
    return change["change"] if change["change"] in MARKS else "change"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _summarize(plan: Json) -> str:
    """Return the counts of a plan's changes in a sentence."""
    counts = Counter(map(_kind_of, plan["changes"]))
    gone = f", {plan['forgotten']:,} that apply made are gone already" if plan["forgotten"] else ""
    if not counts:
        return f"Nothing to change: {plan['unchanged']:,} are as they should be{gone}."
    summary = f"{counts['create']:,} to make, {counts['change']:,} to change, {counts['delete']:,} to delete"
    stays = f", {counts['stays']:,} stay although no file says them" if counts["stays"] else ""
    stays += f", {counts['waits']:,} cannot be" if counts["waits"] else ""
    return f"{summary}{stays}; {plan['unchanged']:,} are as they should be{gone}."


TIMEOUT_S = 320.0
WHERE = "configuration"
DIFFERENT, FAILED = 1, 2

Files = Annotated[
    list[str], typer.Option("--file", "-f", help="A file, a directory, or - for what comes in.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Delete resources that this set created and no longer contains.")
]
Name = Annotated[str, typer.Option("--name", help="Name of this set of files, if there are several.")]


def apply(
    *,
    file: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it, show it, and undo it.")] = False,
    prune: Prune = False,
    name: Name = DEFAULT_NAME,
    secrets_dir: Annotated[
        Path | None, typer.Option(help="Directory for new keys and webhook secrets, one file each.")
    ] = None,
    secrets_as: Annotated[
        SecretFormat, typer.Option(help="As they are, or as manifests of Kubernetes Secrets.")
    ] = SecretFormat.FILE,
    as_json: AsJson = False,
) -> None:
    """Apply configuration files in one transaction: all of it, or nothing."""
    with _files(file, failed=1) as (api, wanted):
        asked = {**body_of(wanted), "prune": prune, "name": name}
        with waiting("Planning"):
            plan = api.post(WHERE, {**asked, "trial": True})
        if dry_run or not (plan["changes"] or plan["noted"] or plan["forgotten"]):
            print_plan(plan, wanted, as_json=as_json)
            return
        if not as_json:
            print_plan(plan, wanted, as_json=False)
        with keep_secrets(secrets_dir, secrets_as, _with_secrets(plan)) as keeping:
            with waiting("Applying"):
                done = api.post(WHERE, {**asked, "digest": plan["digest"]})
            done.pop("_later", None)
            paths, lost = keeping.keep_all(done["secrets"])
        done["secrets"] = [
            {"resource": change["resource"], "name": change["name"], "path": str(path)}
            for change, path in paths
        ]
        print_done(done, as_json=as_json)
        if done["refused"]:
            lost.append(f"It is stored, but not in force. {done['refused']}")
        if left := sum(bool(change["stays"] and change["at"]) for change in plan["changes"]):
            lost.append(f"{left:,} of the objects stay undone: see why above. All else was applied.")
        if lost:
            raise CommandFailed("\n".join(lost))


def diff(*, file: Files, prune: Prune = False, name: Name = DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Show what apply would do: exit code 1 where there is something, 0 where not, 2 where it fails."""
    with _files(file, failed=FAILED) as (api, wanted):
        asked = {**body_of(wanted), "prune": prune, "name": name}
        with waiting("Comparing"):
            plan = api.post(WHERE, asked)
        print_plan(plan, wanted, as_json=as_json)
    if any(change["at"] or not change["stays"] for change in plan["changes"]):
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
        from gateway.admin.configuration.words import schema

        typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    with admin() as api:
        if kind:
            _require_known(kind)
        answer = replace(api, timeout_s=TIMEOUT_S).get(WHERE)
        objects = {kind_: some for kind_, some in answer["objects"].items() if not kind or kind_ in kind}
        for line in answer["left_out"]:
            say(f"Not written down: {line}")
        if as_json:
            print_json(objects)
        elif to is None:
            typer.echo(written(objects), nl=False)
        else:
            _write(to, objects)


def _require_known(kinds: Sequence[str]) -> None:
    from gateway.admin.configuration.words import KINDS

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise CommandFailed(f"There is no kind {unknown[0]!r}: known are {', '.join(KINDS)}.")


def _write(to: Path, objects: Mapping[str, object]) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
        for kind_, some in objects.items():
            (to / f"{kind_}.yaml").write_text(written({kind_: some}), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}.") from error
    say(f"{len(objects)} files are in {to}.")


@contextmanager
def _files(names: list[str], *, failed: int) -> Iterator[tuple[AdminClient, Sources]]:
    """Yield a client of the Admin API and the files' objects; refusals name the position in a file."""
    with admin(failed=failed) as api:
        wanted = read_sources(names)
        try:
            yield replace(api, timeout_s=TIMEOUT_S), wanted
        except CommandFailed as refused:
            raise CommandFailed(wanted.located(refused.message)) from refused


def _with_secrets(plan: Json) -> list[Json]:
    """Return the changes of a plan that create a row with a secret."""
    created = [change for change in plan["changes"] if change["change"] == "create"]
    return [change for change in created if _makes_secret(change)]


def _makes_secret(change: Json) -> bool:
    secret = described.resource(change["resource"]).secret
    values = {name: field["after"] for name, field in change["fields"].items()}
    return secret is not None and secret.is_made(values)


# Configuration in files: `apply`, `diff` and `export`.
