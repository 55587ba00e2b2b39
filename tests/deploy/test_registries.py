"""A package index and a registry on this machine take wheel and chart, and give them as they were made."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gateway.extras import DISTRIBUTION
from tests import certificates
from tests.conftest import free_port
from tests.deploy import helm, installed
from tests.journey.clients import UV
from tests.tree import ROOT
from tests.waiting import wait_until

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
INDEX = "pypiserver==2.4.1"


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index that anybody may upload to."""
    port, packages = free_port(), tmp_path / "packages"
    packages.mkdir()
    words = ["run", "--port", str(port), "--interface", "127.0.0.1", "-P", ".", "-a", ".", str(packages)]
    with subprocess.Popen([UV, "tool", "run", "--from", INDEX, "pypi-server", *words]) as server:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(port))
        yield url
        server.terminate()


def test_uvx_runs_what_was_published(index: str, tmp_path: Path) -> None:
    wheel = installed.said_by(sys.executable, ROOT / "deploy/wheels.py", tmp_path, "--pure", cwd=tmp_path)
    said = ["--username", "anybody", "--password", "any"]
    installed.said_by(UV, "publish", "--publish-url", index, *said, wheel.strip(), cwd=tmp_path)
    words = ["tool", "run", "--index", f"{index}/simple", "--from", f"{DISTRIBUTION}=={VERSION}"]
    assert installed.said_by(UV, *words, "tollkeeper", "--version", cwd=tmp_path) == f"tollkeeper {VERSION}\n"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[str, ssl.SSLContext, str]]:
    """A registry that anybody may push to, Debian's: its host and port, and whom to trust."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    port, said, authority = free_port(), tmp_path / "registry.yml", trustme.CA()
    files = certificates.issued(tmp_path, authority)
    certificates.write(tmp_path / "ca.pem", authority.cert_pem.bytes())
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    shown = {"addr": f"127.0.0.1:{port}", "tls": {"certificate": files.certificate, "key": files.key}}
    said.write_text(json.dumps({"version": 0.1, "storage": storage, "http": shown}))
    with subprocess.Popen(
        [program, "serve", str(said)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        wait_until(lambda: answers(port))
        yield f"127.0.0.1:{port}", certificates.trusting(authority), str(tmp_path / "ca.pem")
        server.terminate()


def test_a_registry_gives_the_chart_that_was_pushed(
    registry: tuple[str, ssl.SSLContext, str], tmp_path: Path
) -> None:
    host, context, authority = registry
    chart = helm.pushed(f"oci://{host}/charts", tmp_path, authority).read_bytes()

    def got(what: str) -> bytes:
        accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        asked = urllib.request.Request(f"https://{host}/v2/charts/tollkeeper/{what}", headers=accepted)
        with urllib.request.urlopen(asked, context=context) as answer:
            return bytes(answer.read())

    manifest = json.loads(got(f"manifests/{VERSION}"))
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
    [layer] = manifest["layers"]
    assert layer["digest"] == f"sha256:{hashlib.sha256(chart).hexdigest()}"
    assert got(f"blobs/{layer['digest']}") == chart
    assert json.loads(got(f"blobs/{manifest['config']['digest']}"))["appVersion"] == VERSION
