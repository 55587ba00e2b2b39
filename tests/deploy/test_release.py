"""A release is made, looked at, published and signed in that order, and stops where something is not right.

The script is run as it is; docker, grype and cosign are stand-ins that note what they are asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.tree import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BASE, IMAGE, INDEX = ("sha256:" + letter * 64 for letter in "abc")
# What each build makes is named by the tests; whatever is inspected is the base, or what was pushed.
DOCKER = f"""#!/bin/sh
echo "docker $*" >>"$NOTES"
case "$*" in
*"imagetools inspect python:"*) echo "{BASE}" ;;
*"--raw"*) echo "{{\\"manifests\\": [{{\\"digest\\": \\"$PUSHED\\"}}]}}" ;;
*imagetools*) echo "{{}}" ;;
*)
    made=$FIRST
    case "$*" in *second.json*) made=$SECOND ;; *published.json*) made={INDEX} ;; esac
    while [ "$1" != --metadata-file ]; do shift; done
    echo "{{\\"containerimage.digest\\": \\"$made\\"}}" >"$2"
    ;;
esac
"""
GRYPE = """#!/bin/sh
echo "grype $*" >>"$NOTES"
exit "$WEAK"
"""
COSIGN = """#!/bin/sh
echo "cosign $*" >>"$NOTES"
"""


class Release:
    """A tree with a commit, the script in it, and the stand-ins on the path."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.notes = folder / "tree", folder / "notes"
        (self.tree / "deploy").mkdir(parents=True)
        for name in ("release.sh", "Dockerfile"):
            shutil.copy(ROOT / "deploy" / name, self.tree / "deploy")
        shutil.copy(ROOT / "pyproject.toml", self.tree)
        (self.tree / ".gitignore").write_text("build/\n")
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (("docker", DOCKER), ("grype", GRYPE), ("cosign", COSIGN)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.environ = {
            "PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(self.notes), "HOME": str(folder),
            "FIRST": IMAGE, "SECOND": IMAGE, "PUSHED": IMAGE, "WEAK": "0",
        }  # fmt: skip
        author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        for words in (("init", "-q"), ("add", "-A"), (*author, "commit", "-qm", "all")):
            subprocess.run(["git", *words], cwd=self.tree, env=self.environ, check=True)

    def run(self, **environ: str) -> tuple[int, str]:
        """Its status, and what it said."""
        done = subprocess.run(
            ["sh", "deploy/release.sh", "registry.example/tollkeeper"],
            cwd=self.tree, env=self.environ | environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    @property
    def asked(self) -> list[str]:
        """What the tools were asked, in order."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def test_a_release_is_built_twice_looked_at_published_and_signed(release: Release) -> None:
    status, said = release.run()
    assert status == 0, said
    base, first, second, gate, published, raw, provenance, bill, *signed = release.asked
    assert base.startswith("docker buildx imagetools inspect python:3.11-slim-bookworm ")
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=release.tree, capture_output=True, text=True, check=True
    ).stdout.strip()
    for build in (first, second, published):
        assert f"--build-arg PYTHON=3.11-slim-bookworm@{BASE} " in build
        assert f"--build-arg REVISION={revision} " in build
        assert f"--build-arg VERSION={VERSION} " in build
        assert "rewrite-timestamp=true" in build
    assert "--no-cache" in first
    assert "--no-cache" in second
    assert first.partition("--metadata-file")[0] == second.partition("--metadata-file")[0]
    assert gate.startswith("grype oci-archive:build/release/first.tar --only-fixed --fail-on high")
    assert "--provenance=mode=max --sbom=true" in published
    where = f"registry.example/tollkeeper@{INDEX}"
    assert all(where in one for one in (raw, provenance, bill))
    assert signed == [
        f"cosign sign --yes {where}",
        f"cosign attest --yes --type slsaprovenance1 --predicate build/release/provenance.json {where}",
        f"cosign attest --yes --type spdxjson --predicate build/release/sbom.json {where}",
    ]
    assert release.run(COSIGN_KEY="awskms://key")[0] == 0
    assert release.asked[-3] == f"cosign sign --yes --key awskms://key {where}"


@pytest.mark.parametrize(
    ("environ", "why", "published"),
    [
        ({"SECOND": INDEX}, "two builds differ", False),
        ({"FIRST": "", "SECOND": ""}, "does not say its digest", False),
        ({"WEAK": "1"}, "weaknesses that can be mended", False),
        ({"PUSHED": BASE}, "it is not signed", True),
    ],
)
def test_what_is_not_right_is_neither_published_nor_signed(
    release: Release, environ: dict[str, str], why: str, published: bool
) -> None:
    status, said = release.run(**environ)
    assert status == 1
    assert why in said
    assert any("push=true" in one for one in release.asked) is published
    assert not any(one.startswith("cosign") for one in release.asked)


def test_what_is_in_no_commit_is_not_released(release: Release) -> None:
    (release.tree / "deploy" / "Dockerfile").write_text("FROM scratch\n")
    status, said = release.run()
    assert status == 1
    assert "in no commit" in said
    assert release.asked == []
