"""The Lua scripts as Redis gets them: one text a verb, its libraries in front, its SHA-1.

Each script names what it needs (`-- needs: state bucket`) and what it may do when memory is
full (`-- allows: oom`); nothing else in the project knows how a script is put together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

VERBS = ("reserve", "settle", "extend", "grant", "load", "peek")
_NEEDS = re.compile(r"^-- needs: (.+)$", re.MULTILINE)
_ALLOWS = re.compile(r"^-- allows: (\w+)", re.MULTILINE)
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
    body = _read(f"{verb}.lua")
    needs = _NEEDS.search(body)
    libraries = needs.group(1).split() if needs else []
    allows = _ALLOWS.search(body)
    head = "#!lua" + (_FLAGS[allows.group(1)] if allows else "")
    text = "\n".join([head, *(_read(f"lib/{name}.lua") for name in libraries), body])
    return Script(verb, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(name: str) -> str:
    place = files("lua")
    for part in name.split("/"):
        place = place.joinpath(part)
    return place.read_text(encoding="utf-8")
