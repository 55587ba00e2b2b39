"""Documents say what is so: files, commands, settings, metrics and resources they name are there."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import typer

from gateway.admin.resources.registry import RESOURCES
from gateway.cli import main as cli
from gateway.cli.admin import program as cli_admin
from gateway.core.http_limits import HttpLimits
from gateway.http.protocol import framing
from gateway.settings import settings
from gateway.telemetry import metrics
from gateway.telemetry.metrics import FACTS
from tests.tree import ROOT, named, offenders, texts

ROW = re.compile(r"^\| `([^`]+)` \|(.*)\|$", re.MULTILINE)


def rows(document: str) -> dict[str, list[str]]:
    """The tables of a document by the name in their first column; `page#Heading` is one section."""
    page, _, heading = document.partition("#")
    text = (ROOT / page).read_text()
    text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else text
    return {match[1]: [cell.strip() for cell in match[2].split(" | ")] for match in ROW.finditer(text)}


def test_every_setting_is_documented() -> None:
    documented = {
        name: cells for name, cells in rows("docs/settings.md").items() if name.startswith(settings.PREFIX)
    }
    defaults = settings.Settings().named()
    known = {f"{settings.PREFIX}{name.upper()}": default for name, default in defaults.items()}
    assert documented.keys() == known.keys()
    for name, default in known.items():
        shown, meaning = documented[name]
        assert shown == (f"`{default}`" if default != "" else "none"), name
        assert meaning, name


def test_every_metric_is_documented() -> None:
    documented = rows("docs/metrics.md")
    known = {}
    for fact in FACTS:
        name = f"{metrics.PREFIX}{fact.name}{'_total' if fact.kind == 'counter' else ''}"
        known[name] = [fact.kind, ", ".join(f"`{label}`" for label in fact.labels) or "none"]
    known[f"{metrics.PREFIX}build_info"] = ["info", "`version`, `python`"]
    assert {name: cells[:2] for name, cells in documented.items()} == known
    assert all(len(cells) == 3 and cells[2] for cells in documented.values())


def test_every_resource_is_documented() -> None:
    assert rows("docs/api.md#Resources").keys() == RESOURCES.keys()


COMMAND = re.compile(
    r"(?:`|^ {4}(?:\.venv/bin/)?)tollkeeper ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", re.MULTILINE
)


@cache
def commands() -> dict[str, frozenset[str]]:
    """Every command of the program, with its own commands if it has any."""
    administration = typer.Typer()
    cli_admin.mount(administration)
    cli.mount_features()
    found: dict[str, frozenset[str]] = {}
    for part in (cli.app, administration):
        for name, command in typer.main.get_group(part).commands.items():
            found[name] = frozenset(getattr(command, "commands", ()))
    return found


def test_documents_name_commands_that_exist() -> None:
    offenders(
        f"{document}: tollkeeper {command} {inner}"
        for document in named(".md")
        for command, inner in COMMAND.findall(texts()[document])
        if command not in commands() or (inner and commands()[command] and inner not in commands()[command])
    )


PATH = re.compile(r"`((?:gateway|persistence|lua|tests|docs|deploy|\.ci)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def anchors(document: str) -> set[str]:
    """What a heading is linked by: lower case, without punctuation, dashes for blanks; and ids that stand in the text."""
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    ids = re.findall(r'<a id="([^"]+)">', document)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(ids)


def test_documents_name_files_that_exist() -> None:
    offenders(absent for document in named(".md") for absent in _absent(document))


def _absent(document: str) -> Iterator[str]:
    here = (ROOT / document).parent
    for match in PATH.finditer(texts()[document]):
        if not (ROOT / match[1]).exists():
            yield f"{document}: {match[1]}"
    for match in LINK.finditer(re.sub(r"\n *", " ", texts()[document])):
        target = here / match[1] if match[1] else ROOT / document
        if not target.exists() or (match[2] and match[2] not in anchors(target.read_text())):
            yield f"{document}: {match[0]}"


NAME_IN_FILE = re.compile(r"`(?:\w+\.)?(\w+)` (?:of|in) `([\w/]+/\w+\.(?:py|lua))`")


def test_documents_name_what_their_files_define() -> None:
    offenders(
        f"{document}: `{name}` is not defined in {file}"
        for document in named(".md")
        for name, file in NAME_IN_FILE.findall(" ".join(texts()[document].split()))
        if not re.search(
            rf"^\s*(?:(?:async |local )?(?:def|class|function)\s(?:\w+\.)?{name}\b|[\w., ]*\b{name}\b[\w, ]*(?::.*)?=)",
            texts()[file],
            re.MULTILINE,
        )
    )


# A map that takes longer to read than a quarter of an hour is no map.
MAP_WORDS_MAX = 2_500


def test_the_architecture_is_a_map() -> None:
    before, _, table = texts()["ARCHITECTURE.md"].partition("## Where is what\n")
    assert len((before + table.partition("\n## ")[2]).split()) <= MAP_WORDS_MAX


def test_every_law_names_a_test() -> None:
    laws = re.findall(
        r"^\| \d+ \| \*\*.+\*\*.* \| `(tests/.+)` \|$", texts()["ARCHITECTURE.md"], re.MULTILINE
    )
    assert len(laws) >= 12
    offenders(test for test in laws if not (ROOT / test).is_file())


def test_every_document_is_reached_from_the_map() -> None:
    reached, ahead = {"ARCHITECTURE.md"}, ["ARCHITECTURE.md"]
    while ahead:
        document = ahead.pop()
        here = (ROOT / document).parent
        for match in LINK.finditer(re.sub(r"\n *", " ", texts()[document])):
            target = (here / match[1]).resolve() if match[1] else ROOT / document
            name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
            if name.endswith(".md") and name in texts() and name not in reached:
                reached.add(name)
                ahead.append(name)
    offenders(f"no way from ARCHITECTURE.md to {document}" for document in set(named(".md")) - reached)


def test_every_annex_is_named_by_the_map() -> None:
    """Two clicks lead anywhere inside: the map, then the page."""
    linked = {match[1] for match in LINK.finditer(texts()["ARCHITECTURE.md"])}
    annexes = {document for document in named(".md") if document.startswith("docs/internals/")}
    offenders(f"ARCHITECTURE.md does not link {document}" for document in annexes - linked)


def test_the_states_of_a_message_are_those_of_the_tables() -> None:
    page = texts()["docs/internals/http.md"].partition("## States of a message")[2]
    shown = [
        re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", part, re.MULTILINE)[1:]
        for part in page.split("### ")
    ]
    tables = (framing.INCOMING, framing.OUTGOING, framing.ANSWER)
    assert shown[1:] == [
        [(state, event, after) for state, row in table.items() for event, after in row.items()]
        for table in tables
    ]


# What is longer is read twice. Pages that are made from the code, and the list of changes, are no prose.
SENTENCE_WORDS_MAX = 34
NO_PROSE = ("CHANGELOG.md", "docs/reference/")


def sentences(document: str) -> Iterator[str]:
    """The sentences of a page outside code, tables and headings; a link counts by its words, code as one."""
    text = re.sub(r"<!-- bench: (\w+) -->.*?<!-- /bench: \1 -->", "", document, flags=re.DOTALL)
    text = re.sub(r"```.*?```|<!--.*?-->|(?<=\n\n)(?: {4}[^\n]*\n)+", "", text, flags=re.DOTALL)
    text = re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "x", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    for paragraph in re.split(r"\n\s*\n(?:\s*(?:[-*]|\d+\.) )?|\n\s*(?:[-*]|\d+\.) ", text):
        yield from re.split(r"(?<=[.!?])(?:\*\*|[)\"])?\s+", paragraph)


def test_a_long_sentence_is_found() -> None:
    long = "word " * SENTENCE_WORDS_MAX
    page = f"# {long}\n\n| {long} |\n\nShort. Now {long}end.\n\n- {long}\n- [{long}](x)\n\n    {long}\n"
    found = [len(one.split()) for one in sentences(page) if one.strip()]
    assert found == [1, SENTENCE_WORDS_MAX + 2, SENTENCE_WORDS_MAX, SENTENCE_WORDS_MAX]


def test_sentences_are_short() -> None:
    offenders(
        f"{document}: {len(sentence.split())} words: {' '.join(sentence.split())[:100]} …"
        for document in named(".md")
        if not document.startswith(NO_PROSE)
        for sentence in sentences(texts()[document])
        if len(sentence.split()) > SENTENCE_WORDS_MAX
    )


LIMIT = re.compile(
    r"^\| [^|]+ \| ([\d,.]+(?:\^\d+)?(?: − 1)?)(?: (KiB|MiB|GiB|s|hours|days))? \|[^|]+\| "
    r"(?:`TOLLKEEPER_(\w+)`|(?:`([\w-]+)` in )?`(\w+)` of `([\w/]+)\.py`) \|$",
    re.MULTILINE,
)
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "s": 1, "hours": 3_600, "days": 86_400}


def test_limits_have_the_numbers_of_the_code() -> None:
    """Each row of `docs/limits.md` names a setting or a constant, and has its number."""
    page = texts()["docs/limits.md"]
    limits = LIMIT.findall(page)
    assert (
        len(limits)
        == len(re.findall(r"^\| (?!Limit\b).*`(?:TOLLKEEPER_\w+|[\w/]+\.py)` \|$", page, re.MULTILINE))
        > 100
    )
    offenders(
        f"{number} {unit}: {setting}{key}{name} is {value}"
        for number, unit, setting, key, name, module in limits
        if (value := _limit(setting.lower(), key, name, module)) != _number(number) * UNITS[unit]
    )


def _number(text: str) -> float:
    plain, _, less = text.replace(",", "").partition(" − ")
    base, _, power = plain.partition("^")
    return float(base) ** int(power or 1) - int(less or 0)


def _limit(setting: str, key: str, name: str, module: str) -> float:
    """The value of a setting, of a constant, or of a member of one."""
    if setting:
        return float(settings.Settings().named()[setting])
    place: Any = importlib.import_module(module.replace("/", "."))
    if name in HttpLimits.__dataclass_fields__ and module == "gateway/core/http_limits":
        return float(getattr(HttpLimits(), name))
    value = getattr(place, name)
    number = float((value[key] if isinstance(value, Mapping) else getattr(value, key)) if key else value)
    return number / 1_000 if name.endswith("_MS") else number


CHANGE_CHARACTERS_MAX = 160


def test_changes_have_a_line_each() -> None:
    """A released section stays as it was released."""
    unreleased = texts()["CHANGELOG.md"].partition("\n## [Unreleased]\n")[2].partition("\n## [")[0]
    assert "\n- " in unreleased
    offenders(
        f"CHANGELOG.md: {line[:60]} … (one line a change, {CHANGE_CHARACTERS_MAX} characters)"
        for line in unreleased.splitlines()
        if line and not (line.startswith(("### ", "- ")) and len(line) <= CHANGE_CHARACTERS_MAX)
    )


def test_microseconds_stand_on_one_page() -> None:
    """What was measured stands with its conditions in `docs/internals/figures.md`; other pages link it."""
    offenders(
        f"{document}: {figure}"
        for document in named(".md")
        if document not in ("docs/internals/figures.md", "CHANGELOG.md")
        for figure in re.findall(r"[\d.,]+ (?:µs|microseconds?)\b", texts()[document])
    )


def test_every_line_of_what_holds_names_a_test() -> None:
    text = texts()["SECURITY.md"]
    held = text.partition("## What holds against a caller\n")[2].partition("\n## ")[0]
    lines = re.split(r"^- ", held, flags=re.MULTILINE)[1:]
    assert len(lines) >= 8
    for line in lines:
        named_tests = [path for path in PATH.findall(line) if (ROOT / path).name.startswith("test_")]
        assert named_tests, line


def test_questions_are_answered_by_files() -> None:
    text = texts()["ARCHITECTURE.md"].partition("## Where is what\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| .+\? \| (.+) \|$", text, re.MULTILINE)
    assert len(table) >= 40
    assert all(PATH.search(answer) for answer in table)


def test_the_first_page_of_the_documentation_leads_to_every_other() -> None:
    docs = ROOT / "docs"
    places = (".", "howto", "clients", "operate")
    there = {page.relative_to(docs).as_posix() for place in places for page in (docs / place).glob("*.md")}
    assert there - {"index.md"} <= {page for page, _ in LINK.findall((docs / "index.md").read_text())}
