"""The Lua scripts as Redis gets them: one text a verb, its libraries in front, its SHA-1.

Each script names what it needs (`-- needs: state bucket`) and what it may do when memory is
full (`-- allows: oom`); nothing else in the project knows how a script is put together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

VERBS = ("reserve", "settle", "extend", "grant", "load", "peek")
_NEEDS = re.compile(r"^-- needs: (.+)$", re.MULTILINE)
_ALLOWS = re.compile(r"^-- allows: (\w+)", re.MULTILINE)
_NAME = r"[A-Z][A-Z0-9_]*"
_LITERAL = r"(?:[\d.]+|'[^',]*')"
_CONSTANTS = re.compile(
    rf"^local (?P<names>{_NAME}(?:, {_NAME})*) = (?P<values>{_LITERAL}(?:, {_LITERAL})*)$", re.MULTILINE
)
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_WORD = re.compile(r"\b[A-Z][A-Z0-9_]+\b|\b[A-Z]\b")
_FUNCTION = re.compile(r"^local function (?P<name>\w+)\((?:[^\n]*\bend|.*?^end)$", re.MULTILINE | re.DOTALL)
_FLAGS = {"oom": " flags=allow-oom", "nothing": " flags=no-writes"}


@dataclass(frozen=True, slots=True)
class Script:
    """One verb: its whole text and the SHA-1 EVALSHA takes."""

    verb: str
    text: str
    sha: str


@cache
def script(verb: str) -> Script:
    """The script of a verb; `FileNotFoundError` for a verb that has none."""
    return assemble(verb, _read)


def assemble(verb: str, read: Callable[[str], str]) -> Script:
    """The script of a verb from the files `read` finds by their place below `lua/`."""
    body = read(f"{verb}.lua")
    needs = _NEEDS.search(body)
    libraries = needs.group(1).split() if needs else []
    allows = _ALLOWS.search(body)
    head = "#!lua" + (_FLAGS[allows.group(1)] if allows else "")
    parts = [*(read(f"lib/{name}.lua") for name in libraries), body]
    text = head + "\n" + _prune(_fold("\n".join(parts)))
    return Script(verb, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _fold(text: str) -> str:
    """Put constants in place of their names.

    Lua has no constants: locals of the prelude are set again on every call, and each closure
    captures them (measured: a fifth of a call). A constant is a top-level `local NAME, … =`
    of upper-case names and literals.
    """
    values: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        names = [name.strip() for name in match["names"].split(",")]
        literals = [literal.strip() for literal in match["values"].split(",")]
        if len(names) != len(literals):
            raise ValueError(f"constants and values differ in number: {match[0]}")
        values.update(zip(names, literals, strict=True))
        return ""

    text = _COMMENT.sub("", _CONSTANTS.sub(take, text))
    return _WORD.sub(lambda match: values.get(match[0], match[0]), text)


def _prune(text: str) -> str:
    """Leave out library functions nobody calls: Lua makes a closure of each on every call."""
    while True:
        idle = [one for one in _FUNCTION.finditer(text) if len(re.findall(rf"\b{one['name']}\b", text)) == 1]
        if not idle:
            return text
        for one in idle:
            text = text.replace(one[0], "", 1)


def _read(name: str) -> str:
    place = files("lua")
    for part in name.split("/"):
        place = place.joinpath(part)
    return place.read_text(encoding="utf-8")


def as_eval(command: bytes) -> bytes:
    """An EVALSHA on the wire as an EVAL of its text, for a server that lost its script cache."""
    for verb in VERBS:
        known = script(verb)
        sha = known.sha.encode()
        if sha in command[:80]:
            text = known.text.encode()
            head = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % sha
            return command.replace(head, b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(text), text), 1)
    raise AssertionError("NOSCRIPT for a command that is none of ours")
