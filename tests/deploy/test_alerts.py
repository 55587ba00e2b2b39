"""Alerts fire by the real fault: a real Prometheus scrapes a real Tollkeeper in which it is made.

Windows of minutes are twenty seconds here, waits of alerts one second. A backup is missed after one second in
place of a day and a half. Series, labels and sums are those of the rules as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.deploy.test_scrape import Prometheus
from tests.journey.stack import Stack
from tests.waiting import HUNG_S, wait_until

pytestmark = pytest.mark.nightly


def shortened(rules: str) -> str:
    rules = re.sub(r"\[\d+m\]", "[20s]", rules)
    return re.sub(r"for: \w+", "for: 1s", rules).replace("36 * 3600", "1")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("alerts") / "data", "--workers", "1")
    yield one
    one.stop()


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    one = Prometheus(tmp_path_factory.mktemp("prometheus"), stack.admin_url, shortened)
    wait_until(one.ready, HUNG_S)
    yield one
    one.process.terminate()
    one.process.wait(HUNG_S)


def firing(prometheus: Prometheus) -> set[str]:
    found = (one for one in prometheus.get("alerts")["alerts"] if one["state"] == "firing")
    return {one["labels"]["alertname"].removeprefix("Tollkeeper") for one in found}


def fires(prometheus: Prometheus, name: str, fault: Callable[[], object] = lambda: None) -> None:
    """Make the fault again and again, until its alert fires."""

    def fired() -> bool:
        fault()
        return name in firing(prometheus)

    wait_until(fired, HUNG_S)


def ends(prometheus: Prometheus, name: str, well: Callable[[], object]) -> None:
    def ended() -> bool:
        well()
        return name not in firing(prometheus)

    wait_until(ended, HUNG_S)


@pytest.mark.parametrize(
    ("status", "name", "other"),
    [("500", "UpstreamFailing", "UpstreamRefusesUs"), ("401", "UpstreamRefusesUs", "UpstreamFailing")],
)
def test_an_upstream_that_answers_errors_or_refuses_our_key_is_told_until_it_is_well(
    stack: Stack, prometheus: Prometheus, status: str, name: str, other: str
) -> None:
    _, key = stack.tenant(None)
    fires(prometheus, name, lambda: stack.chat(key, "5,7", x_demo_status=status))
    assert other not in firing(prometheus)
    ends(prometheus, name, lambda: stack.chat(key, "5,7"))


def test_a_backup_that_was_never_taken_is_told(prometheus: Prometheus) -> None:
    fires(prometheus, "BackupMissing")


@pytest.mark.parametrize("name", ["GatewaysGone", "KeeperDown"])
def test_a_tollkeeper_that_is_gone_is_told(stack: Stack, prometheus: Prometheus, name: str) -> None:
    stack.stop()
    fires(prometheus, name)
