"""Read a request body once, or refuse it: no two parsers may disagree about what is controlled.

msgspec decodes only the controlled fields, so a large body builds no objects. msgspec keeps
the last of two equal names, other parsers the first, and some match names without case; a
byte scan proves the usual body free of that, and only a suspicious one is walked in Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

import msgspec

from gateway.errors import InvalidRequest

T = TypeVar("T")

TOKENS_MAX = 250_000  # strings and brackets walked in a suspicious body
PARAM_BYTES_MAX = 64

# A letter or an underscore written as an escape, or one of the two letters outside ASCII whose
# lower case is inside it (U+017F, U+212A): how a controlled name may hide from a byte scan.
_HIDDEN = re.compile(rb"\\u(?:00(?:[46][1-9a-fA-F]|[57][0-9aA]|5[fF])|017[fF]|212[aA])")
_FOLDING = (b"\xc5\xbf", b"\xe2\x84\xaa")
_TOKEN = re.compile(rb'("(?:[^"\\]++|\\.)*+")([ \t\r\n]*+:)?|[{}\[\]]', re.DOTALL)
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_BYTE = re.compile(r"\(byte (\d+)\)$")
_LAST_NAME = re.compile(rb'"([^"\\]{1,64})"[ \t\r\n]*:[ \t\r\n]*[-+0-9.eE]*$')


class StrictReader(Generic[T]):
    """Decode the controlled fields of one kind of body into `shape`.

    `names` are the controlled names at the top level, `nested` those inside a controlled object.
    """

    def __init__(
        self, shape: type[T], names: tuple[str, ...], nested: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._names = names
        self._nested = nested or {}
        self._decode = msgspec.json.Decoder(shape).decode
        every = {*names, *(name for inner in self._nested.values() for name in inner)}
        self._exact = frozenset(name.encode() for name in every)
        pattern = "|".join(sorted(every, key=len, reverse=True))
        first = "".join(sorted({name[0] for name in every} | {name[0].upper() for name in every}))
        # The look-ahead spares most strings the alternatives: a third of the time of the scan.
        self._find = re.compile(f'"(?=[{first}])((?i:{pattern}))"[ \\t\\r\\n]*+:'.encode()).findall

    def read(self, body: bytes) -> T:
        """Decode `body`; `InvalidRequest` names the field that is wrong or ambiguous."""
        try:
            read = self._decode(body)
            if not body.isascii():
                self._check_text(body)
        except msgspec.MsgspecError as error:
            raise _refusal(body, str(error)) from error
        except UnicodeDecodeError as error:
            raise InvalidRequest("The body is not valid UTF-8.") from error
        except RecursionError as error:
            raise InvalidRequest("The body is nested too deeply.") from error
        found = self._find(body)
        once = set(found)
        if len(once) != len(found) or not once <= self._exact or (b"\\" in body and _HIDDEN.search(body)):
            self._walk(body, 0, self._names, "")
        return read

    def _check_text(self, body: bytes) -> None:
        str(body, "utf-8")
        if _FOLDING[0] in body or _FOLDING[1] in body:
            self._walk(body, 0, self._names, "")

    def _walk(self, body: bytes, start: int, names: tuple[str, ...], path: str) -> None:
        """Refuse a controlled name that comes twice or in another case."""
        folded = {name.casefold(): name for name in names}
        seen: set[str] = set()
        for raw, at in members(body, start):
            key = json.loads(raw)
            name = folded.get(key.casefold())
            if name is None:
                continue
            param = path + name
            if key != name:
                raise InvalidRequest(f"The field {path}{key} must be written {param}.", param=param)
            if name in seen:
                raise InvalidRequest(f"The field {param} is there twice.", param=param)
            seen.add(name)
            inner = self._nested.get(name)
            if inner is not None and body[at : at + 1] == b"{":
                self._walk(body, at, inner, f"{param}.")


def members(body: bytes, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each member of the object at `start`: its name as written, and where its value begins.

    `body` is valid JSON. `InvalidRequest` past `TOKENS_MAX` strings and brackets.
    """
    depth = 0
    for count, match in enumerate(_TOKEN.finditer(body, start)):
        if count > TOKENS_MAX:
            raise InvalidRequest("The body has too many parts to be read unambiguously.")
        raw, colon = match.groups()
        if raw is None:
            depth += 1 if match[0] in b"{[" else -1
            if depth == 0:
                return
        elif depth == 1 and colon is not None:
            yield raw, _skip_space(body, match.end())


def _skip_space(body: bytes, at: int) -> int:
    while body[at] in b" \t\r\n":
        at += 1
    return at


def _refusal(body: bytes, message: str) -> InvalidRequest:
    """Name the field a decoding error is about, as far as it can be known."""
    if not body.strip():
        return InvalidRequest("The body is empty, and a JSON object is needed.")
    at = _AT.search(message)
    if at is not None:
        param = at[1] or None
        return InvalidRequest(f"{message[: at.start()]} in {param or 'the body'}.", param=param)
    byte = _BYTE.search(message)
    param = None
    if byte is not None:
        end = int(byte[1])
        last = _LAST_NAME.search(body, max(0, end - 2 * PARAM_BYTES_MAX), end)
        param = last[1].decode("utf-8", "replace") if last else None
    return InvalidRequest(f"{message}.", param=param)
