"""Letters that no font of this machine shows: they would be boxes, so what has them does not become final."""

from __future__ import annotations

import re
from functools import cache

import typst

_PAGE = b"""#set document(date: datetime(year: 2000, month: 1, day: 1))
#set text(font: "Libertinus Serif")
#sys.inputs.text"""
_MISSING = re.compile(r'the text `"(.+?)"` could not be displayed')
_ESCAPED = re.compile(r"\\u\{([0-9a-f]+)\}")


def missing_glyphs(text: str) -> str:
    """Those of a text that cannot be set, each once, as the archive's standard finds them.

    Sets a page, which takes a while: never to be called where something else waits. Fonts are looked for once
    in a process.
    """
    inputs = {"text": text}
    try:
        typst.compile(_PAGE, format="pdf", sys_inputs=inputs, pdf_standards="a-3b", font_paths=_fonts())
    except typst.TypstError as error:
        found = _MISSING.findall(error.diagnostic)
        return "".join(dict.fromkeys("".join(_ESCAPED.sub(_unescaped, each) for each in found)))
    return ""


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts()


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16))
