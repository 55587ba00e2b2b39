"""Runs tests in processes that are forked behind the collection: nothing is imported or collected twice.

`--processes N` says how many. Each takes whole files, one after another, and sends its reports back over a
socket; so fixtures of a session are made once a process. Tests that ask for a stack of `STACKS` are one such
file: one process starts it, and ends it behind them. A process that dies fails the test that it ran, by
name and with where its threads were, and another one goes on behind that test. `build/test-costs.json` keeps
the CPU seconds of each test: the dearest files begin first. A test that costs more than its tier lets it
fails the run, but for those of `DEAR`; servers that tests share are counted apart.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

PROCESSES_MAX: Final = 64
DEAREST: Final = 20
COSTS: Final = Path(__file__).resolve().parent.parent / "build" / "test-costs.json"
SHARED: Final = "servers that tests share"
# Fixtures of a session that are made once a run: a stack takes 16 CPU seconds to start.
STACKS: Final = ("stack", "breakable_stack", "other_stack", "stage", "other_stage")
# A machine that these CPU seconds of is no slower than the one that bounds are stated for.
COMPUTED: Final = 2_000
COMPUTED_S: Final = 0.08
# What one test costs varies by so much from run to run.
NOISE: Final = 3.0
# Dearer than their tier lets tests be, and why.
DEAR: Final[Mapping[str, str]] = {
    f"tests/{name}": reason
    for reason, names in {
        "a deployment of real processes, some of them started again": (
            *(f"faults/test_rows_{part}.py::test_row" for part in ["real", "staged"]),
            "deploy/test_layouts.py::test_it_is_taken_back_until_it_is_taken_up_and_refused_from_then_on",
            (
                "deploy/test_reload.py::"
                "test_a_changed_configuration_is_in_force_for_the_next_call_and_a_wrong_one_is_said"
            ),
            (
                "deploy/test_restarts.py::"
                "test_a_gateway_starts_again_at_the_socket_of_a_service_manager_without_a_failed_call"
            ),
            (
                "deploy/test_restarts.py::"
                "test_a_gateway_that_was_told_to_stop_lives_and_is_not_ready_until_its_calls_are_over"
            ),
            "deploy/test_restarts.py::test_a_worker_that_is_killed_under_load_refuses_nobody",
            "deploy/test_secured.py::test_a_certificate_of_somebody_elses_authority_is_not_trusted",
            "deploy/test_secured.py::test_an_expired_certificate_is_named",
            "deploy/test_secured.py::test_everything_works_over_tls_as_users_with_few_rights",
            "deploy/test_tls.py::test_a_gateway_asks_for_certificates_and_takes_new_files_over",
            "journey/test_backup.py::test_a_backup_under_load_serves_its_balances_elsewhere",
            (
                "journey/test_bound_services.py::"
                "test_a_gateway_starts_with_services_that_share_paths_only_if_they_cost_the_same"
            ),
            (
                "journey/test_cluster.py::"
                "test_nothing_is_lost_doubled_or_granted_twice_whatever_becomes_of_a_primary"
            ),
            "journey/test_redis_tls.py::test_the_primary_that_a_sentinel_names_is_followed",
        ),
        "a stack starts again, and what it used before is counted where it ends": (
            (
                "journey/test_budget_alerts.py::"
                "test_a_budget_that_is_used_up_is_told_once_by_message_and_by_mail"
            ),
            "journey/test_outages.py::test_everything_is_kept_over_a_restart_and_served_again",
        ),
        "ten thousand histories are played on two releases": (
            (
                "model/test_scripts_at_length.py::"
                "test_scripts_answer_as_in_the_release_before_in_many_histories"
            ),
        ),
        "the compiled hot path passes the tests of the modules it is made of": (
            "contract/test_compiled.py::test_a_wheel_of_it_is_installed_and_runs",
            "contract/test_compiled.py::test_compiled_hot_path_passes_the_tests_of_all_that_it_reads",
        ),
        "four times as much of a ledger is four times the work": (
            "persistence/billing/test_work.py::test_database_work_of_applying_credit_is_not_quadratic_in_the_credit_notes",
            (
                "persistence/billing/test_work.py::"
                "test_database_work_of_billing_and_reports_is_not_quadratic_in_the_charges"
            ),
        ),
        "everything starts on this machine, some of it twice": (
            "local/test_real_up.py::test_a_demo_key_that_was_taken_away_is_followed_by_another",
            (
                "local/test_real_up.py::"
                "test_a_directory_of_an_earlier_program_without_a_demo_gets_a_keeper_that_owns_nothing"
            ),
            "deploy/test_wheels.py::test_up_runs_from_an_environment_that_has_the_wheel_alone",
        ),
        "every operation of the Admin API is asked for": (
            "admin/test_described.py::test_random_requests_made_from_the_openapi_document_are_answered_as_documented",
        ),
        "the first test that reads the SDKs imports all types of requests": (
            "core/families/test_costs.py::test_the_table_has_a_row_for_each_name_of_an_sdk_and_for_no_other",
        ),
        "the first test that reads the tree parses all of it": (
            "test_tidy.py::test_modules_have_one_subject",
            "test_words.py::test_docstrings_of_functions_begin_with_a_verb",
            "test_words.py::test_phrases_are_plain",
            "test_words.py::test_variables_are_nouns",
        ),
        "Prometheus works out each rule": (
            "deploy/test_rules.py::test_each_alert_fires_on_its_fault",
            "deploy/test_rules.py::test_each_alert_fires_where_the_first_sample_is_of_the_fault",
            "deploy/test_scrape.py::test_every_query_of_every_dashboard_returns_data",
            "deploy/test_scrape.py::test_no_alert_fires_at_a_tollkeeper_that_is_well",
        ),
    }.items()
    for name in names
}
# Tells a test, and the programs that it starts, that it runs beside others.
WORKER: Final = "TEST_WORKER"
# Where a process that dies of a signal writes what its threads did.
THREADS: Final = "threads.txt"


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=1, help="in how many forked processes tests run")
    parser.addoption("--dearest", type=float, help="CPU seconds that a test may cost")


class _Worker:
    """A forked process, the items it has not yet reported, and the socket to it."""

    def __init__(self, pid: int, channel: socket.socket, threads: Path) -> None:
        self.pid, self.channel, self.received, self.threads = pid, channel, b"", threads
        self.waiting: deque[pytest.Item] = deque()

    def give(self, items: Sequence[pytest.Item]) -> None:
        self.waiting.extend(items)
        with suppress(BrokenPipeError):
            self.channel.sendall(json.dumps([item.nodeid for item in items]).encode() + b"\n")

    def lines(self) -> list[bytes] | None:
        """Return the whole lines that arrived, None at the end."""
        try:
            data = self.channel.recv(1 << 16)
        except ConnectionResetError:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        return lines if data else None


class _Run:
    """A run of collected items by forked processes."""

    def __init__(self, session: pytest.Session) -> None:
        self.session, self.hook = session, session.config.hook
        files: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            files.setdefault(_file(item), []).append(item)
        self.files = deque(_by_cost(list(files.values())))
        self.costs: dict[str, float] = {}
        self.slowness: dict[str, float] = {}
        self.shared_s = 0.0
        self.selector, self.started = selectors.DefaultSelector(), 0

    @property
    def is_over(self) -> bool:
        return bool(self.session.shouldstop or self.session.shouldfail)

    def run(self, processes: int) -> None:
        gc.collect()
        gc.freeze()
        try:
            for _ in range(min(processes, PROCESSES_MAX, len(self.files))):
                self.start(self.next_file())
            while self.selector.get_map() and not self.is_over:
                for key, _ in self.selector.select():
                    self.read(key.data)
        finally:
            for key in list(self.selector.get_map().values()):
                os.kill(key.data.pid, signal.SIGINT)
                key.data.channel.close()
                os.waitpid(key.data.pid, 0)

    def next_file(self) -> list[pytest.Item]:
        return self.files.popleft() if self.files else []

    def start(self, items: list[pytest.Item]) -> None:
        self.started += 1
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for key in self.selector.get_map().values():
                key.data.channel.close()
            ours.close()
            _work(self.session, theirs, self.started)
        theirs.close()
        worker = _Worker(pid, ours, _own(self.session.config, self.started) / THREADS)
        self.selector.register(ours, selectors.EVENT_READ, worker)
        worker.give(items)

    def read(self, worker: _Worker) -> None:
        lines = worker.lines()
        if lines is None:
            self.end(worker)
        for message in map(json.loads, lines or ()):
            if message is None:
                worker.give(self.next_file())
            elif isinstance(message, list):
                name, cost, shared_s, slowness = message
                self.costs[name] = cost
                self.shared_s += shared_s
                if slowness:
                    self.slowness[name] = slowness
                worker.waiting.popleft()
            else:
                config = self.session.config
                if isinstance(message["longrepr"], list):  # of a skip: where, and why
                    message["longrepr"] = tuple(message["longrepr"])
                report = self.hook.pytest_report_from_serializable(config=config, data=message)
                self.hook.pytest_runtest_logreport(report=report)

    def end(self, worker: _Worker) -> None:
        """Report the item that a process died of, and have another process run those behind it."""
        self.selector.unregister(worker.channel)
        worker.channel.close()
        _, status = os.waitpid(worker.pid, 0)
        if not worker.waiting and status == 0:
            return
        lost = worker.waiting.popleft() if worker.waiting else self.session.items[-1]
        threads = worker.threads.read_text() if worker.threads.exists() else ""
        why = f"a process of tests ended with {os.waitstatus_to_exitcode(status)}\n{threads}"
        report = pytest.TestReport(lost.nodeid, lost.location, {}, "failed", why, "call")
        self.hook.pytest_runtest_logreport(report=report)
        if worker.waiting and not self.is_over:
            self.start(list(worker.waiting))


def run_forked(session: pytest.Session) -> bool:
    """Run the collected items of a session in forked processes."""
    run = _Run(session)
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # as pytest's plugins do
    try:
        run.run(session.config.getoption("--processes"))
    finally:
        _keep_costs(run.costs)
        session.config.stash[_COSTS] = run.costs | {SHARED: run.shared_s}
    if most := session.config.getoption("--dearest"):
        for line in too_dear(run.costs, most, run.slowness):
            name = line.partition(" ")[0]
            report = pytest.TestReport(name, (name, None, name), {}, "failed", line, "call")
            session.config.hook.pytest_runtest_logreport(report=report)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


_COSTS: Final = pytest.StashKey[dict[str, float]]()


def too_dear(
    costs: Mapping[str, float],
    most: float,
    slowness: Mapping[str, float],
    excused: Collection[str] = DEAR,
) -> list[str]:
    """Return a line for each test that costs more than it may where it ran, as slow as that was."""
    here = {name: most * NOISE * slowness.get(name, 1.0) for name in costs}
    return [
        f"{name} costs {cost:.1f} CPU s, at most {here[name]:.1f} here: mend it or give DEAR its reason"
        for name, cost in costs.items()
        if cost > here[name] and name.partition("[")[0] not in excused
    ]


def _slowness() -> float:
    """Return how many times as long this machine computes as one that takes `COMPUTED_S`; at least 1."""
    began = time.process_time()
    for _ in range(COMPUTED):
        json.loads(json.dumps({str(number): [number] for number in range(100)}))
    return max(1.0, (time.process_time() - began) / COMPUTED_S)


def tell_costs(terminal: pytest.TerminalReporter) -> None:
    """Print the dearest tests of a run, and what all cost together."""
    costs = terminal.config.stash.get(_COSTS, {})
    if len(costs) > DEAREST:
        terminal.write_line(f"{sum(costs.values()):.0f} CPU s in {len(costs) - 1} tests; the dearest:")
        for name in sorted(costs, key=costs.__getitem__, reverse=True)[:DEAREST]:
            terminal.write_line(f"{costs[name]:7.1f}  {name}")


def _file(item: pytest.Item) -> str:
    """Return the stack that an item asks for, else its file."""
    made = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]  # as pytest's plugins do
    shared = (name for name in STACKS if name in made and made[name][-1].scope == "session")
    return next(shared, item.nodeid.partition("::")[0])


def _kept_costs() -> dict[str, float]:
    try:
        return dict(json.loads(COSTS.read_text()))
    except (OSError, ValueError):
        return {}


def _keep_costs(costs: dict[str, float]) -> None:
    if costs and WORKER not in os.environ:
        COSTS.parent.mkdir(exist_ok=True)
        COSTS.write_text(json.dumps(_kept_costs() | costs, indent=0, sort_keys=True))


def _by_cost(files: list[list[pytest.Item]]) -> list[list[pytest.Item]]:
    """Return the files with the dearest first by the last run; without one their order stays."""
    costs = _kept_costs()
    return sorted(files, key=lambda items: -sum(costs.get(item.nodeid, 0.0) for item in items))


def _own(config: pytest.Config, number: int) -> Path:
    """Return the folder of a process."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # as pytest's plugins do
    return base / f"process{number}"


# In a forked process.
def _spent_s() -> float:
    """Return the CPU seconds of this process, and of those it has waited for."""
    return sum(os.times()[:4])


class _Sender:
    """Sends the reports of a process to the one that it was forked from, and what its tests cost."""

    def __init__(self, config: pytest.Config, channel: socket.socket) -> None:
        self._config, self._channel = config, channel
        # What began servers that several tests share, and whether there are any that end behind a test.
        self._shared_s, self._is_shared = 0.0, False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        began = _spent_s()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self._shared_s += _spent_s() - began
                self._is_shared = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        began = _spent_s()
        try:
            return (yield)
        finally:
            if self._is_shared and (nextitem is None or _file(item) != _file(nextitem)):
                self._shared_s += _spent_s() - began

    def run(self, item: pytest.Item, after: pytest.Item | None) -> None:
        """Run a test; what it costs is sent behind its reports, without that of shared servers."""
        began, self._shared_s = _spent_s(), 0.0
        stays = after is not None and (_file(after) == _file(item) or _file(item) not in STACKS)
        self._config.hook.pytest_runtest_protocol(item=item, nextitem=after if stays else None)
        cost = _spent_s() - began - self._shared_s
        most = self._config.getoption("--dearest")
        slowness = _slowness() if most and cost > most else None  # now, since neighbours come and go
        self.send([item.nodeid, round(cost, 3), round(self._shared_s, 3), slowness])

    def send(self, message: object) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))


def _work(session: pytest.Session, channel: socket.socket, number: int) -> None:
    """Run the files that are given, then end this process."""
    os.environ[WORKER] = str(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
    status = 1
    try:
        config = session.config
        own = _own(config, number)
        own.mkdir(mode=0o700)
        faulthandler.enable((own / THREADS).open("w"))
        config._tmp_path_factory._basetemp = own  # type: ignore[attr-defined]  # the same
        capture = config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()  # whose files all processes would write to
        capture.start_global_capturing()
        for name in ("terminalreporter", "logging-plugin-terminal"):
            config.pluginmanager.unregister(name=name)
        sender = _Sender(config, channel)
        config.pluginmanager.register(sender)
        by_name = {item.nodeid: item for item in session.items}
        given = (json.loads(line) for line in channel.makefile("rb"))
        ours = chain.from_iterable(iter(lambda: _asked(sender, given, by_name), []))
        item = next(ours, None)
        while item is not None:
            after = next(ours, None)
            sender.run(item, after)
            item = after
        status = 0
    finally:
        session._setupstate.teardown_exact(None)  # servers that an interrupted test was given end too
        os._exit(status)


def _asked(sender: _Sender, given: Iterator[list[str]], by_name: dict[str, pytest.Item]) -> list[pytest.Item]:
    """Return the items of the next file; none once all are given out."""
    names = next(given)
    if names:
        sender.send(None)  # the one behind it, so that its fixtures of a package stay
    return [by_name[name] for name in names]
