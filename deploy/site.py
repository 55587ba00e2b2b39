#!/usr/bin/env python3
"""What MkDocs needs besides `docs/`: pages that are elsewhere in the repository, and links between all.

A link is written so that it works where the file stands, in a checkout; here it is turned to the
page it became. A link to a file that is no page keeps its words and loses its address.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that stand elsewhere in the repository.
ELSEWHERE = {
    "inside/architecture.md": "ARCHITECTURE.md",
    "inside/contributing.md": "CONTRIBUTING.md",
    "inside/changes.md": "CHANGELOG.md",
    "inside/redis.md": "lua/README.md",
    "runbook.md": "deploy/README.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`(?!\]))", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that stand elsewhere."""
    for page, source in ELSEWHERE.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository to links between pages."""
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
