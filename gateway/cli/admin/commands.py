"""The administration commands, generated from the Admin API's resources: their fields, filters and actions.

A command is a function whose signature is generated, so that shell completion, help and reference treat it
like a hand-written one. Required fields can be given in order, without their option's name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperCommand

from gateway.admin.resources import form_fields
from gateway.admin.resources.form_fields import FormField
from gateway.cli.admin import client, described, output
from gateway.cli.admin.client import AdminClient, CommandFailed, Json, find
from gateway.cli.admin.output import AsJson
from gateway.cli.admin.sections import CliReport, CliResource, CommandParts, section_of
from gateway.core.accounts.budgets import OF_GROUP
from gateway.core.accounts.tags import TAG
from gateway.core.text import read_json
from gateway.feature import features

# Fields of resources as the command line's options and arguments.

# Sections that also have hand-written commands.
BY_HAND = frozenset({"budget", "counters", "invoice", "ledger", "letters", "reconciliation"})
COMPLETION_ROWS_MAX = 50
COMPLETION_S_MAX = 2.0
NOTHING = ("none", "unlimited")
_BELOW_0 = re.compile(r"-[0-9][0-9.,_]*[kKmM]?")


def row_argument(resource: CliResource, word: str) -> Any:
    by = client.named_by(resource.name)
    known = by in resource.filters or resource.name in client.ID_OF
    sentence = f"Id or {by.removesuffix('_id')}." if known else "Its id."
    return typer.Argument(metavar=word, help=sentence, autocompletion=completion(resource.name))


def words_argument(fields: Sequence[FormField]) -> Any:
    """Return the argument with which fields are given by position, without the name of an option."""
    shown = " ".join(f"[{spelled(field.name).upper()}]" for field in fields)
    return typer.Argument(metavar=shown, help="Or by option.", autocompletion=completion(fields[0].refers))


def option_of(field: FormField) -> Any:
    """Return the annotation of typer's option for a form field."""
    names = names_of(field.name)
    is_limit = form_fields.is_limits(field.name.partition(".")[0])
    says = [field.hint, "Id or name." if field.refers else "", "0 is no limit." if is_limit else ""]
    says += [
        f"By default {field.default}." if field.default else "",
        "NAME=VALUE or JSON." if field.kind == "json" else "",
    ]
    says += ["'none' clears it." if field.nullable and not is_limit and field.kind != "flag" else ""]
    option = typer.Option(
        *(["/".join((names[0], names[0].replace("--", "--no-", 1)))] if field.kind == "flag" else names),
        help=" ".join(filter(None, says)),
        autocompletion=completion(field.refers),
        # A value that may be `none` is read as text; the help still lists the choices.
        metavar=f"<{'|'.join(field.choices)}>" if field.kind == "choice" and field.nullable else None,
    )
    kind: Any = str | None
    if field.kind == "flag":
        kind = bool | None
    elif field.kind in {"lines", "json"}:
        kind = list[str] | None
    elif field.kind == "many":
        kind = list[_choice(field)] | None  # type: ignore[misc]  # made here
    elif field.kind == "choice":
        kind = str | None if field.nullable else _choice(field) | None
    return Annotated[kind, option]


def names_of(name: str) -> list[str]:
    """Return the command line options for a field: a short name if it exists, then the full one."""
    long = spelled(name)
    outer, _, inner = name.partition(".")
    if inner and form_fields.is_limits(outer):
        prefix = outer.removesuffix("limits").replace("_", "-")
        return [f"--{prefix}{client.SHORT.get(spelled(inner), spelled(inner))}", f"--{long}"]
    return [*([f"--{client.SHORT[long]}"] if long in client.SHORT else []), f"--{long}"]


def typed_as(name: str) -> str:
    """Return the option that the user typed for a field; if none was typed, its first option."""
    names = names_of(name)
    words = {word.partition("=")[0] for word in sys.argv}
    return next((name for name in names if name in words), names[0])


def usual(field: FormField) -> Any:
    """Return an option `--usual-…` that resets a flag to unset, so that its default holds."""
    long = spelled(field.name)
    return Annotated[bool, typer.Option(f"--usual-{long}", help=f"Neither --{long} nor --no-{long}.")]


def _choice(field: FormField) -> Any:
    return StrEnum(field.label.title().replace(" ", ""), {name: name for name in field.choices})


def completion(resource: str) -> Callable[[str], list[str]] | None:
    """Return the shell completion for names of a resource's rows; None if its rows have no names."""
    if not resource:
        return None
    resource = client.ID_OF.get(resource, resource)
    by = client.named_by(resource)
    if by not in described.resource(resource).filters or by.endswith("_id"):
        return None

    def complete(incomplete: str) -> list[str]:
        with suppress(CommandFailed):  # no completion without the Admin API
            rows = replace(find(), timeout_s=COMPLETION_S_MAX).items(resource, COMPLETION_ROWS_MAX)
            return [row[by] for row in rows if str(row[by] or "").startswith(incomplete)]
        return []

    return complete


Typed = dict[str, Any]  # values that typer read, by parameter
# The prefix of parameters that reset a flag.
_USUAL = "usual_"


_LIST = {
    "limit": (Annotated[int, typer.Option("--limit", help="Most rows to print.", min=1, max=100_000)], 100),
    "newest": (Annotated[bool, typer.Option("--newest", help="Newest first.")], False),
    "since": (
        Annotated[str | None, typer.Option("--since", help="RFC 3339, such as 2026-01-31T00:00:00Z.")],
        None,
    ),
    "until": (Annotated[str | None, typer.Option("--until", help="RFC 3339; not included.")], None),
    "every": (Annotated[bool, typer.Option("--all", help="Closed ones as well.")], False),
}


@cache
def _list_sources() -> Sequence[ListSource]:
    return [source for feature in features() for source in feature.list_sources()]


@dataclass(frozen=True, slots=True)
class CliCommand:
    """One command: the action `does` on a resource, its fields, and which of them need no option's name."""

    resource: CliResource
    does: str
    summary: str
    fields: tuple[FormField, ...] = ()
    positional: tuple[str, ...] = ()
    part: tuple[str, str, str] | None = None

    @classmethod
    def of(cls, resource: CliResource, parts: CommandParts) -> CliCommand:
        return cls(resource, parts.does, parts.summary, parts.fields, parts.positional, parts.part)

    def function(self) -> Callable[..., None]:
        """Return the function for typer: its parameters are the options and arguments of this command."""
        takes: dict[str, tuple[Any, Any]] = {}
        if self.does not in {"list", "create"} and not self._asks:
            word = _word(self.resource)
            takes["row"] = (
                Annotated[str, row_argument(self.resource, word)],
                inspect.Parameter.empty,
            )
        if self.positional:
            named = [field for name in self.positional for field in self.fields if field.name == name]
            takes["words"] = (Annotated[list[str] | None, words_argument(named)], None)
        for field in self.fields:
            takes[field.control] = (option_of(field), None)
            if self.does == "patch" and field.kind == "flag" and field.nullable and "." not in field.name:
                takes[_USUAL + field.control] = (usual(field), False)
        if self.does == "list":
            takes |= {name: _LIST[name] for name in _LIST if name != "every" or self._open}
            takes |= {source.name: source.option for source in self._sources}
        if self._lists:
            takes["limit"] = _LIST["limit"]
        takes["as_json"] = (AsJson, False)

        def command(**typed: Any) -> None:
            for source in self._sources:
                if typed.get(source.name) is not None:
                    rows = source.rows(self.resource, self.fields, typed)
                    output.rows(rows, self.resource.columns, as_json=bool(typed["as_json"]))
                    return
            called = {"from": "--since", "to": "--until"} if self.does == "list" else {}
            called |= {field.name: typed_as(field.name) for field in self.fields}
            with output.admin() as api:
                self.run(replace(api, called=called), typed)

        return _set_signature(command, self.summary, takes)

    @property
    def _sources(self) -> Sequence[ListSource]:
        if self.does != "list" or not self.resource.archived:
            return ()
        return [source for source in _list_sources() if self.resource.name in source.resources]

    def run(self, api: AdminClient, typed: Typed) -> None:
        """Call the Admin API with the values `typed`, and print the answer."""
        body = self._body(api, typed)
        as_json = bool(typed["as_json"])
        name = self.resource.name
        if self.does == "list":
            self._list(api, typed, body)
            return
        if self._asks:
            answer = api.get(f"{name}/{self.does}", **in_query(body))
            output.report(answer, "Lines", inner="lines", as_json=as_json)
            return
        if self.does == "create":
            secret = self.resource.secret
            body = with_amounts(self.fields, body, dict)
            body = with_members(api, body, lambda: body)
            note = secret.note if secret is not None and secret.is_made(body) else None
            output.row(api.post(name, body), as_json=as_json, note=note)
            return
        row_id = api.id_of(name, typed["row"])
        where = f"{name}/{row_id}"
        if self.does == "show":
            self._show(api, row_id, as_json=as_json)
        elif self.does == "delete":
            api.delete(where)
            output.deleted(row_id, as_json=as_json)
        elif self.does == "patch":
            if not body:
                raise CommandFailed("Nothing to change: name at least one option; --help lists them.")
            changes = with_parts(body, lambda: api.get(where))
            changes = with_amounts(self.fields, changes, lambda: api.get(where))
            changes = with_members(api, changes, lambda: api.get(where))
            output.row(api.patch(where, changes), as_json=as_json)
        elif self._lists:
            rows = api.items(f"{where}/{self.does}", typed["limit"])
            output.rows(rows, self.resource.parts[self.does], as_json=as_json)
        else:
            body = with_amounts(self.fields, body, lambda: api.get(where))
            body = (with_owner if self.part is None else with_group)(api, where, body)
            body = with_members(api, body, lambda: api.get(where))
            self._act(api, where, body, as_json=as_json)

    def _show(self, api: AdminClient, row_id: int, *, as_json: bool) -> None:
        """Print a row, with the rows of another resource that belong to it."""
        name = self.resource.name
        row = api.get(f"{name}/{row_id}")
        if name in client.BESIDE:
            word, beside = client.BESIDE[name]
            more = api.get(f"{beside}/{row_id}")
            row = {**row, word: more} if as_json else {**row, **more}
        if not as_json:
            [row] = with_names(api, self.resource, [row], tuple(row))
        output.row(row, as_json=as_json)

    def _act(self, api: AdminClient, where: str, body: Json, *, as_json: bool) -> None:
        """Call an action of a row, or set or delete one of its parts, and print the answer."""
        if self.part is None:
            mints = self.does in self.resource.mints
            note = self.resource.secret.note if self.resource.secret and mints else None
            output.row(api.post(f"{where}/{self.does}", body), as_json=as_json, note=note)
            return
        name, method, key = self.part
        named = str(body.pop(key))
        place = f"{where}/{name}/{quote(named, safe='')}"
        if method == "DELETE":
            api.delete(place)
            output.deleted(named, as_json=as_json)
        elif part := api.put(place, body):
            output.row(part, as_json=as_json)
        else:
            output.say("Done.")

    @property
    def _asks(self) -> bool:
        return self.does in self.resource.asks

    @property
    def _lists(self) -> bool:
        return self.does in self.resource.parts

    @property
    def _open(self) -> str:
        return client.OPEN.get(self.resource.name, "")

    def _body(self, api: AdminClient, typed: Typed) -> Json:
        """Return the fields that the user typed as the body of a request.

        Raise `CommandFailed` if one is missing or unexpected.
        """
        given = self._typed_values(typed)
        if self.does == "create":
            given = client.defaults(self.resource.name, given) | given
        missing = [field.name for field in self.fields if field.required and field.name not in given]
        if missing:
            noun = "argument" if len(missing) == 1 else "arguments"
            names = (f"{spelled(name).upper()} (--{spelled(name)})" for name in missing)
            raise CommandFailed(f"Missing {noun} {', '.join(names)}.")
        body: Json = {}
        for field in self.fields:
            if field.name in given:
                outer, _, inner = field.name.partition(".")
                sent = value(api, field, given[field.name])
                body |= {outer: {**body.get(outer, {}), inner: sent}} if inner else {outer: sent}
        return with_parts(body, dict) if self.does == "create" else body

    def _typed_values(self, typed: Typed) -> Json:
        """Return the values of options by field, then of arguments for the positional fields without an option."""
        values = {
            field.name: typed[field.control]
            for field in self.fields
            if typed[field.control] not in (None, [])
        }
        values |= {field.name: "none" for field in self.fields if typed.get(_USUAL + field.control)}
        free_names = [name for name in self.positional if name not in values]
        words = [word.strip() for word in typed.get("words") or []]
        if len(words) > len(free_names):
            raise CommandFailed(f"Unexpected argument {words[len(free_names)]!r}. Try --help.")
        return values | dict(zip(free_names, words, strict=False))

    def _list(self, api: AdminClient, typed: Typed, body: Json) -> None:
        """Print the rows of a list that the options select."""
        body |= tag_filters(body.pop("tags", None))
        query = {name: str(each).lower() if isinstance(each, bool) else each for name, each in body.items()}
        if self._open and not typed["every"]:
            query.setdefault(self._open, "false")
        query |= {"order": "desc" if typed["newest"] else None, "from_": typed["since"], "to": typed["until"]}
        rows_found = api.items(self.resource.name, typed["limit"], **query)
        shown = self.resource.columns
        if not typed["as_json"]:
            rows_found = with_names(api, self.resource, rows_found, shown)
        output.rows(rows_found, shown, as_json=bool(typed["as_json"]))


def mount(app: typer.Typer, asked: Collection[str] | None = None) -> dict[str, typer.Typer]:
    """Add a section of commands for each resource, report and alias; return the sections by name.

    With `asked`, only these sections get their commands: creating all takes 0.2 s.
    """
    made: dict[str, typer.Typer] = {}
    for resource in described.resources():
        name = section_of(resource)
        if asked is None or name in asked:
            made[name] = _section(app, described.resource(resource))
        else:
            description = described.document()["resources"][resource]["description"]
            made[name] = typer.Typer(no_args_is_help=True, help=description)
            app.add_typer(made[name], name=name)
    for report in described.reports():
        section = made[report.name] = typer.Typer(no_args_is_help=True, help=report.description)
        app.add_typer(section, name=report.name)
        section.command("show")(_shows(report))
    for alias in client.ALIASES:
        if asked is None or alias.section in asked:
            _add_alias(made[alias.section], alias)
    return made


def mount_section(app: typer.Typer, name: str) -> bool:
    """Add the section with this name; return False if it does not exist, or has hand-written commands."""
    resources = [resource for resource in described.resources() if section_of(resource) == name]
    if not resources or name in BY_HAND:
        return False
    section = _section(app, described.resource(resources[0]))
    for alias in client.ALIASES:
        if alias.section == name:
            _add_alias(section, alias)
    return True


def _section(app: typer.Typer, resource: CliResource) -> typer.Typer:
    """Create the section of a resource with all its commands."""
    section = typer.Typer(no_args_is_help=True, help=resource.description)
    app.add_typer(section, name=section_of(resource.name))
    if resource.batch is not None:
        section.command(resource.batch[0])(sends(resource.name, resource.batch[1]))
    for verb, parts in resource.commands.items():
        section.command(verb, cls=WordsCommand)(CliCommand.of(resource, parts).function())
    return section


def _add_alias(section: typer.Typer, alias: client.Alias) -> None:
    resource = described.resource(alias.resource)
    command = CliCommand.of(resource, resource.commands[alias.does])
    command = replace(command, summary=alias.summary, positional=alias.positional or command.positional)
    section.command(alias.verb, cls=WordsCommand)(command.function())


class WordsCommand(TyperCommand):
    """A command whose words may be negative numbers: -5 is a word here, not an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; negative numbers get a leading blank, so that they are no options."""
        before = ["", *args]
        words = [
            f" {word}" if _BELOW_0.fullmatch(word) and not earlier.startswith("-") else word
            for earlier, word in zip(before, args, strict=False)
        ]
        return super().parse_args(ctx, words)


def _shows(report: CliReport) -> Callable[..., None]:
    """Return the command that prints a report."""

    def show(as_json: bool, **numbers: int) -> None:
        with output.admin() as api:
            output.report(api.get(report.name, **numbers), report.name.capitalize(), as_json=as_json)

    takes: dict[str, tuple[Any, Any]] = {}
    for name, each in report.numbers.items():
        option = typer.Option(help=each.hint, min=each.least, max=each.most)
        takes[name] = (Annotated[int, option], each.default)
    takes["as_json"] = (AsJson, False)
    return _set_signature(show, f"{report.summary}.", takes)


def _set_signature(
    command: Callable[..., None], summary: str, takes: Mapping[str, tuple[Any, Any]]
) -> Callable[..., None]:
    """Set the signature that typer reads: each parameter's type and default; return the command."""
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in takes.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in takes.items()}
    command.__doc__ = summary
    return command


def _word(resource: CliResource) -> str:
    return section_of(resource.name).upper()


def number(text: str) -> int:
    found = form_fields.whole(text)
    if found is None:
        raise ValueError(f"must be a whole number such as 250000, 250,000 or 5M, not {text!r}")
    return found


def value(api: AdminClient, field: FormField, text: str | bool | Sequence[str]) -> object:
    """Return the value of a field to send, from the text of its option.

    Raise `CommandFailed` with the option's name if the text is invalid.
    """
    try:
        if isinstance(text, bool):
            return text
        if isinstance(text, str):
            return None if field.nullable and text in NOTHING else _parse_value(api, field, text)
        if field.nullable and len(text) == 1 and text[0] in NOTHING:
            return None
        return _document(text, field) if field.kind == "json" else [_item(item) for item in text]
    except ValueError as error:
        raise CommandFailed(f"{typed_as(field.name)} {error}.") from error


def tag_filters(tags: Any) -> Json:
    """Return the query parameters that ask for calls with these tags; raise `CommandFailed` for other JSON."""
    if not isinstance(tags, dict | None):
        raise CommandFailed("--tags: must be NAME=VALUE.")
    return {TAG + name: value for name, value in (tags or {}).items()}


def spelled(name: str) -> str:
    """Return the long option of a field, such as `tenant` for `tenant_id`."""
    return name.removesuffix("_id").replace(".", "-").replace("_", "-")


def with_owner(api: AdminClient, where: str, body: Json) -> Json:
    """Return a body with the id of the owner that `who` names, if values of the budget's `each` are ids."""
    if not isinstance(body.get("who"), str):
        return body
    budget = api.get(where)
    resource = client.OWNERS.get(budget.get("each"))
    if resource is None:
        return body
    return {**body, "who": str(api.id_of(resource, body["who"], budget["organization_id"]))}


def with_group(api: AdminClient, where: str, body: Json) -> Json:
    """Return a body with the id of the group that `who` names as `group:NAME`, else as `with_owner` does."""
    kind, colon, name = str(body.get("who", "")).partition(":")
    if kind + colon != OF_GROUP:
        return with_owner(api, where, body)
    organization_id = api.get(where)["organization_id"]
    return {**body, "who": f"{OF_GROUP}{api.id_of('groups', name, organization_id)}"}


def with_members(api: AdminClient, body: Json, known: Callable[[], Json]) -> Json:
    """Return a body with the ids of the members of a group that it names, where such members are ids.

    `known` reads the group, and is called only if the body has members.
    """
    fields = [name for name in ("member", "members") if body.get(name)]
    group = known() if fields else {}
    resource = client.MEMBERS.get(group.get("kind"))
    if resource is None:
        return body

    def id_of(member: object) -> int:
        return api.id_of(resource, str(member), group["organization_id"])

    named = {name: body[name] for name in fields}
    return body | {
        name: [id_of(member) for member in value] if isinstance(value, list) else id_of(value)
        for name, value in named.items()
    }


def in_query(body: Json) -> Json:
    """Return a body as query parameters; nested fields are named `outer.inner`."""
    inner = {
        f"{name}.{key}": each
        for name, value in body.items()
        if isinstance(value, dict)
        for key, each in value.items()
    }
    return {name: value for name, value in body.items() if not isinstance(value, dict)} | inner


def with_parts(body: Json, known: Callable[[], Json]) -> Json:
    """Return a body in which the given limits and other parts are merged into those of the existing row.

    A limit of 0 is removed; of others, a part that is cleared clears them all. `known` reads the row, and is
    called only if the body has such parts.
    """
    given = [name for name in body if form_fields.is_flat(name)]
    row = known() if given else {}
    merged: Json = {name: {**(row.get(name) or {}), **body[name]} for name in given}
    for name, parts in merged.items():
        if form_fields.is_limits(name):
            merged[name] = {key: most for key, most in parts.items() if most}
        elif None in parts.values():
            merged[name] = None
    return body | merged


def with_amounts(fields: Sequence[FormField], body: Json, known: Callable[[], Json]) -> Json:
    names = form_fields.amounts(fields, body)
    if not names:
        return body
    return form_fields.set_amounts(names, body, str(body["unit"] if "unit" in body else known()["unit"]))


def with_names(
    api: AdminClient, resource: CliResource, rows: Sequence[Json], columns: Sequence[str]
) -> list[Json]:
    """Return the rows with a name after each id of another object, such as a tenant, for people to read."""
    named = {
        column: api.names(target, {row[column] for row in rows} - {None})
        for column in columns
        if (target := resource.target(column))
    }
    return [
        row | {name: f"{row[name]} {known[row[name]]}" for name, known in named.items() if row[name] in known}
        for row in rows
    ]


def _parse_value(api: AdminClient, field: FormField, text: str) -> object:
    if field.refers:
        return api.id_of(field.refers, text)
    if field.kind == "numbers":
        return [] if text in NOTHING else form_fields.numbers(text)
    return number(text) if field.kind == "whole" else text


def _item(text: str) -> object:
    return read_json(text) if text.startswith("{") else text


def _document(texts: Sequence[str], field: FormField) -> object:
    """Return the value of a JSON option: one JSON document, or several texts NAME=VALUE."""
    if len(texts) == 1 and texts[0].lstrip().startswith(("{", "[")):
        try:
            return read_json(texts[0])
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from error
    facts = dict(text.partition("=")[::2] for text in texts if "=" in text)
    if len(facts) < len(texts):
        raise ValueError("must be JSON, or NAME=VALUE such as amount=12, each NAME once")
    return facts if field.of_texts else {name: _fact(text) for name, text in facts.items()}


def _fact(text: str) -> object:
    with suppress(ValueError):
        return read_json(text)
    return text


@dataclass(frozen=True, slots=True)
class ListSource:
    """Another source of some lists' rows: an option selects it, `rows` reads from it."""

    name: str
    option: Any
    resources: frozenset[str]
    rows: Callable[[CliResource, Sequence[FormField], dict[str, Any]], list[Json]]


def read_option(name: str, text: Any, reader: Callable[[str], Any]) -> Any:
    """Return an option's value, parsed by `reader`; a `ValueError` becomes an error of the option."""
    try:
        return reader(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{spelled(name)}") from error


# `tollkeeper event send FILE` and similar commands: a file of many objects. Some may be refused.

File = Annotated[
    str,
    typer.Argument(help="A JSON file of one or a list, or a JSON object a line; - is what comes in."),
]


def sends(resource: str, summary: str) -> Callable[..., None]:
    """Return the command that sends a file of many objects to create them.

    The command's exit status is 1 if some objects are rejected.
    """

    def send(file: File, as_json: AsJson = False) -> None:
        with output.admin() as api:
            answer = api.post(resource, _read_file(file))
            output.report(answer, "Rejected", inner="rejected", as_json=as_json)
        if answer["rejected"]:
            raise typer.Exit(1)

    send.__doc__ = f"{summary}."
    return send


def _read_file(name: str) -> Json | list[Json]:
    """Return the JSON document in a file, or its lines as a list; "-" is standard input."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CommandFailed(f"{name} cannot be read: {error}.") from error
    try:
        parsed: Json | list[Json] = read_json(text)
    except ValueError:
        try:
            parsed = [read_json(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise CommandFailed(f"{name} is no JSON: {error}.") from error
    return parsed
