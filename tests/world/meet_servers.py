"""Servers before, beside and behind Tollkeeper: each cell is what tests that stand there assert of one.

A rule is asserted in one place; a meeting runs it with the program of its name, and says what was seen.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tests.features.backup.test_versions import VERSIONS, tools_of
from tests.lua.test_restarted import Release
from tests.tree import ROOT
from tests.world.meeting import RIGHT, TO_SET, WRONG, MeetingCell

# Also those tests run that are run by the name of their marker alone.
EVERY = "not (versions and nightly)"
ENDED = re.compile(r"(tests/.+?)(?: <- \S+)? (PASSED|FAILED|SKIPPED|ERROR)\b")


class Rule(NamedTuple):
    """What was done, what was found, the tests that assert it, and the verdict if they pass."""

    done: str
    found: str
    tests: tuple[str, ...]
    verdict: str = RIGHT


def run_tests(tests: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Run these tests in one process; yield each case and its outcome as it ends."""
    words = ["-v", "-p", "no:cacheprovider", "-m", EVERY, *dict.fromkeys(tests)]
    program = [sys.executable, "-m", "pytest", *words]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", file=sys.stderr)
            if ended := ENDED.match(line):
                yield ended[1], ended[2]


def cells_of(rules: Sequence[Rule], outcomes: Mapping[str, str]) -> list[MeetingCell]:
    """Return the cells of rules whose tests ended so."""
    cells = []
    for rule in rules:
        found = [outcomes.get(test, "not run") for test in rule.tests]
        many = f" ({len(found)} tests)" if len(found) > 1 else ""
        right = {*found} == {"PASSED"}
        said = rule.found + many if right else ", ".join(found)
        cells.append(MeetingCell(rule.done, said, rule.verdict if right else WRONG))
    return cells


def at(path: str, *names: str) -> tuple[str, ...]:
    """Return the ids of tests of a file, which has them."""
    text = (ROOT / f"tests/{path}.py").read_text()
    assert all(f"def test_{name.partition('[')[0]}(" in text for name in names), (path, names)
    return tuple(f"tests/{path}.py::test_{name}" for name in names)


ROOM = ("500 calls by 32 clients where there is room for 20", "20 pass and are charged, 480 get 429")
authority = partial(at, "journey/test_authority")
rated = partial(at, "journey/test_rate_limit_service")
balanced = partial(at, "journey/test_haproxy")
pooled = partial(at, "persistence/test_pools")
ruled, scraped = partial(at, "deploy/test_rules"), partial(at, "deploy/test_scrape")


def before_a_model(front: str) -> tuple[Rule, ...]:
    """Return the rules of a gateway of others that asks Tollkeeper: its files are in `deploy/authority`."""
    return (
        Rule(
            "A call and a stream pass with a hold each",
            "10 and 20 tokens in the ledger, as the answers said; none held",
            authority(f"a_call_passes_with_a_hold_and_is_charged_by_its_answer[{front}]"),
        ),
        Rule(
            "An unknown key, too long an answer, an unknown path",
            "401, 429 with `retry-after`, 404, in the words of the API",
            authority(f"a_refusal_is_told_in_the_words_of_the_called_api[{front}]"),
        ),
        Rule(*ROOM, authority(f"many_at_once_pass_as_often_as_there_is_room[{front}]")),
        Rule(
            "A client sends fields and paths of holds",
            "no hold of another is settled; its caller is who called",
            authority(f"no_client_settles_a_hold_or_speaks_for_another_caller[{front}]"),
        ),
    )


RATE_LIMITED = (
    Rule(*ROOM, rated("many_at_once_pass_envoy_as_often_as_there_is_room")),
    Rule(
        "A call says at its end what it used, by `hits_addend`",
        "7 and 1,001 tokens in the ledger; the third call gets 429",
        rated("a_call_by_envoy_is_held_at_first_and_charged_by_its_end"),
    ),
    Rule(
        "Clients send the same `x-request-id`", "each begins a call of its own",
        rated("no_client_begins_a_call_twice_by_its_id"),
    ),
)  # fmt: skip
POOLED = (
    Rule(
        "The schema is migrated through it, in transaction mode", "at its newest version",
        pooled("the_schema_is_migrated_through_it"),
    ),
    Rule(
        "Two keepers share the work through 3 connections", "606 rows, none twice; no session keeps a lock",
        pooled("keepers_share_the_work_through_it"),
    ),
    Rule(
        "Changes by people, a flush and reads in pieces", "rows in order, invariants hold",
        pooled("people_and_loops_write_and_read_through_it"),
    ),
    Rule(
        "Whether its sessions are shared", "seen in transaction mode, and not in session mode",
        pooled("whether_sessions_are_shared_is_seen"),
    ),
    Rule(
        "Backup and archive through it", "refused: let `TOLLKEEPER_DATABASE_OWNER_URL` name the server",
        pooled("who_needs_a_session_says_so_and_doctor_too"), TO_SET,
    ),
)  # fmt: skip
RULED = (
    Rule(
        "promtool reads the rules and the configuration", "no fault, `--lint-fatal` too",
        ruled("rules_and_configuration_are_valid"),
    ),
    Rule(
        "promtool plays each alert's fault, and a day that is well", "each fires on its fault, none without",
        ruled("each_alert_fires_on_its_fault", "no_alert_fires_while_all_is_well"),
    ),
    Rule(
        "It scrapes a whole Tollkeeper by the shipped files",
        "each rule is worked out, each query of each dashboard finds data, no alert fires",
        scraped(
            "every_rule_is_worked_out_without_a_fault", "every_query_of_every_dashboard_returns_data",
            "every_metric_an_alert_reads_is_scraped", "no_alert_fires_at_a_tollkeeper_that_is_well",
        ),
    ),
)  # fmt: skip
BALANCED = (
    Rule(
        "200 calls and streams by 32 clients of two keys, with `http-reuse always`",
        "each is charged once, to its own key",
        balanced("calls_over_shared_connections_are_charged_once_to_their_own_key"),
    ),
    Rule(
        "A client leaves a stream after its first piece",
        "the piece came while the model wrote; the answer is charged once, none is held",
        balanced("a_stream_arrives_as_it_is_written_and_who_leaves_it_is_charged_once"),
    ),
    Rule("A refusal", "429 with `retry-after` and its reason", balanced("a_refusal_passes_as_it_is")),
    Rule(
        "A model is silent for longer than `timeout server`",
        "504 by HAProxy, charged here: set more than a model's longest silence",
        balanced("a_longer_silence_than_it_waits_is_a_504_that_is_charged"), TO_SET,
    ),
)  # fmt: skip


def postgresql(major: int) -> tuple[Rule, ...]:
    """Return the rules of a version of PostgreSQL; packages of npm have the server alone."""
    name, tools = "features/backup/test_versions", (tools_of(major) / "pg_dump").exists()
    done = "The schema, a flush, a month's invoice, a backup" + (" and its restoration" if tools else "")
    found = "the worked example to the cent; invariants hold"
    if not tools:
        found += f"; the backup says that `pg_dump` {major} is needed"
    worked = Rule(done, found, at(name, f"what_is_flushed_is_invoiced_backed_up_and_restored[{major}]"))
    if not tools or major == VERSIONS[-1]:
        return (worked,)
    newer = at(name, f"a_backup_is_restored_into_each_newer_version[{major}]")
    return worked, Rule("A backup is restored into each newer version", "its rows are the same there", newer)


def stored(release: Release) -> tuple[Rule, ...]:
    """Return the rules of a release of Redis or Valkey."""
    hows = [f"{how}, {preamble}" for how in ("SIGTERM", "SIGKILL") for preamble in ("yes", "no")]
    restarted = partial(at, "lua/test_restarted")
    lost = restarted(f"without_rights_of_default_earlier_servers_lose_it[{release.name}]")
    loses = "it loses what scripts wrote: keep the first line of `deploy/users.acl`"
    return (
        Rule(
            "Each script writes; the server restarts, and rewrites its file",
            "every key is there again",
            restarted(*(f"all_is_there_again[{release.name}-{how}]" for how in hows)),
        ),
        Rule(
            "The same, where `default` has no rights",
            *((loses, lost, TO_SET) if release.loses else ("nothing is lost", lost)),
        ),
    )
