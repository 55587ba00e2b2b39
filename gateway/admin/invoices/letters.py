"""Letters that no font of this machine has: they would be boxes, so what has them does not become final."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import typst

# Runs of words that are kept with what is missing of them.
KNOWN_MAX = 4_096
# What the font that comes with the program has: Latin with its accents.
_USUAL = re.compile(r"[ -~\u00a0-\u017f]*")
_PAGE = b"""#set document(date: datetime(year: 2000, month: 1, day: 1))
#set text(font: "Libertinus Serif")
#sys.inputs.text"""
_MISSING = re.compile(r'the text `"(.+?)"` could not be displayed')
_ESCAPED = re.compile(r"\\u\{([0-9a-f]+)\}")


def lacking(text: str) -> str:
    """Those of a text, each once; empty where all can be set. Fonts are looked for once in a process."""
    unusual = [word for word in text.split() if _USUAL.fullmatch(word) is None]
    return _lacking(" ".join(unusual)) if unusual else ""


@lru_cache(KNOWN_MAX)
def _lacking(words: str) -> str:
    """As the archive's standard finds them: it refuses what no font shows."""
    inputs = {"text": words}
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
