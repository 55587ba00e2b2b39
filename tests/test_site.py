"""The site of docs/: it builds without a warning, fetches nothing, and its reference is the code's."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT, offenders
from tests.waiting import HUNG_S

PAGES = runpy.run_path(str(ROOT / "deploy" / "reference.py"))["pages"]()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:] + built.stdout[-3000:]
    return target


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_reference_is_what_the_code_says(name: str) -> None:
    path = ROOT / "docs" / "reference" / name
    assert path.read_text() == PAGES[name], f"{name} is stale: `make docs` writes it anew"


def test_pages_that_stand_elsewhere_are_there(site: Path) -> None:
    for page, heading in (
        ("inside/architecture.html", "Architecture"),
        ("inside/redis.html", "partition"),
        ("inside/changes.html", "Changelog"),
    ):
        assert heading in (site / page).read_text()


def test_the_site_fetches_nothing_from_anywhere(site: Path) -> None:
    fetched = re.compile(
        r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)="?((?:https?:)?//[^"> ]+)'
    )
    offenders(
        f"{page.relative_to(site)}: {match[1]}"
        for page in site.rglob("*.html")
        for match in fetched.finditer(page.read_text())
        if 'rel="canonical"' not in match[0]
    )
    assert not [
        sheet
        for sheet in site.rglob("*.css")
        if re.search(r"@import|url\([\"']?(?:https?:)?//", sheet.read_text())
    ]


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    """MkDocs looks at links in Markdown; this looks at what became of them."""

    offenders(
        f"{page.relative_to(site)}: {link}"
        for page in site.rglob("*.html")
        for link in re.findall(r'<a[^>]*?\bhref="?([^"#> ]+)', page.read_text())
        if not re.match(r"[a-z]+:|/", link) and not (page.parent / link).exists()
    )
