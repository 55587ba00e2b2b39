#!/usr/bin/env python3
"""Prepare pages for MkDocs: add those outside `docs/`, and convert links between files to links between
pages.

Links are written so that they work in a checkout. A link to a file that is no page of the site becomes plain
text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site whose sources are outside `docs/`.
ELSEWHERE = {
    "inside/architecture.md": "ARCHITECTURE.md",
    "inside/contributing.md": "CONTRIBUTING.md",
    "inside/changes.md": "CHANGELOG.md",
    "inside/redis.md": "lua/README.md",
    "operate/files.md": "deploy/README.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`(?!\]))", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages whose sources are outside `docs/` (a hook of MkDocs)."""
    for page, source in ELSEWHERE.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Convert links between files of the repository to links between pages (a hook of MkDocs)."""
    here = page.file.src_uri
    source = ELSEWHERE.get(here, f"docs/{here}")
    known = {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in ELSEWHERE}
    known |= {source: page for page, source in ELSEWHERE.items()}

    def turned(match: re.Match[str]) -> str:
        words, path, anchor = match[1], match[2], match[3] or ""
        if not path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target not in known:
            return words if (ROOT / target).exists() else match[0]
        return f"[{words}]({posixpath.relpath(known[target], posixpath.dirname(here) or '.')}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(turned, part) for number, part in enumerate(parts))
