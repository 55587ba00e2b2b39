"""The Lua scripts as one library of Redis functions, one function for each verb.

Redis loads a library once; the text of a script would run on every call and define each of its functions
again (measured: 5 µs of a call). The functions' names end in the text's digest, so two versions of this
program can share a server. Only this module knows how the files below `lua/` are put together:

- `lua/<verb>.lua` opens with its specification, and says whether it runs when memory is full (`-- allows:
  oom`). Its code is the function's body; behind `-- functions:` stand the functions that it alone is made of.
- `lua/lib/<name>.lua` has what several of them use.
- `-- needs: state bucket` names the files whose names a file uses, `-- sets: event_count` the variables of
  these that it assigns.
- A function may be made of steps. `--> authorize` in it stands for the text between `do` and `end` behind
  `-- step authorize of reserve_one: …`. `-- reads:` lists the variables of the function that the step uses or
  changes, `-- sets:` those that it leaves for later steps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

from gateway.core.layout import Layout
from gateway.counters.layouts import lua
from gateway.counters.layouts.packing import LAYOUTS

VERBS = (
    "reserve", "settle", "extend", "grant", "load", "peek", "lease", "throttle", "park", "run", "share", "note",
    "grow",
)  # fmt: skip
DIGEST_LENGTH = 12
_FOLDER = Path(__file__).resolve().parents[3] / "lua"
_ALLOWS = re.compile(r"^-- allows: (\w+)", re.MULTILINE)
_FUNCTIONS = "-- functions:"
_FUNCTION = re.compile(r"^local function (?P<name>\w+)\((?P<parameters>[\w, ]*)\)")
_STEP = re.compile(r"^-- step (?P<name>\w+) of (?P<function>\w+): ")
_PASTE = re.compile(r"^ *--> (?P<name>\w+)")
_NAME = r"[A-Z][A-Z0-9_]*"
_LITERAL = r"(?:[\d.]+|'[^',]*')"
_CONSTANTS = re.compile(
    rf"^local (?P<names>{_NAME}(?:, {_NAME})*) = (?P<values>{_LITERAL}(?:, {_LITERAL})*)$", re.MULTILINE
)
# `has(flags, FLAG)` of a simple expression and a constant flag, which is written out: that takes a third of
# the time of a call.
_HAS = re.compile(r"\bhas\((?P<place>[\w.]+(?:\[\d+\])?), (?P<flag>\d+)\)")
_COMMENT = re.compile(r"^[ \t]*--.*$", re.MULTILINE)
# A place in the library, as errors of Lua and Redis name it.
_LINE = re.compile(r"@?\buser_function:(\d+)")
_LOCAL = re.compile(
    r"^local (?P<function>(?:function )?)(?P<names>\w+(?:, \w+)*)(?P<value>(?: =)?)", re.MULTILINE
)
# Names that a step declares for itself: of locals, of loops, of functions' parameters; those of the first
# kind, where they are not within a block, it can leave for later steps.
_DECLARED = re.compile(r"\b(?:local(?: function)?|for) (\w+(?:, \w+)*)|\bfunction ?\w*\((\w+(?:, \w+)*)\)")
_LEAVES = re.compile(r"^  local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
# Assigned names: those before a `=`, some of them with an index.
_TARGET = r"\w+(?:\[[^=\n\]]*\])?"
_ASSIGNED = re.compile(rf"(?:^|\bthen\b|\belse\b|\bdo\b)[ \t]*({_TARGET}(?:, {_TARGET})*) = ", re.MULTILINE)
# Lua's tokens: comments, strings, fields of a table and numbers are left unchanged; the rest is names.
_TOKEN = re.compile(
    r"--\[(=*)\[.*?\]\1\]|--[^\n]*|\[(=*)\[.*?\]\2\]"
    r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
    r"|(?<!\.)\.(?!\.)\s*[A-Za-z_]\w*|\d[\w.]*|(?P<name>[A-Za-z_]\w*)(?P<key>\s*=(?!=))?",
    re.DOTALL,
)
# Values that exist only once the library is loaded; see `lua/lib/state.lua`.
_BIND = "if not call then bind() end"
_FLAGS = {"oom": "'allow-oom'", "nothing": "'no-writes'"}


@dataclass(frozen=True, slots=True)
class Library:
    """All verbs as one library: its name, its text, and the function name of each verb.

    `places` has the file, line and step of each line of the text; empty for a line that no file has.
    """

    name: str
    text: str
    functions: dict[str, str]
    places: tuple[str, ...]

    def located(self, message: str) -> str:
        """Return an error's message with places in files instead of lines of this library."""
        return _LINE.sub(lambda match: self._place(int(match[1])) or match[0], message)

    def _place(self, line: int) -> str:
        return self.places[line - 1] if 0 < line <= len(self.places) else ""


class _ScriptLine(NamedTuple):
    """A line of a file: its text, its number there (0: none), and the step that it is a part of."""

    text: str
    number: int
    step: str = ""


@dataclass(frozen=True)  # without slots, so that it keeps what is found in its text
class _ScriptPart:
    """A file as the library has it: steps where functions have them, and the script of a verb behind its functions."""

    file: str
    lines: tuple[_ScriptLine, ...]
    needs: frozenset[str]
    sets: frozenset[str]

    @cached_property
    def name(self) -> str:
        return Path(self.file).stem

    @cached_property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    @cached_property
    def names(self) -> set[str]:
        return _names(self.text)

    @cached_property
    def declared(self) -> set[str]:
        """Return the names that the part declares at its top level, except constants, which are upper-case."""
        lists = [match["names"] for match in _LOCAL.finditer(self.text) if not match["names"].isupper()]
        return {name for names in lists for name in names.split(", ")}

    def assigned(self) -> set[str]:
        """Return the names that the part assigns, or tables whose fields it assigns by an index."""
        return {
            name for names in _ASSIGNED.findall(self.text) for name in re.findall(r"(?:^|, )(\w+)", names)
        }


@cache
def library() -> Library:
    """Return the library of this version's scripts, cached."""
    return assemble(read)


def assemble(read: Callable[[str], str], layouts: Sequence[Layout] = LAYOUTS) -> Library:
    """Return the library of all scripts, for these layouts; `read` returns a file by its path below `lua/`.

    ValueError if two files declare the same name, or a head lists something else than its file or step has.
    """
    texts = {verb: read(f"{verb}.lua") for verb in VERBS}
    files = dict[str, _ScriptPart]()
    for text in texts.values():
        for name in _listed(text, "needs"):
            _bring(name, files, read, ())
    parts = [*files.values(), *(_script(verb, text) for verb, text in texts.items())]
    _check_names(parts)
    used = [part.names for part in parts]
    used.append({*lua.EMITTED_NAMES, *_names(_BIND)})
    text, places = "local verbs = {}\n", ["", ""]
    for at, part in enumerate(parts):
        before, inner = _scoped(part.text, set().union(*used[:at], *used[at + 1 :]))
        text += before + inner
        places += [""] * before.count("\n")
        places += [_place(part.file, line) for line in part.lines] + [""]
    text = _fold(text, layouts)
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()[:DIGEST_LENGTH]
    functions = {verb: f"tk_{verb}_{digest}" for verb in VERBS}
    registered = [_registration(verb, functions[verb], texts[verb]) for verb in VERBS]
    name = f"tollkeeper_{digest}"
    return Library(name, "\n".join([f"#!lua name={name}", text, *registered]), functions, tuple(places))


def _listed(head: str, what: str) -> list[str]:
    """Return the names that a head lists as its `needs`, `reads` or `sets`."""
    lists = re.findall(rf"^-- {what}: (.+)$", head, re.MULTILINE)
    return [name for names in lists for name in names.split()]


def _place(file: str, line: _ScriptLine) -> str:
    step = f", step {line.step}" if line.step else ""
    return f"lua/{file}:{line.number}{step}" if line.number else ""


def _bring(
    name: str, files: dict[str, _ScriptPart], read: Callable[[str], str], before: tuple[str, ...]
) -> None:
    """Add a file of `lua/lib` behind all that it needs; ValueError for a circle."""
    if name in before:
        raise ValueError(f"files of lua/lib need each other: {' '.join((*before, name))}")
    if name not in files:
        text = read(f"lib/{name}.lua")
        for needed in _listed(text, "needs"):
            _bring(needed, files, read, (*before, name))
        files[name] = _part(f"lib/{name}.lua", text, _numbered(text))


def _script(verb: str, text: str) -> _ScriptPart:
    """Return a verb's file as a part: its functions, then the script as a function of its own.

    Locals of the script stand one space behind those of the part, which others may use.
    """
    lines = _numbered(text)
    end = next((at for at, line in enumerate(lines) if line.text.startswith(_FUNCTIONS)), len(lines))
    body = [
        line
        if not line.text.startswith("local ") or _CONSTANTS.match(line.text)
        else line._replace(text=f" {line.text}")
        for line in lines[:end]
    ]
    begin = _ScriptLine(f"verbs['{verb}'] = function(KEYS, ARGV) {_BIND}", 0)
    return _part(f"{verb}.lua", text, [*lines[end:], begin, *body, _ScriptLine("end", 0)])


def _numbered(text: str) -> list[_ScriptLine]:
    return [_ScriptLine(line, number) for number, line in enumerate(text.split("\n"), 1)]


def _part(file: str, text: str, lines: list[_ScriptLine]) -> _ScriptPart:
    """Return a part of these lines; `text` is the whole file, which begins with its head."""
    head = re.match(r"(?:--.*\n)*", text)
    assert head is not None
    needs, sets = _listed(text, "needs"), _listed(head[0], "sets")
    return _ScriptPart(file, tuple(_pasted(file, lines)), frozenset(needs), frozenset(sets))


def _pasted(file: str, lines: list[_ScriptLine]) -> Iterator[_ScriptLine]:
    """Yield lines with each step where its function has it; ValueError for one that is missing or not used."""
    steps, rest, at = dict[tuple[str, str], list[_ScriptLine]](), list[_ScriptLine](), 0
    texts = [line.text for line in lines]
    while at < len(lines):
        if match := _STEP.match(texts[at]):
            end = texts.index("end", at)
            steps[match["function"], match["name"]] = [
                line._replace(step=match["name"]) for line in lines[at:end]
            ]
            at = end
        else:
            rest.append(lines[at])
        at += 1
    function, variables = "", _Variables(())
    for line in rest:
        if match := _FUNCTION.match(line.text):
            function, variables = match["name"], _Variables(match["parameters"].split(", "))
        if match := _PASTE.match(line.text):
            if (function, match["name"]) not in steps:
                raise ValueError(f"{file} has no step {match['name']} of {function}")
            step = steps.pop((function, match["name"]))
            begin = [line.text for line in step].index("do")
            if why := variables.differ(
                *("\n".join(line.text for line in part) for part in (step[:begin], step[begin + 1 :]))
            ):
                raise ValueError(f"{file}, step {match['name']} of {function} {why}")
            yield from step[begin + 1 :]
        else:
            yield line
    if steps:
        raise ValueError(f"{file} has a step that no function has: {', '.join(name for _, name in steps)}")


def _names(text: str) -> set[str]:
    """Return the names in a text, without the keys of tables."""
    names, depth, behind = set[str](), 0, 0
    for token in _TOKEN.finditer(text):
        between = text[behind : token.start()]
        depth, behind = depth + between.count("{") - between.count("}"), token.end()
        if token["name"] and not (depth and token["key"]):
            names.add(token["name"])
    return names


class _Variables:
    """The variables of a function from step to step, as the steps' heads list them."""

    def __init__(self, parameters: Sequence[str]) -> None:
        self._known, self._hidden = set(parameters), set[str]()

    def differ(self, head: str, body: str) -> str:
        """Return how a step differs from what its head lists; empty if it does not."""
        used, reads, sets = _names(body), set(_listed(head, "reads")), set(_listed(head, "sets"))
        declared = {
            name for names in _DECLARED.findall(body) for name in ", ".join(names).split(", ") if name
        }
        left = {name for names in _LEAVES.findall(body) for name in names.split(", ")}
        known, hidden = self._known, self._hidden
        self._known, self._hidden = known | sets, (hidden | left) - known - sets
        if again := declared & known:
            return f"declares again: {' '.join(sorted(again))}"
        if strange := (used & hidden) - declared:
            return f"uses what no step sets: {' '.join(sorted(strange))}"
        if reads != used & known:
            return f"reads: {' '.join(sorted(used & known))}"
        return "" if sets <= left else f"does not set: {' '.join(sorted(sets - left))}"


def _check_names(parts: Sequence[_ScriptPart]) -> None:
    """Raise ValueError for a name that two parts declare, or if one uses or assigns others' that its head does not list."""
    declared = Counter(name for part in parts for name in part.declared)
    if twice := [name for name, count in declared.items() if count > 1]:
        raise ValueError(f"two files of lua/lib declare {', '.join(twice)}")
    home = {name: part.name for part in parts for name in part.declared}
    for part in parts:
        others = {name for name in part.names if home.get(name, part.name) != part.name}
        if (needs := {home[name] for name in others}) != part.needs:
            raise ValueError(f"{part.file} needs: {' '.join(sorted(needs))}")
        if (sets := part.assigned() & others) != part.sets:
            raise ValueError(f"{part.file} sets: {' '.join(sorted(sets))}")


def _scoped(text: str, used: set[str]) -> tuple[str, str]:
    """Return a file's text whose top-level names are local to it, except those used elsewhere.

    The part before the file's first line comes first. Lua allows 200 local names in one scope.
    """
    shared: list[str] = []

    def share(match: re.Match[str]) -> str:
        names = match["names"].split(", ")
        if match["names"].isupper() or used.isdisjoint(names):
            return match[0]
        shared.extend(names)
        said = match["function"] or match["value"]
        return match["function"] + match["names"] + match["value"] if said else ""

    inner = _LOCAL.sub(share, text)
    return (f"local {', '.join(shared)}\n" if shared else "") + "do\n", f"{inner}\nend\n"


def _registration(verb: str, function: str, body: str) -> str:
    allows = _ALLOWS.search(body)
    flags = _FLAGS[allows.group(1)] if allows else ""
    named = f"function_name='{function}', callback=verbs['{verb}']"
    return f"redis.register_function{{{named}, flags={{{flags}}}}}"


def _fold(text: str, layouts: Sequence[Layout] = LAYOUTS) -> str:
    """Replace constants by their values, and calls of `has` by arithmetic.

    Lua has no constants: a local at the top level is looked up by every function that uses it, and a function
    may use only sixty. A constant is a top-level `local NAME, … =` with upper-case names and literals. No
    line is added or removed. ValueError for a name with two values.
    """
    values = lua.constants(layouts)

    def take(match: re.Match[str]) -> str:
        names = [name.strip() for name in match["names"].split(",")]
        literals = [literal.strip() for literal in match["values"].split(",")]
        if len(names) != len(literals):
            raise ValueError(f"constants and values differ in number: {match[0]}")
        for name, literal in zip(names, literals, strict=True):
            if values.setdefault(name, literal) != literal:
                raise ValueError(f"the constant {name} has two values")
        return ""

    text = lua.expanded(_COMMENT.sub("", _CONSTANTS.sub(take, text)), layouts)
    text = _TOKEN.sub(lambda token: token[0] if token["key"] else values.get(token["name"], token[0]), text)
    return _HAS.sub(lambda match: f"({match['place']} % {2 * int(match['flag'])} >= {match['flag']})", text)


def read(name: str) -> str:
    """Return the text of one file below `lua/`."""
    return (_FOLDER / name).read_text(encoding="utf-8")
