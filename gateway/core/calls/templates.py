"""Templates of paths on the allow-list: what one may be written like, and what matches it.

Pure. Settings and the data plane read them by this one reader, so what was checked is what is served.
"""

from __future__ import annotations

import re

from gateway.core.calls.paths import ANY, CHARACTER, PARAMETER, refuse_never_sent

_LITERAL = re.compile(f"(?:{CHARACTER}|/)*")
REST = "rest_of_path"


def expression_of(template: str, segment: str) -> str:
    """A regular expression of a path template; ValueError says what would be one.

    `{name}` takes what `segment` matches, `{+name}` slashes too, `{name…}` at the end the rest, as `REST`.
    """
    parts: list[str] = []
    literals: list[str] = []
    names: set[str] = set()
    at = 0
    for match in PARAMETER.finditer(template):
        if literals and match.start() == at:
            raise ValueError("must have a character between two parameters")
        literals.append(template[at : match.start()])
        several, name, rest = match.groups()
        if name in names or name == REST:
            raise ValueError(f"must name each parameter once and none {REST}: {{{name}}}")
        if rest and (several or match.end() != len(template)):
            raise ValueError(f"must have the rest, {{{name}…}}, at its end and without a +")
        names.add(name)
        taken = f"{segment}(?:/{segment})*" if several else segment
        parts += re.escape(literals[-1]), f"(?P<{REST}>.*)" if rest else f"(?P<{name}>{taken})"
        at = match.end()
    literals.append(template[at:])
    _check_literals(literals)
    return "".join((*parts, re.escape(literals[-1])))


def _check_literals(literals: list[str]) -> None:
    """ValueError where what stands between parameters could be in no request's path."""
    for literal in literals:
        if "{" in literal or "}" in literal:
            raise ValueError("must name parameters by letters and _: {name}, {+name} or a last {name…}")
        if _LITERAL.fullmatch(literal) is None:
            raise ValueError("must be a path without query or ;, other characters are written as %XX")
    if ANY in "x".join(literals).split("/"):
        raise ValueError("must not have * as a segment, which stands for itself: write {name} or {path…}")
    refuse_never_sent("x".join(literals))
