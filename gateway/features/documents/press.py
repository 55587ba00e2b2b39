"""Typst, which typesets pages: in this process, or in another one for many lines.

Its library keeps some 70 KB a line in memory for the lifetime of its process. Run as a program, this module
reads a job as JSON and writes a PDF.
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
# PDF/A-3, which may contain files.
ARCHIVED: Literal["a-3b"] = "a-3b"
# Above the first number of lines another process typesets them, above the second none does.
LINES_HERE_MAX, LINES_MAX = 1_000, 12_000
APART_S_MAX = 120.0


def set_pages(content: dict[str, Any], logo: Path | None, lines: int) -> bytes:
    """Return the PDF of an invoice with this number of `lines`; raise `Conflict` if there are too many.

    `content` are the values of the template.
    """
    if lines > LINES_MAX:
        raise Conflict(f"It has {lines} lines; a PDF has {LINES_MAX} at most. Its XML and its CSV have all.")
    return _pages(content, logo) if lines <= LINES_HERE_MAX else _pages_apart(content, logo)


def archive(content: dict[str, Any], logo: Path | None, lines: int) -> bytes | None:
    """Return the PDF of an invoice as PDF/A-3, a format for archives.

    None if it has too many lines, or a character that no font has. `content` are the values of the template.
    """
    if lines > LINES_HERE_MAX:
        return None
    try:
        return _pages(content, logo, archived=True)
    except typst.TypstError:
        return None


def _pages(content: dict[str, Any], logo: Path | None, *, archived: bool = False) -> bytes:
    """Return the PDF of an invoice, as PDF/A if `archived`."""
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
    """Return the PDF from another process, so that its memory is freed afterwards."""
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
    """Return the characters of a text that no font has, each once, by the rules of PDF/A-3.

    This typesets a page, so it must not run in an event loop. Fonts are searched for once in a process.
    """
    inputs = {"text": text}
    try:
        typst.compile(_PAGE, format="pdf", sys_inputs=inputs, pdf_standards="a-3b", font_paths=_fonts())
    except typst.TypstError as error:
        runs = _MISSING.findall(error.diagnostic)
        return "".join(dict.fromkeys("".join(_ESCAPED.sub(_unescaped, run_) for run_ in runs)))
    return ""


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts()


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def main() -> None:
    job = json.load(sys.stdin.buffer)
    logo = job["logo"]
    sys.stdout.buffer.write(_pages(job["content"], None if logo is None else Path(logo)))


if __name__ == "__main__":
    main()
