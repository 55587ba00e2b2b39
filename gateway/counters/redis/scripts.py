"""The Lua scripts as one library of Redis functions, one function for each verb.

Redis loads a library once; the text of a script would run on every call and define each of its functions
again (measured: 5 µs of a call). The functions' names end in the text's digest, so two versions of this
program can share a server. Each script lists the files it needs (`-- needs: state bucket`) and whether it
runs when memory is full (`-- allows: oom`). Only this module knows how they are put together.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

from gateway.core.layout import Layout
from gateway.counters.layouts import lua
from gateway.counters.layouts.packing import LAYOUTS

VERBS = (
    "reserve", "settle", "extend", "grant", "load", "peek", "lease", "throttle", "park", "run", "share", "note",
)  # fmt: skip
DIGEST_LENGTH = 12
_FOLDER = Path(__file__).resolve().parents[3] / "lua"
_NEEDS = re.compile(r"^-- needs: (.+)$", re.MULTILINE)
_ALLOWS = re.compile(r"^-- allows: (\w+)", re.MULTILINE)
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
_WORD = re.compile(r"[A-Za-z_]\w*")
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

    `begins` has the line of the text at which each file begins, in their order.
    """

    name: str
    text: str
    functions: dict[str, str]
    begins: tuple[tuple[int, str], ...]

    def located(self, message: str) -> str:
        """Return an error's message with files and their lines in place of lines of this library."""
        return _LINE.sub(lambda match: self._place(int(match[1])), message)

    def _place(self, line: int) -> str:
        begin, file = self.begins[max(0, bisect(self.begins, line, key=lambda begin: begin[0]) - 1)]
        return f"lua/{file}:{line - begin + 1}"


@cache
def library() -> Library:
    """Return the library of this version's scripts, cached."""
    return assemble(read)


def assemble(read: Callable[[str], str], layouts: Sequence[Layout] = LAYOUTS) -> Library:
    """Return the library of all scripts, for these layouts; `read` returns a file by its path below `lua/`.

    ValueError if two files declare the same name.
    """
    bodies = {verb: read(f"{verb}.lua") for verb in VERBS}
    shared: list[str] = []
    for body in bodies.values():
        needs = _NEEDS.search(body)
        shared += [name for name in (needs.group(1).split() if needs else []) if name not in shared]
    texts = [read(f"lib/{name}.lua") for name in shared]
    declared = Counter(name for text in texts for name in _names_of(text))
    if twice := [name for name, count in declared.items() if count > 1]:
        raise ValueError(f"two files of lua/lib declare {', '.join(twice)}")
    words = [set(_WORD.findall(_COMMENT.sub("", text))) for text in (*texts, _BIND, *bodies.values())]
    words.append(set(lua.EMITTED_NAMES))
    first = _BIND if any("function bind()" in text for text in texts) else ""
    parts = [
        (f"lib/{name}.lua", *_scoped(text, set().union(*words[:at], *words[at + 1 :])))
        for at, (name, text) in enumerate(zip(shared, texts, strict=True))
    ]
    parts += [
        (f"{verb}.lua", f"verbs['{verb}'] = function(KEYS, ARGV)\n{first}\n", f"{body}\nend\n")
        for verb, body in bodies.items()
    ]
    text, begins = "local verbs = {}\n", []
    for file, head, rest in parts:
        text += head
        begins.append((text.count("\n") + 2, file))  # the library's first line is not part of the text
        text += f"{rest}\n"
    text = _fold(text, layouts)
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()[:DIGEST_LENGTH]
    functions = {verb: f"tk_{verb}_{digest}" for verb in VERBS}
    registered = [_registration(verb, functions[verb], body) for verb, body in bodies.items()]
    name = f"tollkeeper_{digest}"
    return Library(name, "\n".join([f"#!lua name={name}", text, *registered]), functions, tuple(begins))


def _names_of(text: str) -> set[str]:
    """Return the names that a file declares at its top level, except constants, which are upper-case."""
    found = [match["names"] for match in _LOCAL.finditer(text) if not match["names"].isupper()]
    return {name for names in found for name in names.split(", ")}


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
    return (f"local {', '.join(shared)}\n" if shared else "") + "do\n", f"{inner}\nend"


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
