"""The table of meetings, and how they are played. Rows are kept in `build/world/meetings`, by program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from tests.deploy.programs import program
from tests.features.backup.test_versions import VERSIONS, tools_of
from tests.journey.fronts import ENVOY, haproxy_program, nginx_program
from tests.lua.test_restarted import RELEASES
from tests.persistence.test_pools import PACKAGES as PGBOUNCER
from tests.world import meet_formats as formats
from tests.world import meet_servers as servers
from tests.world.meet_servers import Rule
from tests.world.meeting import WRONG, Lab, Meeting, MeetingCell, MeetingRow, Shared
from tests.world.programs import PLACE

TYPESCRIPT = "typescript@5.9.3"
HEY, FETCH = "@hey-api/openapi-ts@0.99.0", ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0")
FOCUS = ("focus-validator==2.2.1", "pyarrow==21.0.0", "--ignore-requires-python")


def _server(
    name: str, rules: Callable[[], Sequence[Rule]], place: Callable[[], str], word: str = "--version",
    *, of: str = "Debian's",
) -> Meeting:  # fmt: skip
    """Return the meeting with a server that tells its version."""

    def version() -> str:
        done = subprocess.run([place(), word], capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+(?:\.\d+)?", done.stdout + done.stderr)
        assert found is not None, done
        return f"{found[0]}, {of}"

    return Meeting(name, None, rules=rules, version=version)


MEETINGS = {
    one.name: one
    for one in (
        Meeting("CloudEvents SDK", formats.cloudevents, ("cloudevents==2.2.0",)),
        Meeting("CloudEvents SDK of Node", formats.cloudevents_node, ("cloudevents@10.0.0",)),
        Meeting("Standard Webhooks", formats.standardwebhooks, ("standardwebhooks==1.1.0",)),
        Meeting("Standard Webhooks of Node", formats.standardwebhooks_node, ("standardwebhooks@1.1.1",)),
        Meeting("OpenMeter's client", formats.openmeter, ("openmeter==1.0.0b236",)),
        Meeting("Lago's client", formats.lago, ("lago-python-client==1.55.0",)),
        Meeting("FOCUS validator", formats.focus_validator, FOCUS, by_pip=True),
        Meeting("openapi-python-client", formats.openapi_python_client, ("openapi-python-client==0.29.1",)),
        Meeting(
            "datamodel-code-generator",
            formats.datamodel_code_generator,
            ("datamodel-code-generator==0.89.0",),
        ),
        Meeting("openapi-typescript", formats.openapi_typescript, (*FETCH, TYPESCRIPT)),
        Meeting("hey-api", formats.hey_api, (HEY, TYPESCRIPT)),
        Meeting("EN 16931's rules", formats.en_16931, version=formats.facturx_version),
        Meeting("verifyhash-einvoice", formats.einvoice, ("verifyhash-einvoice==0.2.9",)),
        _server("Prometheus", lambda: servers.RULED, lambda: program("prometheus", "prometheus")),
        _server(
            "PgBouncer", lambda: servers.POOLED, lambda: program("pgbouncer", *PGBOUNCER, places="/usr/sbin")
        ),
        *(
            _server(
                f"PostgreSQL {major}", partial(servers.postgresql, major),
                lambda major=major: str(tools_of(major) / "postgres"), of="its server",
            )
            for major in VERSIONS
        ),
        *(
            _server(
                one.name.capitalize(), partial(servers.stored, one), one.program,
                of="".join(one.packages[:1]) or "as it is tested with",
            )
            for one in RELEASES
        ),
        Meeting("Envoy with ext_authz", None, (ENVOY,), lambda: servers.before_a_model("envoy")),
        Meeting("Envoy with a rate limit service", None, (ENVOY,), lambda: servers.RATE_LIMITED),
        _server("nginx with njs", lambda: servers.before_a_model("nginx"), nginx_program, "-v"),
        _server("HAProxy", lambda: servers.BALANCED, haproxy_program, "-v"),
    )
}  # fmt: skip


def play_meetings(names: Collection[str], *, fresh: bool) -> list[MeetingRow]:
    """Return the rows of these programs, each played once unless `fresh`; report those that cannot be had.

    Tests of all of them are run in one process.
    """
    left = [MEETINGS[name] for name in names if fresh or not _kept(name).is_file()]
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="meetings-")))
        for row in play(left, Shared(folder, ends)):
            _kept(row.name).parent.mkdir(parents=True, exist_ok=True)
            _kept(row.name).write_text(json.dumps(asdict(row)))
    stored = [json.loads(_kept(name).read_text()) for name in names if _kept(name).is_file()]
    return [
        MeetingRow(**said | {"cells": [MeetingCell(**cell) for cell in said["cells"]]}) for said in stored
    ]


def _kept(name: str) -> Path:
    return PLACE / "meetings" / re.sub(r"\W+", "-", name) / "row.json"


def play(meetings: Collection[Meeting], shared: Shared) -> Iterator[MeetingRow]:
    """Yield the row of each; programs that no registry has are left out, and reported."""
    rules: dict[str, Sequence[Rule]] = {}
    for meeting in meetings:
        try:
            rules[meeting.name] = meeting.rules()
            if meeting.play is not None:
                yield _row(meeting, _cells(meeting, shared))
        except pytest.skip.Exception as away:
            print(f"{meeting.name}: {away}", file=sys.stderr)
    waiting = {
        name: dict.fromkeys(test for rule in each for test in rule.tests)
        for name, each in rules.items() if each
    }  # fmt: skip
    outcomes: dict[str, str] = {}
    for test, outcome in servers.run_tests(chain(*waiting.values())) if waiting else ():
        outcomes[test] = outcome
        for name in [name for name, tests in waiting.items() if tests.keys() <= outcomes.keys()]:
            if "SKIPPED" not in (outcomes[one] for one in waiting.pop(name)):
                yield _row(MEETINGS[name], servers.cells_of(rules[name], outcomes))


def _cells(meeting: Meeting, shared: Shared) -> list[MeetingCell]:
    assert meeting.play is not None
    with tempfile.TemporaryDirectory(prefix="meeting-") as folder:
        return list(meeting.play(Lab(meeting, Path(folder), shared)))


def _row(meeting: Meeting, cells: list[MeetingCell]) -> MeetingRow:
    print(f"{meeting.name}: {len(cells)} cells", file=sys.stderr)
    return MeetingRow(meeting.name, meeting.seen_version(), f"{datetime.now(UTC):%Y-%m-%d}", cells)


def wrong_cells(rows: list[MeetingRow]) -> list[str]:
    return [
        f"{row.name}: {cell.done}: {cell.found}"
        for row in rows
        for cell in row.cells
        if cell.verdict == WRONG
    ]
