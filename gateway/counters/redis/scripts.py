"""The Lua scripts as Redis gets them: one library of functions, one function a verb.

A library is made once and kept by Redis; the text of a script would run again on every call and
make each of its functions again (measured: 5 µs of a call). Names end in the text's digest, so two versions
of this program share a server. Each script names what it needs (`-- needs: state bucket`) and
what it may do when memory is full (`-- allows: oom`); nothing else knows how they are put together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

from gateway.core.layout import Layout
from gateway.counters.layouts import lua
from gateway.counters.layouts.packing import LAYOUTS

VERBS = ("reserve", "settle", "extend", "grant", "load", "peek", "lease", "throttle", "park", "run", "share")
DIGEST_LENGTH = 12
_FOLDER = Path(__file__).resolve().parents[3] / "lua"
_NEEDS = re.compile(r"^-- needs: (.+)$", re.MULTILINE)
_ALLOWS = re.compile(r"^-- allows: (\w+)", re.MULTILINE)
_NAME = r"[A-Z][A-Z0-9_]*"
_LITERAL = r"(?:[\d.]+|'[^',]*')"
_CONSTANTS = re.compile(
    rf"^local (?P<names>{_NAME}(?:, {_NAME})*) = (?P<values>{_LITERAL}(?:, {_LITERAL})*)$", re.MULTILINE
)
# `has(flags, FLAG)` of a plain place, its constant put in: written out it takes a third of the time of a
# call.
_HAS = re.compile(r"\bhas\((?P<place>[\w.]+(?:\[\d+\])?), (?P<flag>\d+)\)")
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_LOCAL = re.compile(
    r"^local (?P<function>(?:function )?)(?P<names>\w+(?:, \w+)*)(?P<value>(?: =)?)", re.MULTILINE
)
_WORD = re.compile(r"[A-Za-z_]\w*")
# What Lua reads as one: comments, texts, fields of a table and numbers stay as they are; the rest is names.
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
    """Every verb as one library: its name, its whole text, and the function of each verb."""

    name: str
    text: str
    functions: dict[str, str]


@cache
def library() -> Library:
    """Return the scripts of this tree."""
    return assemble(read)


def assemble(read: Callable[[str], str], layouts: Sequence[Layout] = LAYOUTS) -> Library:
    """The library of the files `read` finds by their place below `lua/`, for states as `layouts` has them."""
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
    texts = [_scoped(text, set().union(*words[:at], *words[at + 1 :])) for at, text in enumerate(texts)]
    texts.append("local verbs = {}")
    first = _BIND if any("function bind()" in text for text in texts) else ""
    texts += [
        f"verbs['{verb}'] = function(KEYS, ARGV)\n{first}\n{body}\nend\n" for verb, body in bodies.items()
    ]
    text = _fold("\n".join(texts), layouts)
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()[:DIGEST_LENGTH]
    functions = {verb: f"tk_{verb}_{digest}" for verb in VERBS}
    registered = [_registration(verb, functions[verb], body) for verb, body in bodies.items()]
    name = f"tollkeeper_{digest}"
    return Library(name, "\n".join([f"#!lua name={name}", text, *registered]), functions)


def _names_of(text: str) -> set[str]:
    """Return the names that a text declares for all of it; what is in capitals is a constant, or its own."""
    found = [match["names"] for match in _LOCAL.finditer(text) if not match["names"].isupper()]
    return {name for names in found for name in names.split(", ")}


def _scoped(text: str, used: set[str]) -> str:
    """Return a text whose names are its own, but for those that others use: Lua takes 200 in one place."""
    shared: list[str] = []

    def share(match: re.Match[str]) -> str:
        names = match["names"].split(", ")
        if match["names"].isupper() or used.isdisjoint(names):
            return match[0]
        shared.extend(names)
        said = match["function"] or match["value"]
        return match["function"] + match["names"] + match["value"] if said else ""

    inner = _LOCAL.sub(share, text)
    return (f"local {', '.join(shared)}\n" if shared else "") + f"do\n{inner}\nend"


def _registration(verb: str, function: str, body: str) -> str:
    allows = _ALLOWS.search(body)
    flags = _FLAGS[allows.group(1)] if allows else ""
    named = f"function_name='{function}', callback=verbs['{verb}']"
    return f"redis.register_function{{{named}, flags={{{flags}}}}}"


def _fold(text: str, layouts: Sequence[Layout] = LAYOUTS) -> str:
    """Put constants in place of their names, and what `has` asks in place of its calls.

    Lua has no constants: a local of the shared part is looked up by every function that uses it,
    and a function may use sixty. A constant is a top-level `local NAME, … =` of upper-case names
    and literals; ValueError where a name has two values.
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
