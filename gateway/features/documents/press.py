"""Typst, which sets pages: within this process, or in one of its own where there are many lines.

Its library keeps what it has laid out: some 70 KB a line, for as long as its process lives. Run as a program,
this reads a job as JSON and writes a PDF.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typst

from gateway.errors import Conflict, Overloaded

TEMPLATE = Path(__file__).with_name("invoice.typ")
# PDF/A-3: what may carry files.
ARCHIVED: Literal["a-3b"] = "a-3b"
# Beyond so many lines a process of its own sets them; beyond the second number nobody does.
LINES_HERE_MAX, LINES_MAX = 1_000, 12_000
APART_S_MAX = 120.0


def set_pages(content: dict[str, Any], logo: Path | None, lines: int) -> bytes:
    """Set what the template takes, of so many lines: the bytes of a PDF."""
    if lines > LINES_MAX:
        raise Conflict(f"It has {lines} lines; a PDF has {LINES_MAX} at most. Its XML and its CSV have all.")
    return _pages(content, logo) if lines <= LINES_HERE_MAX else _pages_apart(content, logo)


def archive(content: dict[str, Any], logo: Path | None, lines: int) -> bytes | None:
    """Set it as a PDF/A-3; None of too many lines, and where a character has no glyph in any font."""
    if lines > LINES_HERE_MAX:
        return None
    try:
        return _pages(content, logo, archived=True)
    except typst.TypstError:
        return None


def _pages(content: dict[str, Any], logo: Path | None, *, archived: bool = False) -> bytes:
    with tempfile.TemporaryDirectory(prefix="invoice-") as folder:
        root = Path(folder)
        image = ""
        if logo is not None:
            image = f"logo{logo.suffix.lower()}"
            (root / image).write_bytes(logo.read_bytes())
        main = root / "invoice.typ"
        main.write_bytes(TEMPLATE.read_bytes())
        inputs = {"invoice": json.dumps({**content, "logo": image}, ensure_ascii=False)}
        return typst.compile(
            str(main), root=folder, format="pdf", sys_inputs=inputs,
            pdf_standards=ARCHIVED if archived else None,
        )  # fmt: skip


def _pages_apart(content: dict[str, Any], logo: Path | None) -> bytes:
    """Set them in a process that gives its memory back."""
    job = json.dumps({"content": content, "logo": None if logo is None else str(logo)})
    here = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            here, input=job.encode(), capture_output=True, check=True, timeout=APART_S_MAX
        )
    except subprocess.SubprocessError as error:
        raise Overloaded("Its many lines could not be set now: try again in a while.") from error
    return done.stdout


# Letters that no font of this machine shows: they would be boxes, so a document with them does not become
# final.

_PAGE = b"""#set document(date: datetime(year: 2000, month: 1, day: 1))
#set text(font: "Libertinus Serif")
#sys.inputs.text"""
_MISSING = re.compile(r'the text `"(.+?)"` could not be displayed')
_ESCAPED = re.compile(r"\\u\{([0-9a-f]+)\}")


def missing_glyphs(text: str) -> str:
    """Return those of a text that cannot be set, each once, as the archive's standard finds them.

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


def main() -> None:
    job = json.load(sys.stdin.buffer)
    logo = job["logo"]
    sys.stdout.buffer.write(_pages(job["content"], None if logo is None else Path(logo)))


if __name__ == "__main__":
    main()
